"""Views of block-ordered tokens in which time is an axis again.

Blocks of one shape lie at regular distances, so all of them together are a view: up to two shapes
per axis, whole blocks and the smaller one at the edge, and per stretch of frames. Work per frame
or per block then needs neither a gather nor an index.
"""

from collections.abc import Iterator

from torch import Tensor

from longtake.kernels.block_sparse.layout import BlockLayout


def equal_blocks(x: Tensor, layout: BlockLayout, dim: int) -> Iterator[tuple[slice, Tensor]]:
    """All tokens of ``x``, the blocks of one shape at a time.

    Args:
        x: tokens in block order along ``dim``, any strides.
        layout: their layout.
        dim: axis of the tokens, not negative.

    Yields:
        The frames of these blocks and a view of ``x`` in which ``dim`` has become the axes
        (nt, nh, nw, t, h * w): blocks along time, height and width, frames of a block, tokens of a
        block per frame. The slice has nt * t frames. A grid that the block size divides yields one
        view per stretch of frames.
    """
    _, height, width = layout.grid
    t, h, w = layout.block
    for start, frames in layout.stretches():
        for i, nt, bt in _runs(frames, t):
            first = start + i * t
            slab = x.narrow(dim, first * height * width, nt * bt * height * width)
            slab = slab.unflatten(dim, (nt, bt * height * width))
            for j, nh, bh in _runs(height, h):
                rows = slab.narrow(dim + 1, j * h * bt * width, nh * bh * bt * width)
                rows = rows.unflatten(dim + 1, (nh, bh * bt * width))
                for m, nw, bw in _runs(width, w):
                    blocks = rows.narrow(dim + 2, m * w * bt * bh, nw * bw * bt * bh)
                    blocks = blocks.unflatten(dim + 2, (nw, bt, bh * bw))
                    yield slice(first, first + nt * bt), blocks


def _runs(size: int, block: int) -> Iterator[tuple[int, int, int]]:
    """(first block, blocks, tokens in each): the whole blocks of an axis, then the edge block."""
    whole, rest = divmod(size, block)
    if whole:
        yield 0, whole, block
    if rest:
        yield whole, 1, rest
