"""Gradients of the keys and values on Hopper in Gluon.

A program holds 64 keys and their values, in shared memory, and walks the tiles of the queries that
attend to them: P^T = exp(scale K Q^T - lse), dV = sum of P^T dO, dS^T = P^T (V dO^T - delta),
dK = scale sum of dS^T Q. Four products a tile are queued so that one runs under every piece of
arithmetic. Nothing is added atomically: results do not depend on the order of programs.
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
    memory_layout,
    multiply_transposed,
    product_layout,
    stage_grain,
    store_rows,
    tile_after,
    tile_start,
    token_of,
    walk_entry,
)


@gluon.jit
def key_gradient_kernel(
    q,
    q_box,
    do,
    do_box,
    k_box,
    v_box,
    dk,
    dv,
    lse,
    delta,
    row_pointers,
    query_blocks,
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
    list_size,
    q_strides,
    do_strides,
    dk_strides,
    dv_strides,
    D: gl.constexpr,
    TILES_Q: gl.constexpr,
    TILES_K: gl.constexpr,
    RAGGED_Q: gl.constexpr,
    RAGGED_K: gl.constexpr,
):
    """One program per tile of 64 keys, in the order of rows [B, Hk, Nk] given by ``order``.

    ``row_pointers`` [B, Hq, Nk + 1] and ``query_blocks`` [B, Hq, ``list_size``] are the lists per
    key block; with RAGGED_Q a list holds its whole blocks, ``whole_counts`` [B, Hq, Nk] of them,
    before the others. ``num_blocks`` is Nk, ``num_tokens`` the number of queries. ``programs`` run
    side by side.
    """
    dtype: gl.constexpr = q_box.dtype
    memory: gl.constexpr = memory_layout(D)
    tile = gl.program_id(0)
    row = gl.load(order + tile // TILES_K)
    block = row % num_blocks
    number = block * TILES_K + tile % TILES_K
    key_head = row // num_blocks % num_key_heads
    batch = row // num_blocks // num_key_heads
    if RAGGED_K:
        first = gl.load(k_offsets + block) + tile % TILES_K * 64
        size = gl.load(k_offsets + block + 1) - first
    else:
        first = (block * TILES_K + tile % TILES_K) * 64
        size = 64
    q_tiles = gl.allocate_shared_memory(dtype, [2, 1, 1, 64, D], q_box.layout)
    do_tiles = gl.allocate_shared_memory(dtype, [2, 1, 1, 64, D], do_box.layout)
    k_buffer = gl.allocate_shared_memory(dtype, [1, 1, 64, D], k_box.layout)
    v_buffer = gl.allocate_shared_memory(dtype, [1, 1, 64, D], v_box.layout)
    # Each barrier and each copy costs an iteration some synchronisation of the warps: queries and
    # output gradients share one, and their rows' values are read without a copy.
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    own_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for buffer in gl.static_range(2):
        mbarrier.init(ready.index(buffer), count=1)
    mbarrier.init(own_ready, count=1)
    mbarrier.expect(own_ready, k_box.block_type.nbytes + v_box.block_type.nbytes)
    async_load(k_box, [batch, key_head, first, 0], own_ready, k_buffer)
    async_load(v_box, [batch, key_head, first, 0], own_ready, v_buffer)
    key = k_buffer.reshape([64, D])
    value = v_buffer.reshape([64, D])
    mbarrier.wait(own_ready, 0)

    dk_acc = gl.zeros([64, D], gl.float32, product_layout(D))
    dv_acc = gl.zeros([64, D], gl.float32, product_layout(D))
    done = row * 0  # tiles so far, which the barriers count
    group = num_heads // num_key_heads
    for member in range(0, group):
        head = key_head * group + member
        head_row = batch * num_heads + head
        pointer = row_pointers + (head_row.to(gl.int64) * (num_blocks + 1) + block)
        begin = gl.load(pointer)
        if RAGGED_Q:
            whole = gl.load(whole_counts + (head_row.to(gl.int64) * num_blocks + block))
        else:
            whole = gl.load(pointer + 1) - begin
        if RAGGED_K:
            whole = gl.where(size > 0, whole, 0)
        dk_acc, dv_acc = add_whole_tiles(
            dk_acc, dv_acc, key, value, q_box, q_tiles, do_box, do_tiles, ready, lse, delta,
            query_blocks + (head_row.to(gl.int64) * list_size + begin), whole * TILES_Q, done,
            walk_entry(whole * TILES_Q, number, programs), q_offsets, batch, head,
            head_row * num_tokens, scale_log2, D, TILES_Q, RAGGED_Q,
        )  # fmt: skip
        done += whole * TILES_Q
    if RAGGED_Q:
        # A loop of its own, so that its addresses take no registers in the one above.
        q_tile = q_tiles.index(0).reshape([64, D])
        do_tile = do_tiles.index(0).reshape([64, D])
        for member in range(0, group):
            head = key_head * group + member
            head_row = batch * num_heads + head
            pointer = row_pointers + (head_row.to(gl.int64) * (num_blocks + 1) + block)
            begin = gl.load(pointer)
            blocks = query_blocks + (head_row.to(gl.int64) * list_size + begin)
            whole = gl.load(whole_counts + (head_row.to(gl.int64) * num_blocks + block))
            count = gl.load(pointer + 1) - begin
            if RAGGED_K:
                count = gl.where(size > 0, count, 0)
            q_head = head_of(q, batch, head, q_strides)
            do_head = head_of(do, batch, head, do_strides)
            token = head_row.to(gl.int64) * num_tokens
            for entry in range(whole, count):
                dk_acc, dv_acc = add_grains(
                    dk_acc, dv_acc, key, value, q_head, q_strides[2], q_tile, do_head,
                    do_strides[2], do_tile, lse + token, delta + token, q_offsets,
                    gl.load(blocks + entry), scale_log2, D,
                )  # fmt: skip
    # The tiles of queries are free now.
    dk_tile = q_tiles.index(0).reshape([64, D])
    dv_tile = do_tiles.index(0).reshape([64, D])
    dk_tile.store((dk_acc * scale).to(dtype))
    dv_tile.store(dv_acc.to(dtype))
    dk_start = token_of(head_of(dk, batch, key_head, dk_strides), first, dk_strides[2])
    dv_start = token_of(head_of(dv, batch, key_head, dv_strides), first, dv_strides[2])
    store_rows(dk_start, dk_tile.load(memory), size, dk_strides[2], 64, D, memory)
    store_rows(dv_start, dv_tile.load(memory), size, dv_strides[2], 64, D, memory)


@gluon.jit
def add_whole_tiles(
    dk_acc,
    dv_acc,
    key,
    value,
    q_box,
    q_tiles,
    do_box,
    do_tiles,
    ready,
    lse,
    delta,
    blocks,
    n,
    done,
    tile,
    q_offsets,
    batch,
    head,
    token,
    scale_log2,
    D: gl.constexpr,
    TILES_Q: gl.constexpr,
    RAGGED_Q: gl.constexpr,
):
    """Add the products of ``n`` whole tiles from number ``tile`` on, around the list.

    ``done`` tiles of this program came before.
    """
    dtype: gl.constexpr = q_box.dtype
    scores: gl.constexpr = product_layout(64)
    columns: gl.constexpr = gl.SliceLayout(0, scores)
    column = gl.arange(0, 64, columns)
    start = tile_start(blocks, tile, n, q_offsets, TILES_Q, RAGGED_Q)
    slot = done % 2
    some = n > 0
    size: gl.constexpr = q_box.block_type.nbytes + do_box.block_type.nbytes
    mbarrier.expect(ready.index(slot), size, pred=some)
    async_load(q_box, [batch, head, start, 0], ready.index(slot), q_tiles.index(slot), pred=some)
    async_load(do_box, [batch, head, start, 0], ready.index(slot), do_tiles.index(slot), pred=some)
    tile = tile_after(tile, n)
    next_start = tile_start(blocks, tile, n, q_offsets, TILES_Q, RAGGED_Q)
    zero = gl.zeros([64, 64], gl.float32, scores)
    # From here to the last wait the accumulators belong to products that run unwatched.
    dk_acc = warpgroup_mma_init(dk_acc)
    dv_acc = warpgroup_mma_init(dv_acc)
    for i in range(0, n):
        # Plain loads: two more TMA copies a tile were 6 % slower.
        row = token + start
        slot = (done + i) % 2
        phase = (done + i) // 2 & 1
        query = q_tiles.index(slot).reshape([64, D])
        d_out = do_tiles.index(slot).reshape([64, D])
        mbarrier.wait(ready.index(slot), phase)
        s_pending = multiply_transposed(key, query, zero)
        dp_pending = multiply_transposed(value, d_out, zero)
        row_lse = gl.load(lse + row + column)
        s, dk_acc, dv_acc = warpgroup_mma_wait(1, deps=[s_pending, dk_acc, dv_acc])
        # The products of the previous tile are done: its buffers are free.
        other = 1 - slot
        more = i + 1 < n
        mbarrier.expect(ready.index(other), size, pred=more)
        async_load(
            q_box, [batch, head, next_start, 0], ready.index(other), q_tiles.index(other), pred=more
        )
        async_load(
            do_box, [batch, head, next_start, 0], ready.index(other), do_tiles.index(other),
            pred=more,
        )  # fmt: skip
        start = next_start
        tile = tile_after(tile, n)
        next_start = tile_start(blocks, tile, n, q_offsets, TILES_Q, RAGGED_Q)
        p = gl.exp2(s * scale_log2 - gl.expand_dims(row_lse * 1.4426950408889634, 0))
        weights = gl.convert_layout(p.to(dtype), factor_layout(D))
        dv_acc = warpgroup_mma(weights, d_out, dv_acc, is_async=True)
        row_delta = gl.load(delta + row + column)
        dp = warpgroup_mma_wait(1, deps=[dp_pending])
        ds = p * (dp - gl.expand_dims(row_delta, 0))
        factor = gl.convert_layout(ds.to(dtype), factor_layout(D))
        dk_acc = warpgroup_mma(factor, query, dk_acc, is_async=True)
    dk_acc, dv_acc = warpgroup_mma_wait(0, deps=[dk_acc, dv_acc])
    return dk_acc, dv_acc


@gluon.jit
def add_grains(
    dk_acc,
    dv_acc,
    key,
    value,
    q_head,
    q_stride,
    q_tile,
    do_head,
    do_stride,
    do_tile,
    lse,
    delta,
    q_offsets,
    block,
    scale_log2,
    D: gl.constexpr,
):
    """Add the products of one query block of any size, 16 tokens at a time."""
    dtype: gl.constexpr = q_tile.dtype
    narrow: gl.constexpr = product_layout(16)
    begin = gl.load(q_offsets + block)
    end = gl.load(q_offsets + block + 1)
    zero = gl.zeros([64, 16], gl.float32, narrow)
    column = gl.arange(0, 16, gl.SliceLayout(0, narrow))
    for first in range(begin, end, 16):
        q_start = token_of(q_head, first, q_stride)
        do_start = token_of(do_head, first, do_stride)
        stage_grain(q_tile, q_start, end - first, q_stride, D)
        stage_grain(do_tile, do_start, end - first, do_stride, D)
        fence_async_shared()  # the tensor cores see the stores
        inside = column < end - first
        row_lse = gl.load(lse + first + column, mask=inside, other=0.0) * 1.4426950408889634
        row_delta = gl.load(delta + first + column, mask=inside, other=0.0)
        query = q_tile.slice(0, 16)
        d_out = do_tile.slice(0, 16)
        s = multiply_transposed(key, query, zero)
        dp = multiply_transposed(value, d_out, zero)
        s, dp = warpgroup_mma_wait(0, deps=[s, dp])
        # Past the end queries and output gradients are zero: these columns add nothing.
        p = gl.exp2(s * scale_log2 - gl.expand_dims(row_lse, 0))
        ds = p * (dp - gl.expand_dims(row_delta, 0))
        weights = gl.convert_layout(p.to(dtype), factor_layout(D))
        factor = gl.convert_layout(ds.to(dtype), factor_layout(D))
        dv_acc = warpgroup_mma(weights, d_out, dv_acc, is_async=True)
        dk_acc = warpgroup_mma(factor, query, dk_acc, is_async=True)
        dk_acc, dv_acc = warpgroup_mma_wait(0, deps=[dk_acc, dv_acc])
    return dk_acc, dv_acc
