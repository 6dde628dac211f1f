"""The entry on one rank: checks and options; several ranks are in test_modes.py."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from longtake.kernels.block_sparse import BlockIndex, BlockLayout
from longtake.kernels.block_sparse.context_parallel import context_parallel_attention
from longtake.kernels.block_sparse.context_parallel.shards import narrow_kept
from longtake.runtime.errors import UserError

LAYOUT = BlockLayout((3, 6, 5), (2, 4, 4))  # 8 blocks


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def tensors(heads: tuple[int, int] = (4, 2)) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = [(1, h, LAYOUT.num_tokens, 8) for h in (heads[0], heads[1], heads[1])]
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]


def test_without_a_process_group_the_message_says_how_to_start() -> None:
    assert not dist.is_initialized()
    with pytest.raises(UserError, match="torchrun"):
        context_parallel_attention(*tensors(), layout_q=LAYOUT, topk=1)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("mode", ["ulysses", "ring"])
def test_one_rank_needs_nobody(
    mode: Any, make_case: Callable[..., Any], alone: Callable[..., dict[str, Tensor]]
) -> None:
    case = make_case("one", mode=mode, ranks=1, layout_q=LAYOUT, heads=(4, 2), topk=3)
    leaves = [case[name].requires_grad_() for name in "qkv"]
    o = context_parallel_attention(*leaves, layout_q=LAYOUT, mode=mode, topk=3)
    assert isinstance(o, Tensor)
    case["dlse"].zero_()
    expected = alone(case)
    assert torch.equal(o, expected["o"])
    for found, name in zip(torch.autograd.grad(o, leaves, case["do"]), "qkv", strict=True):
        assert torch.equal(found, expected[f"d{name}"])


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layout_q": BlockLayout((3, 6, 6), (2, 4, 4))}, "the blocks of rank 0"),
        ({"blocks_q": [4, 4]}, "do not make up the layout"),
        ({"layout_k": LAYOUT, "blocks_k": [7]}, "do not make up the layout"),
        ({"heads_first": False}, "pass heads_first=True"),
        ({"must_keep": torch.ones((3, 8, 8), dtype=torch.bool)}, "must_keep does not fit"),
    ],
)
def test_wrong_input_is_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        context_parallel_attention(*tensors((4, 1)), **{"layout_q": LAYOUT, "topk": 1, **options})


def test_must_keep_is_cut_by_heads_and_by_query_blocks() -> None:
    mask = torch.rand((1, 4, 8, 6), generator=torch.Generator().manual_seed(0)) < 0.5
    for kept in (mask, mask[0], BlockIndex.from_dense_mask(mask)):
        for dim, total in ((1, 4), (2, 8)):
            part = narrow_kept(kept, dim, 1, 2, total)
            dense = part.to_dense_mask() if isinstance(part, BlockIndex) else part
            assert dense is not None
            assert torch.equal(dense.reshape(1, -1, *dense.shape[-2:]), mask.narrow(dim, 1, 2))
    shared = mask[0, 0]  # no heads to cut
    assert narrow_kept(shared, 1, 1, 2, 4) is shared
    assert narrow_kept(mask[:, :1], 1, 1, 2, 4) is not None
    with pytest.raises(UserError, match="8 along axis 2"):
        narrow_kept(mask, 2, 0, 2, 9)
