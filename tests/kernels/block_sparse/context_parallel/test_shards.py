import pytest
import torch

from longtake.kernels.block_sparse import BlockLayout, pool_blocks
from longtake.kernels.block_sparse.context_parallel import BlockShards
from longtake.runtime.errors import UserError

LAYOUTS = [
    BlockLayout((5, 6, 9), (2, 4, 4)),
    BlockLayout((7, 5, 5), (2, 3, 2), segments=(3, 4)),
    BlockLayout((6, 2, 3), (2, 4, 4), segments=(1, 2, 3)),  # one block per time block
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_ranks", [1, 3, 7])
def test_shards_are_the_block_order_cut_at_whole_blocks(
    layout: BlockLayout, num_ranks: int
) -> None:
    shards = BlockShards.of(layout, num_ranks)
    assert max(shards.blocks) - min(shards.blocks) <= 1
    x = torch.arange(layout.num_tokens)
    parts = [shards.local(x, rank, 0) for rank in range(num_ranks)]
    assert torch.equal(torch.cat(parts), x)
    assert [len(part) for part in parts] == shards.tokens
    sizes = layout.block_sizes().tolist()
    for rank, part in enumerate(parts):
        first, stop = shards.block_range(rank)
        offsets = shards.blocks_of(rank).offsets
        assert offsets.dtype == torch.int32 and offsets[0] == 0 and offsets[-1] == len(part)
        assert offsets.diff().tolist() == sizes[first:stop]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pooled_shards_are_bitwise_the_pooled_whole(
    layout: BlockLayout, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn((2, 3, layout.num_tokens, 8), generator=g).to(dtype)
    expected = pool_blocks(x, layout)
    total = layout.num_blocks
    for blocks in ((0, total, 0), (1, 0, total - 1), (total // 3, total - 1 - total // 3, 1)):
        shards = BlockShards(layout, blocks)
        parts = [shards.pool(shards.local(x, rank, 2), rank) for rank in range(3)]
        assert torch.equal(torch.cat(parts, dim=2), expected)


@pytest.mark.parametrize("blocks", [(9, 8), (20, -2), (18,)])
def test_blocks_that_do_not_make_up_the_layout_are_refused(blocks: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="do not make up the layout"):
        BlockShards.of(LAYOUTS[0], 2, blocks)
