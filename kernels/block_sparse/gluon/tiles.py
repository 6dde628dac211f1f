"""Tiles of the Gluon kernels: layouts, loads, stores, and the products that read them.

A tile is 64 tokens of one head. Tensors are views [B, H, N, D]; a tensor memory access (TMA) box
[1, 1, 64, D] reads a tile of any strides, and tokens past the end of the tensor as zero. Tokens of
the *next* block come as they are, so only whole tiles are read this way. The rest of a block is
read in grains of 16 tokens through masked pointers, which no foreign value, such as a NaN, passes.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    tma,
    warpgroup_mma,
)

# Renamed in Triton 3.7.
async_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


@gluon.constexpr_function
def product_layout(columns):
    """Registers of a [64, columns] product of one warpgroup."""
    return gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, columns, 16]
    )


@gluon.constexpr_function
def factor_layout(columns):
    """Registers of a left factor of a product with that many columns."""
    return gl.DotOperandLayout(0, product_layout(columns), 2)


@gluon.constexpr_function
def memory_layout(dim):
    """Registers of a tile that is read or written in 16-byte pieces, a row by neighbours."""
    return gl.BlockedLayout([1, 8], [256 // dim, dim // 8], [4, 1], [1, 0])


@gluon.jit
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
    TILES: gl.constexpr,
    RAGGED: gl.constexpr,
    ORDERED: gl.constexpr,
):
    """What a program works on that holds one tile of queries.

    Returns:
        Row of the lists, batch, head, head of the keys, number of the tile in its head, the list of
        key blocks and its length (0 for a tile behind the end of a short block), first token,
        tokens from it on.
    """
    tile = gl.program_id(0)
    row = tile // TILES
    if ORDERED:
        row = gl.load(order + row)
    block = row % num_blocks
    number = block * TILES + tile % TILES
    head = row // num_blocks % num_heads
    batch = row // num_blocks // num_heads
    key_head = head // (num_heads // num_key_heads)
    count_at = (
        batch.to(gl.int64) * count_strides[0] + head * count_strides[1] + block * count_strides[2]
    )
    list_at = batch.to(gl.int64) * list_strides[0] + head.to(gl.int64) * list_strides[1]
    blocks = lists + (list_at + block.to(gl.int64) * list_strides[2])
    count = gl.load(counts + count_at)
    if RAGGED:
        first = gl.load(offsets + block) + tile % TILES * 64
        size = gl.load(offsets + block + 1) - first
        count = gl.where(size > 0, count, 0)
    else:
        first = (block * TILES + tile % TILES) * 64
        size = 64
    return row, batch, head, key_head, number, blocks, count, first, size


@gluon.jit
def walk_entry(n, number, programs):
    """The tile at which program ``number`` of its head enters the circle of its ``n`` tiles.

    A program starts when another one ends: of ``programs`` that run side by side, number i is about
    i / ``programs`` of a walk ahead of number 0. Entered that far along their ascending lists, all
    are at the same part of the keys at any time, and read it from the cache, though all keys do
    not fit there. The number in the head alone decides: results do not vary from run to run, nor
    with the other heads of a call.
    """
    return number % programs * n // programs


@gluon.jit
def tile_after(tile, n):
    """The next tile of a circle of ``n``, which may be 0."""
    tile += 1
    return gl.where(tile < n, tile, 0)


@gluon.jit
def tile_start(blocks, tile, n, offsets, TILES: gl.constexpr, RAGGED: gl.constexpr):
    """First token of a tile of a list of ``n`` tiles of whole blocks.

    With RAGGED shorter blocks may lie between whole ones, and ``offsets`` tells where these start.
    """
    # Masked: a list may be empty, and what lies behind it may be no block.
    block = gl.load(blocks + tile // TILES, mask=n > 0, other=0)
    start = gl.load(offsets + block) if RAGGED else block * (64 * TILES)
    return start + tile % TILES * 64


@gluon.jit
def head_of(tensor, batch, head, strides):
    """Pointer to the first token of one head."""
    return tensor + (batch.to(gl.int64) * strides[0] + head.to(gl.int64) * strides[1])


@gluon.jit
def token_of(head, token, stride):
    """Pointer to one token of a head; 64-bit, tensors may have more than 2^31 elements."""
    return head + gl.cast(token, gl.int64) * stride


@gluon.jit
def load_rows(start, size, stride, ROWS: gl.constexpr, COLUMNS: gl.constexpr, LAYOUT: gl.constexpr):
    """Rows [0, size) of a tile as [ROWS, COLUMNS]; the others are zero."""
    row = gl.expand_dims(gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT)), 1)
    column = gl.expand_dims(gl.arange(0, COLUMNS, gl.SliceLayout(0, LAYOUT)), 0)
    return gl.load(start + (row * stride + column), mask=row < size, other=0.0)


@gluon.jit
def store_rows(
    start, x, size, stride, ROWS: gl.constexpr, COLUMNS: gl.constexpr, LAYOUT: gl.constexpr
):
    """Write rows [0, size) of a tile."""
    row = gl.expand_dims(gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT)), 1)
    column = gl.expand_dims(gl.arange(0, COLUMNS, gl.SliceLayout(0, LAYOUT)), 0)
    # Results are not read again soon: they should not displace keys and values in the L2 cache.
    where = start + (row * stride + column)
    gl.store(where, x, mask=row < size, eviction_policy="evict_first")


@gluon.jit
def stage_grain(tile, start, size, stride, D: gl.constexpr):
    """Put up to 16 rows into the first rows of a tile in shared memory, zeros for missing ones.

    16 is the smallest size that suits both products of a grain, as columns and as the inner size.
    """
    layout: gl.constexpr = memory_layout(D)
    tile.slice(0, 16).store(load_rows(start, size, stride, 16, D, layout))


@gluon.constexpr_function
def _scaling(values):
    """PTX: multiply a thread's values of two rows, unless no row of its warp changes.

    The values of each row come in pairs, row by row. One instance handles all values of a thread,
    so that there is one branch; the results are in the registers of the values.
    """
    factors = [f"${2 * values + i}" for i in range(values)]
    products = "".join(f"mul.f32 ${i}, ${i}, {factors[i]}; " for i in range(values))
    return (
        "{ .reg .pred changes; .reg .f32 least; "
        f"min.f32 least, {factors[0]}, {factors[2]}; "
        "setp.lt.f32 changes, least, 0f3F800000; "  # 1.0
        "vote.sync.any.pred changes, changes, 0xffffffff; "
        f"@!changes bra KEEP; {products} KEEP: }}"
    )


@gluon.constexpr_function
def _scaling_registers(values):
    """Constraints of :func:`_scaling`: results, the values that they replace, factors."""
    return ",".join(["=f"] * values + [str(i) for i in range(values)] + ["f"] * values)


@gluon.jit
def scale_rows(acc, factors, D: gl.constexpr):
    """Multiply the rows of a product [64, D] by ``factors`` [64], each at most 1.

    Products of a warp whose 16 factors are all 1 are skipped. Triton has no branch of single warps.
    """
    output: gl.constexpr = product_layout(D)
    rows = gl.expand_dims(gl.convert_layout(factors, gl.SliceLayout(1, output)), 1)
    return gl.inline_asm_elementwise(
        _scaling(D // 2),
        _scaling_registers(D // 2),
        [acc, rows + gl.zeros([64, D], gl.float32, output)],
        dtype=gl.float32,
        is_pure=True,
        pack=D // 2,
    )


@gluon.jit
def multiply_transposed(left, right, zero):
    """Start ``left right^T`` and return its token; ``right`` is in shared memory."""
    return warpgroup_mma(left, right.permute((1, 0)), zero, use_acc=False, is_async=True)
