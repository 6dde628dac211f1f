"""Mean of every block of tokens, the first step of the block selection (Appendix A.2.1)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.runtime.errors import UserError


def pool_blocks(x: Tensor, layout: BlockLayout) -> Tensor:
    """Mean over the tokens of every block, however many it has.

    Sums run in float32 (float64 for float64), in a fixed order, so the result is bitwise
    reproducible. Nothing but the result is allocated, and a block never sees its neighbours.

    Args:
        x: [B, H, N, D] in block order, any strides.
        layout: the layout of its tokens.

    Returns:
        [B, H, Nblk, D], float32 or float64.

    Raises:
        UserError: another number of tokens.
    """
    if x.ndim != 4 or x.shape[2] != layout.num_tokens:
        raise UserError(
            "the tensor does not have the tokens of the block layout",
            received=f"shape {tuple(x.shape)}",
            expected=f"[B, H, {layout.num_tokens}, D] for the grid {layout.grid}",
            remedy="transpose to [B, H, N, D], or build the layout for this grid",
        )
    batch, heads, _, dim = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    out = x.new_empty((batch, heads, *layout.block_grid, dim), dtype=wide)
    _, height, width = layout.grid
    _, h, w = layout.block
    # Blocks of one shape lie at regular distances: up to two runs per axis, whole and edge
    # blocks, are views. (A gather would copy all tokens; a scatter-add would sum in any order.)
    for i, nt, bt, first in _slabs(layout):
        slab = x.narrow(2, first * height * width, nt * bt * height * width)
        slab = slab.unflatten(2, (nt, bt * height * width))
        for j, nh, bh in _runs(height, h):
            rows = slab.narrow(3, j * h * bt * width, nh * bh * bt * width)
            rows = rows.unflatten(3, (nh, bh * bt * width))
            for m, nw, bw in _runs(width, w):
                blocks = rows.narrow(4, m * w * bt * bh, nw * bw * bt * bh)
                blocks = blocks.unflatten(4, (nw, bt * bh * bw))
                mean = blocks.mean(5, dtype=wide)
                out[:, :, i : i + nt, j : j + nh, m : m + nw] = mean
    return out.flatten(2, 4)


def _slabs(layout: BlockLayout) -> Iterator[tuple[int, int, int, int]]:
    """(first time block, time blocks, frames in each, first frame) of equally thick blocks."""
    block = 0
    for first, frames in layout.stretches():
        for i, count, thick in _runs(frames, layout.block[0]):
            yield block, count, thick, first + i * layout.block[0]
            block += count


def _runs(size: int, block: int) -> Iterator[tuple[int, int, int]]:
    """(first block, blocks, tokens in each): the whole blocks of an axis, then the edge block."""
    whole, rest = divmod(size, block)
    if whole:
        yield 0, whole, block
    if rest:
        yield whole, 1, rest
