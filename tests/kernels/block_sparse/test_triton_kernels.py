"""The Triton kernels in Triton's interpreter, against the reference in float64."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from longtake.kernels.block_sparse import reference
from longtake.kernels.block_sparse.layout import BlockLayout

pytest.importorskip("triton")

from longtake.kernels.block_sparse.triton.lists import longest_first

SCRIPT = Path(__file__).with_name("interpret_triton.py")
SCALE = 0.3


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("interpreted") / "results.pt"
    import longtake

    above = str(Path(longtake.__file__).absolute().parents[1])
    paths = os.pathsep.join((above, os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path, weights_only=False)


def test_attention_and_gradients_agree_with_float64(interpreted: Any) -> None:
    for case, saved in interpreted["attention"].items():
        q, k, v, do, dlse = (x.double() for x in saved["inputs"])
        o, lse = reference.forward(q, k, v, saved["pairs"], SCALE)
        gradients = reference.backward(do, q, k, v, o, lse, dlse, saved["pairs"], SCALE)
        bound = 2e-3 if saved["inputs"][0].dtype == torch.float16 else 2e-6
        for result, expected in zip(saved["results"], (o, lse, *gradients), strict=True):
            assert torch.equal(result.isneginf(), expected.isneginf()), case
            result, expected = result.double().nan_to_num(neginf=0), expected.nan_to_num(neginf=0)
            assert (result - expected).norm() / expected.norm() < bound, case
        for result, given in zip(saved["results"][2:], saved["inputs"], strict=False):
            assert result.dtype == given.dtype
            if given.shape[1] > 1:
                assert result.stride() == given.stride()


def test_selection_equals_sorting(interpreted: Any) -> None:
    for rule, saved in interpreted["selection"].items():
        indices, counts = reference.select(*saved["run"])
        assert torch.equal(saved["results"][0], indices), rule
        assert torch.equal(saved["results"][1], counts), rule


def test_means_of_ragged_blocks(interpreted: Any) -> None:
    for grid, x, means in interpreted["pools"]:
        blocks = x.double().split(BlockLayout(grid, (4, 4, 4)).block_sizes().tolist(), dim=2)
        expected = torch.stack([block.mean(2) for block in blocks], dim=2)
        torch.testing.assert_close(means.double(), expected, atol=1e-6, rtol=1e-6, equal_nan=True)
        assert means[:, :, :-1].isfinite().all() and means[:, :, -1].isnan().all()


def test_lists_are_inverted_in_order(interpreted: Any) -> None:
    saved = interpreted["inversion"]
    mask, sizes = saved["mask"], saved["sizes"]
    plain, split = saved["plain"], saved["split"]
    pointers = plain.row_pointers
    assert torch.equal(pointers, split.row_pointers) and plain.wholes is None
    for h in range(2):
        for key in range(mask.shape[-1]):
            here = slice(int(pointers[0, h, key]), int(pointers[0, h, key + 1]))
            mine = mask[0, h, :, key].nonzero()[:, 0].tolist()
            assert plain.query_blocks[0, h, here].tolist() == mine
            whole = [block for block in mine if sizes[block] == 32]
            others = [block for block in mine if sizes[block] != 32]
            assert split.query_blocks[0, h, here].tolist() == whole + others
            assert split.wholes[0, h, key] == len(whole)
    keys, (lists, first) = saved["keys"], saved["first"]
    for row, result, count in zip(
        keys.flatten(0, 2), lists.flatten(0, 2), first.flatten(), strict=True
    ):
        row = row[row >= 0].tolist()
        whole = [block for block in row if sizes[block] == 32]
        others = [block for block in row if sizes[block] != 32]
        assert result[: len(row)].tolist() == whole + others
        assert count == len(whole)


def test_longest_lists_come_first_and_others_keep_their_order() -> None:
    lengths = torch.tensor([[5, 5, 80, 5], [21, 11, 5, 0]], dtype=torch.int32)
    assert longest_first(lengths).tolist() == [2, 0, 1, 3, 4, 5, 6, 7]
    lengths = torch.tensor([1, 9, 1, 40, 1, 1, 1, 1, 1, 9], dtype=torch.int32)
    assert longest_first(lengths).tolist()[0] == 3
    assert sorted(longest_first(lengths).tolist()) == list(range(10))
    assert longest_first(torch.zeros(3, dtype=torch.int32)).tolist() == [0, 1, 2]
