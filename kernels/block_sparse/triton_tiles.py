"""Loads of tiles in the Triton kernels: through TMA descriptors or through masked pointers.

Descriptors are faster on Hopper and later. They read all tokens of a tile, so they serve only where
every tile is whole; pointers serve ragged blocks, other GPUs, float32 and unaligned strides.
"""

import triton
import triton.language as tl


@triton.jit
def load_tile(
    tensor,
    batch,
    head,
    first,
    size,
    stride_b,
    stride_h,
    stride_n,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    TMA: tl.constexpr,
):
    """Tokens [first, first + size) of one head as [ROWS, D]; rows from ``size`` on are zero."""
    if TMA:
        return tensor.load([batch, head, first, 0]).reshape(ROWS, D)
    else:
        row = tl.arange(0, ROWS)[:, None]
        at = batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
        at += (first + row).to(tl.int64) * stride_n
        return tl.load(tensor + at + tl.arange(0, D)[None, :], mask=row < size, other=0.0)


@triton.jit
def store_tile(
    tensor,
    x,
    batch,
    head,
    first,
    size,
    stride_b,
    stride_h,
    stride_n,
    ROWS: tl.constexpr,
    D: tl.constexpr,
):
    """Write the first ``size`` rows of ``x`` [ROWS, D] to the tokens from ``first`` on."""
    row = tl.arange(0, ROWS)[:, None]
    at = batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
    at += (first + row).to(tl.int64) * stride_n
    tl.store(tensor + at + tl.arange(0, D)[None, :], x.to(tensor.dtype.element_ty), mask=row < size)


@triton.jit
def locate(offsets, block, part, TILE: tl.constexpr, TILES: tl.constexpr, RAGGED: tl.constexpr):
    """First token and number of tokens (<= 0 for none) of one tile of a block."""
    if RAGGED:
        first = tl.load(offsets + block) + part * TILE
        size = tl.minimum(tl.load(offsets + block + 1) - first, TILE)
    else:
        first = (block * TILES + part) * TILE
        size = TILE
    return first, size
