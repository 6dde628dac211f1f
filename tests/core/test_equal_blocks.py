"""Views by shape of block: every token once, in the frame that the slice says."""

import pytest
import torch

from longtake.core.block_order import equal_blocks
from longtake.kernels.block_sparse import BlockLayout


@pytest.mark.parametrize(
    ("layout", "num_views"),
    [
        (BlockLayout((8, 4, 8), (4, 4, 4)), 1),
        (BlockLayout((8, 4, 8), (4, 4, 4), (4, 4)), 2),
        (BlockLayout((5, 3, 7), (4, 4, 4)), 4),
        (BlockLayout((5, 3, 7), (2, 2, 3), (1, 4)), 8),
        (BlockLayout((1, 1, 1), (4, 4, 4)), 1),
    ],
)
@pytest.mark.parametrize("dim", [0, 2])
def test_tokens_lie_where_their_frame_is(layout: BlockLayout, num_views: int, dim: int) -> None:
    _, height, width = layout.grid
    token = layout.permutation().clone()  # plain index of every token, in block order
    x = token.reshape((1,) * dim + (-1, 1)).expand((2,) * dim + (-1, 3))
    views = list(equal_blocks(x, layout, dim))
    assert len(views) == num_views
    for frames, view in views:
        nt, _, _, t, _ = view.shape[dim : dim + 5]
        expected = torch.arange(frames.start, frames.stop).view(nt, 1, 1, t, 1, 1)
        assert torch.equal((view // (height * width)), expected.expand_as(view))
        assert view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    seen = torch.cat([view.flatten() for _, view in views]).bincount()
    assert torch.equal(seen, torch.full_like(seen, 3 * 2**dim)) and len(seen) == layout.num_tokens


def test_a_row_of_blocks_stays_in_block_order() -> None:
    layout = BlockLayout((4, 4, 8), (2, 2, 4))
    x = torch.arange(layout.num_tokens)
    ((_, view),) = equal_blocks(x, layout, 0)
    assert torch.equal(view.flatten(), x)
    assert view.shape == (2, 2, 2, 2, 8)


def test_writing_to_the_views_writes_to_the_tokens() -> None:
    layout = BlockLayout((5, 3, 7), (2, 2, 3), (1, 4))
    x = torch.zeros(2, layout.num_tokens, 3)
    for frames, view in equal_blocks(x, layout, 1):
        view += frames.start + 1
    assert (x > 0).all()
