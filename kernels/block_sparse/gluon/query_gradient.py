"""Gradient of the queries on Hopper in Gluon.

A program holds 64 queries and their output gradients, in registers, and walks the key tiles:
P = exp(scale Q K^T - lse), dS = P (dO V^T - delta), dQ = scale sum of dS K. The first two products
of a tile are started together, and the last one runs under the first of the next tile.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from longtake.kernels.block_sparse.gluon.tiles import (
    async_load,
    factor_layout,
    head_of,
    load_rows,
    memory_layout,
    multiply_transposed,
    product_layout,
    query_tile,
    stage_grain,
    store_rows,
    tile_after,
    tile_start,
    token_of,
    walk_entry,
)


@gluon.jit
def query_gradient_kernel(
    q,
    do,
    k,
    k_box,
    v,
    v_box,
    dq,
    lse,
    delta,
    lists,
    counts,
    whole_counts,
    q_offsets,
    k_offsets,
    order,
    scale,
    scale_log2,
    programs,
    num_heads,
    num_key_heads,
    num_blocks,
    num_tokens,
    q_strides,
    do_strides,
    k_strides,
    v_strides,
    dq_strides,
    list_strides,
    count_strides,
    D: gl.constexpr,
    TILES_Q: gl.constexpr,
    TILES_K: gl.constexpr,
    RAGGED_Q: gl.constexpr,
    RAGGED_K: gl.constexpr,
    ORDERED: gl.constexpr,
):
    """One program per tile of 64 queries; arguments as in the forward kernel."""
    dtype: gl.constexpr = k_box.dtype
    output: gl.constexpr = product_layout(D)
    rows: gl.constexpr = gl.SliceLayout(1, product_layout(64))
    memory: gl.constexpr = memory_layout(D)

    row, batch, head, key_head, number, blocks, count, first, size = query_tile(
        lists, list_strides, counts, count_strides, q_offsets, order, num_heads, num_key_heads,
        num_blocks, TILES_Q, RAGGED_Q, ORDERED,
    )  # fmt: skip
    if count <= 0:
        out = token_of(head_of(dq, batch, head, dq_strides), first, dq_strides[2])
        store_rows(out, gl.zeros([64, D], dtype, memory), size, dq_strides[2], 64, D, memory)
    else:
        k_tiles = gl.allocate_shared_memory(dtype, [3, 1, 1, 64, D], k_box.layout)
        v_tiles = gl.allocate_shared_memory(dtype, [2, 1, 1, 64, D], v_box.layout)
        q_start = token_of(head_of(q, batch, head, q_strides), first, q_strides[2])
        do_start = token_of(head_of(do, batch, head, do_strides), first, do_strides[2])
        # In registers: left factors of every tile, they would be read from shared memory each
        # time otherwise.
        query = load_rows(q_start, size, q_strides[2], 64, D, factor_layout(64))
        d_out = load_rows(do_start, size, do_strides[2], 64, D, factor_layout(64))
        at = (batch * num_heads + head).to(gl.int64) * num_tokens + first
        row_in = gl.arange(0, 64, rows)
        row_lse = gl.load(lse + at + row_in, mask=row_in < size, other=0.0) * 1.4426950408889634
        row_delta = gl.load(delta + at + row_in, mask=row_in < size, other=0.0)
        whole = gl.load(whole_counts + row) if RAGGED_K else count
        acc = gl.zeros([64, D], gl.float32, output)
        if whole > 0:
            acc = add_whole_tiles(
                query, d_out, row_lse, row_delta, k_box, k_tiles, v_box, v_tiles, blocks,
                whole * TILES_K, walk_entry(whole * TILES_K, number, programs), k_offsets, batch,
                key_head, scale_log2, D, TILES_K, RAGGED_K,
            )  # fmt: skip
        if RAGGED_K:
            k_head = head_of(k, batch, key_head, k_strides)
            v_head = head_of(v, batch, key_head, v_strides)
            k_tile = k_tiles.index(0).reshape([64, D])
            v_tile = v_tiles.index(0).reshape([64, D])
            for entry in range(whole, count):
                acc = add_grains(
                    acc, query, d_out, row_lse, row_delta, k_head, k_strides[2], k_tile, v_head,
                    v_strides[2], v_tile, k_offsets, gl.load(blocks + entry), scale_log2, D,
                )  # fmt: skip
        dq_tile = k_tiles.index(0).reshape([64, D])
        dq_tile.store((acc * scale).to(dtype))
        out = token_of(head_of(dq, batch, head, dq_strides), first, dq_strides[2])
        store_rows(out, dq_tile.load(memory), size, dq_strides[2], 64, D, memory)


@gluon.jit
def add_whole_tiles(
    query,
    d_out,
    row_lse,
    row_delta,
    k_box,
    k_tiles,
    v_box,
    v_tiles,
    blocks,
    n,
    tile,
    k_offsets,
    batch,
    head,
    scale_log2,
    D: gl.constexpr,
    TILES_K: gl.constexpr,
    RAGGED_K: gl.constexpr,
):
    """Sum of dS K over ``n`` >= 1 whole tiles of a list, from number ``tile`` on: [64, D]."""
    dtype: gl.constexpr = k_box.dtype
    scores: gl.constexpr = product_layout(64)
    k_ready = gl.allocate_shared_memory(gl.int64, [3, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for buffer in gl.static_range(3):
        mbarrier.init(k_ready.index(buffer), count=1)
    for buffer in gl.static_range(2):
        mbarrier.init(v_ready.index(buffer), count=1)
    size: gl.constexpr = k_box.block_type.nbytes
    last = n - 1
    start_0 = tile_start(blocks, tile, n, k_offsets, TILES_K, RAGGED_K)
    tile = tile_after(tile, n)
    start_1 = tile_start(blocks, tile, n, k_offsets, TILES_K, RAGGED_K)
    tile = tile_after(tile, n)
    start_2 = tile_start(blocks, tile, n, k_offsets, TILES_K, RAGGED_K)
    mbarrier.expect(k_ready.index(0), size)
    mbarrier.expect(v_ready.index(0), size)
    mbarrier.expect(k_ready.index(1), size, pred=n > 1)
    mbarrier.expect(v_ready.index(1), size, pred=n > 1)
    async_load(k_box, [batch, head, start_0, 0], k_ready.index(0), k_tiles.index(0))
    async_load(v_box, [batch, head, start_0, 0], v_ready.index(0), v_tiles.index(0))
    async_load(k_box, [batch, head, start_1, 0], k_ready.index(1), k_tiles.index(1), pred=n > 1)
    async_load(v_box, [batch, head, start_1, 0], v_ready.index(1), v_tiles.index(1), pred=n > 1)

    zero = gl.zeros([64, 64], gl.float32, scores)
    acc = warpgroup_mma_init(gl.zeros([64, D], gl.float32, product_layout(D)))
    mbarrier.wait(k_ready.index(0), 0)
    for i in range(0, n):
        k_slot = i % 3
        v_slot = i % 2
        key = k_tiles.index(k_slot).reshape([64, D])
        value = v_tiles.index(v_slot).reshape([64, D])
        s_pending = multiply_transposed(query, key, zero)
        mbarrier.wait(v_ready.index(v_slot), i // 2 & 1)
        dp_pending = multiply_transposed(d_out, value, zero)
        s, acc = warpgroup_mma_wait(1, deps=[s_pending, acc])
        p = gl.exp2(s * scale_log2 - gl.expand_dims(row_lse, 1))
        # Keys of the next tile. This wait also keeps the compiler from moving the exponential
        # behind the next one, where no product would run beside it.
        following = gl.minimum(i + 1, last)
        mbarrier.wait(k_ready.index(following % 3), following // 3 & 1)
        # With d_out, which this product reads: ptxas 12.8 puts the next factor into its registers
        # otherwise, for heads of 64.
        dp, d_out = warpgroup_mma_wait(0, deps=[dp_pending, d_out])
        # Free since the waits above: the keys of tile i - 1 and the values of tile i.
        more = i + 2 < n
        free = (i + 2) % 3
        mbarrier.expect(k_ready.index(free), size, pred=more)
        mbarrier.expect(v_ready.index(v_slot), size, pred=more)
        async_load(
            k_box, [batch, head, start_2, 0], k_ready.index(free), k_tiles.index(free), pred=more
        )
        async_load(
            v_box, [batch, head, start_2, 0], v_ready.index(v_slot), v_tiles.index(v_slot),
            pred=more,
        )  # fmt: skip
        tile = tile_after(tile, n)
        start_2 = tile_start(blocks, tile, n, k_offsets, TILES_K, RAGGED_K)
        ds = p * (dp - gl.expand_dims(row_delta, 1))
        factor = gl.convert_layout(ds.to(dtype), factor_layout(D))
        acc = warpgroup_mma(factor, key, acc, is_async=True)
    return warpgroup_mma_wait(0, deps=[acc])


@gluon.jit
def add_grains(
    acc,
    query,
    d_out,
    row_lse,
    row_delta,
    k_head,
    k_stride,
    k_tile,
    v_head,
    v_stride,
    v_tile,
    k_offsets,
    block,
    scale_log2,
    D: gl.constexpr,
):
    """Add dS K of one block of any size, 16 tokens at a time."""
    dtype: gl.constexpr = k_tile.dtype
    narrow: gl.constexpr = product_layout(16)
    rows: gl.constexpr = gl.SliceLayout(1, narrow)
    begin = gl.load(k_offsets + block)
    end = gl.load(k_offsets + block + 1)
    zero = gl.zeros([64, 16], gl.float32, narrow)
    column = gl.expand_dims(gl.arange(0, 16, gl.SliceLayout(0, narrow)), 0)
    for first in range(begin, end, 16):
        k_start = token_of(k_head, first, k_stride)
        v_start = token_of(v_head, first, v_stride)
        stage_grain(k_tile, k_start, end - first, k_stride, D)
        stage_grain(v_tile, v_start, end - first, v_stride, D)
        fence_async_shared()  # the tensor cores see the stores
        key = k_tile.slice(0, 16)
        s = multiply_transposed(query, key, zero)
        dp = multiply_transposed(d_out, v_tile.slice(0, 16), zero)
        s, dp = warpgroup_mma_wait(0, deps=[s, dp])
        exponent = s * scale_log2 - gl.expand_dims(gl.convert_layout(row_lse, rows), 1)
        # Past the end keys and values are zero, but exp(-lse) may overflow.
        p = gl.where(column < end - first, gl.exp2(exponent), 0.0)
        ds = p * (dp - gl.expand_dims(gl.convert_layout(row_delta, rows), 1))
        factor = gl.convert_layout(ds.to(dtype), factor_layout(D))
        acc = warpgroup_mma(factor, key, acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
    return acc
