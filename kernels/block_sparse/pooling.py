"""Mean of every block of tokens, the first step of the block selection (Appendix A.2.1)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longtake.kernels.block_sparse import reference
from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.kernels.block_sparse.operator import implementation
from longtake.kernels.block_sparse.registration import torch_op
from longtake.runtime.errors import UserError


def pool_blocks(x: Tensor, layout: BlockLayout, backend: str = "auto") -> Tensor:
    """Mean over the tokens of every block, however many it has; without gradient.

    Sums run in float32 (float64 for float64), in a fixed order, so the result is bitwise
    reproducible. Nothing but the result is allocated, and a block never sees its neighbours.

    Args:
        x: [B, H, N, D] in block order, any strides.
        layout: the layout of its tokens.
        backend: as for the attention.

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
    x = x.detach() if x.stride(-1) == 1 else x.detach().contiguous()
    shape = list(layout.grid), list(layout.block), list(layout.segments)
    return block_means(x, layout.offsets(x.device), *shape, backend)


def _empty_means(x: Tensor, offsets: Tensor, *rest: Any) -> Tensor:
    batch, heads, _, dim = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((batch, heads, offsets.shape[0] - 1, dim), dtype=wide)


@torch_op(fake=_empty_means)
def block_means(
    x: Tensor,
    offsets: Tensor,
    grid: list[int],
    block: list[int],
    segments: list[int],
    backend: str,
) -> Tensor:
    """Means of blocks, as :func:`pool_blocks`.

    Args:
        x: [B, H, N, D] with a contiguous last axis.
        offsets: int32 [Nblk + 1] of the layout.
        grid: tokens along each axis.
        block: tokens of a block along each axis.
        segments: stretches of frames, or none.
        backend: as for the attention.
    """
    run = implementation(backend, x.device)
    if run is not reference:
        means: Tensor = run.pool(x, offsets)
        return means
    layout = BlockLayout(tuple(grid), tuple(block), tuple(segments))  # type: ignore[arg-type]
    flat = _empty_means(x, offsets)
    out = flat.unflatten(2, layout.block_grid)
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
                mean = blocks.mean(5, dtype=flat.dtype)
                out[:, :, i : i + nt, j : j + nh, m : m + nw] = mean
    return flat


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
