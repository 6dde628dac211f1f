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
    strides,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    TMA: tl.constexpr,
):
    """Tokens [first, first + size) of one head as [ROWS, D]; rows from ``size`` on are zero."""
    # A choice at compile time: both branches would cost registers.
    if TMA:
        return tensor.load([batch, head, first, 0]).reshape(ROWS, D)
    else:
        row = tl.arange(0, ROWS)[:, None]
        at = batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
        at += (first + row).to(tl.int64) * strides[2]
        return tl.load(tensor + at + tl.arange(0, D)[None, :], mask=row < size, other=0.0)


@triton.jit
def store_tile(
    tensor,
    x,
    batch,
    head,
    first,
    size,
    strides,
    ROWS: tl.constexpr,
    D: tl.constexpr,
):
    """Write the first ``size`` rows of ``x`` [ROWS, D] to the tokens from ``first`` on."""
    row = tl.arange(0, ROWS)[:, None]
    at = batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
    # In 64 bits: three clips of 32 heads of 184,320 tokens of 128 have more than 2^31 elements.
    at += (first + row).to(tl.int64) * strides[2]
    tl.store(tensor + at + tl.arange(0, D)[None, :], x.to(tensor.dtype.element_ty), mask=row < size)


@triton.jit
def locate(offsets, block, part, TILE: tl.constexpr, TILES: tl.constexpr, RAGGED: tl.constexpr):
    """First token and number of tokens (<= 0 for none) of one tile of a block."""
    # Whole blocks need no loads of offsets, which the addresses of keys would wait for.
    if RAGGED:
        first = tl.load(offsets + block) + part * TILE
        size = tl.minimum(tl.load(offsets + block + 1) - first, TILE)
    else:
        first = (block * TILES + part) * TILE
        size = TILE
    return first, size


@triton.jit
def query_tile(
    lists,
    list_strides,
    counts,
    count_strides,
    offsets,
    order,
    num_heads,
    num_key_heads,
    num_blocks,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    TILES_K: tl.constexpr,
    RAGGED: tl.constexpr,
    ORDERED: tl.constexpr,
):
    """What a program works on that holds one tile of queries.

    Returns:
        Batch, head, head of the keys, the list of key blocks and the number of its tiles, first
        token, number of tokens.
    """
    # Neighbours in the grid are neighbours in the clip and list mostly the same keys, which the
    # cache then holds.
    tile = tl.program_id(0)
    row = tile // TILES
    if ORDERED:
        row = tl.load(order + row)
    block = row % num_blocks
    head = row // num_blocks % num_heads
    batch = row // num_blocks // num_heads
    key_head = head // (num_heads // num_key_heads)
    first, size = locate(offsets, block, tile % TILES, TILE, TILES, RAGGED)
    count_at = (
        batch.to(tl.int64) * count_strides[0] + head * count_strides[1] + block * count_strides[2]
    )
    count = tl.load(counts + count_at) * TILES_K
    list_at = batch.to(tl.int64) * list_strides[0] + head.to(tl.int64) * list_strides[1]
    blocks = lists + (list_at + block.to(tl.int64) * list_strides[2])
    return batch, head, key_head, blocks, count, first, size
