from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longtake.kernels.block_sparse.layout import BlockLayout, Size3
from longtake.kernels.block_sparse.select import block_means, pool_blocks

LAYOUTS = [
    BlockLayout((4, 8, 8), (4, 4, 4)),
    BlockLayout((6, 9, 11), (4, 4, 4)),
    BlockLayout((3, 2, 5), (4, 4, 4)),
    BlockLayout((5, 4, 7), (2, 4, 3)),
    BlockLayout((7, 5, 3), (4, 2, 2), segments=(3, 4)),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads_first", [True, False])
def test_means_of_every_block(layout: BlockLayout, heads_first: bool) -> None:
    n = layout.num_tokens
    shape = (2, 3, n, 4) if heads_first else (2, n, 3, 4)
    x = torch.randn(shape, dtype=torch.float64)
    x = x if heads_first else x.transpose(1, 2)
    ends = layout.offsets().tolist()
    for i, mean in enumerate(pool_blocks(x, layout).unbind(2)):
        expected = x[:, :, ends[i] : ends[i + 1]].sum(2) / (ends[i + 1] - ends[i])
        assert torch.allclose(mean, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("grid", "block"), [((4, 8, 8), (4, 4, 4)), ((5, 6, 7), (4, 4, 4))])
def test_plain_order_means(
    grid: Size3, block: Size3, tokens_to_blocks: Callable[[Size3, Size3], Tensor]
) -> None:
    layout, of_token = BlockLayout(grid, block), tokens_to_blocks(grid, block)
    x = torch.randn(1, 2, layout.num_tokens, 3, dtype=torch.float64)
    pooled = pool_blocks(layout.to_block(x, 2), layout)
    for i in range(layout.num_blocks):
        assert torch.allclose(pooled[:, :, i], x[:, :, of_token == i].mean(2), atol=1e-14)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_half_precision_is_summed_in_float32(layout: BlockLayout) -> None:
    x = (torch.randn(1, 2, layout.num_tokens, 8) + 30).bfloat16()
    pooled = pool_blocks(x, layout)
    assert pooled.dtype == torch.float32
    # In bfloat16 the sum of 64 values near 30 would be off by several units.
    assert (pooled.double() - pool_blocks(x.double(), layout)).abs().max() < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_never_sees_its_neighbours(layout: BlockLayout) -> None:
    x = torch.randn(1, 1, layout.num_tokens, 2)
    clean = pool_blocks(x, layout)
    ends = layout.offsets().tolist()
    poisoned = layout.num_blocks - 2
    x[:, :, ends[poisoned] : ends[poisoned + 1]] = torch.nan
    found = pool_blocks(x, layout)
    rest = torch.arange(layout.num_blocks) != poisoned
    assert found[:, :, poisoned].isnan().all()
    assert torch.equal(found[:, :, rest], clean[:, :, rest])


def test_the_op_is_registered_properly() -> None:
    for layout in LAYOUTS[1], LAYOUTS[4]:
        x = torch.randn(2, layout.num_tokens, 3, 4).bfloat16().transpose(1, 2)
        torch.library.opcheck(block_means, (x, layout.offsets(), layout.max_block_size, "auto"))
