import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longtake.core.weights import read_tensors, shard_paths, write_shards


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [3, 40, 8, 8, 90, 1, 25]
    return {f"w{i}": torch.randn(n, 4, generator=generator) for i, n in enumerate(sizes)}


@pytest.mark.parametrize("limit", [1, 500, 1000, 10_000])
def test_pairs_and_a_state_dict_give_the_same_files(tmp_path: Path, limit: int) -> None:
    state = tensors(limit)
    from_dict = write_shards(state, tmp_path / "a", "model", limit)
    from_pairs = write_shards(iter(state.items()), tmp_path / "b", "model", limit)
    assert [p.name for p in from_dict] == [p.name for p in from_pairs]
    for one, other in zip(from_dict, from_pairs, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert sorted(p.name for p in (tmp_path / "b").glob("*.part-*")) == []
    merged: dict[str, Tensor] = {}
    for path in shard_paths(tmp_path / "b", "model"):
        merged |= read_tensors(path)
    assert merged.keys() == state.keys()
    assert all(torch.equal(merged[name], state[name]) for name in state)


def test_a_stream_is_never_in_memory_whole(tmp_path: Path) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def stream() -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for i in range(12):
            tensor = torch.randn(25, 4)  # 400 bytes
            alive.append(weakref.ref(tensor))
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))
            yield f"w{i}", tensor

    files = write_shards(stream(), tmp_path, "model", max_shard_bytes=1200)
    assert len(files) == 4
    assert most <= 5  # one shard of three, the tensor that did not fit, the one being made
