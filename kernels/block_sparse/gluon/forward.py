"""Forward attention on Hopper in Gluon: asynchronous tensor-core products over listed tiles.

A program holds 64 queries and walks their key tiles, with one buffer for keys and one for values;
each is filled again as soon as its product is done. Four programs fit on one multiprocessor, and
the loads, products and softmax of one run under those of the others: as fast as programs that
overlap their own work, which need so many registers and buffers that only three fit (docs/LOG.md).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from longtake.kernels.block_sparse.gluon.tiles import (
    async_load,
    factor_layout,
    head_of,
    memory_layout,
    multiply_transposed,
    product_layout,
    query_tile,
    scale_rows,
    stage_grain,
    store_rows,
    tile_after,
    tile_start,
    token_of,
    walk_entry,
)


@gluon.jit
def forward_kernel(
    q_box,
    k,
    k_box,
    v,
    v_box,
    o,
    lse,
    lists,
    counts,
    whole_counts,
    q_offsets,
    k_offsets,
    order,
    scale_log2,
    programs,
    num_heads,
    num_key_heads,
    num_blocks,
    num_tokens,
    k_strides,
    v_strides,
    o_strides,
    list_strides,
    count_strides,
    D: gl.constexpr,
    TILES_Q: gl.constexpr,
    TILES_K: gl.constexpr,
    RAGGED_Q: gl.constexpr,
    RAGGED_K: gl.constexpr,
    ORDERED: gl.constexpr,
):
    """One program per tile of 64 queries; ``reference.forward`` explains the tensors.

    The boxes are TMA descriptors of queries, keys and values. With RAGGED_K a list holds its whole
    blocks, ``whole_counts`` of them, before the others. ``order`` permutes the rows of lists when
    ORDERED. ``programs`` run side by side; ``walk_entry`` says what for.
    """
    dtype: gl.constexpr = k_box.dtype
    scores: gl.constexpr = product_layout(64)
    output: gl.constexpr = product_layout(D)
    rows: gl.constexpr = gl.SliceLayout(1, scores)
    memory: gl.constexpr = memory_layout(D)

    row, batch, head, key_head, number, blocks, count, first, size = query_tile(
        lists, list_strides, counts, count_strides, q_offsets, order, num_heads, num_key_heads,
        num_blocks, TILES_Q, RAGGED_Q, ORDERED,
    )  # fmt: skip
    out = token_of(head_of(o, batch, head, o_strides), first, o_strides[2])
    lse_out = lse + ((batch * num_heads + head).to(gl.int64) * num_tokens + first)
    lse_row = gl.arange(0, 64, rows)
    # Nothing is allocated for a row without keys; its results still have to be written.
    if count <= 0:
        store_rows(out, gl.zeros([64, D], dtype, memory), size, o_strides[2], 64, D, memory)
        empty = gl.full([64], float("-inf"), gl.float32, rows)
        gl.store(lse_out + lse_row, empty, mask=lse_row < size)
    else:
        q_buffer = gl.allocate_shared_memory(dtype, [1, 1, 64, D], q_box.layout)
        k_buffer = gl.allocate_shared_memory(dtype, [1, 1, 64, D], k_box.layout)
        v_buffer = gl.allocate_shared_memory(dtype, [1, 1, 64, D], v_box.layout)
        q_tile = q_buffer.reshape([64, D])
        k_tile = k_buffer.reshape([64, D])
        v_tile = v_buffer.reshape([64, D])
        q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
        mbarrier.init(q_ready, count=1)
        mbarrier.expect(q_ready, q_box.block_type.nbytes)
        async_load(q_box, [batch, head, first, 0], q_ready, q_buffer)
        # Whole blocks first, then grains: one loop for both would hold the registers of either.
        whole = gl.load(whole_counts + row) if RAGGED_K else count
        top = gl.full([64], float("-inf"), gl.float32, rows)
        total = gl.zeros([64], gl.float32, rows)
        acc = gl.zeros([64, D], gl.float32, output)
        if whole > 0:
            acc, top, total = add_whole_tiles(
                q_tile, q_ready, k_box, k_buffer, v_box, v_buffer, blocks, whole * TILES_K,
                walk_entry(whole * TILES_K, number, programs), k_offsets, batch, key_head,
                scale_log2, D, TILES_K, RAGGED_K,
            )  # fmt: skip
        if RAGGED_K:
            mbarrier.wait(q_ready, 0)
            k_head = head_of(k, batch, key_head, k_strides)
            v_head = head_of(v, batch, key_head, v_strides)
            for entry in range(whole, count):
                acc, top, total = add_grains(
                    acc, top, total, q_tile, k_head, k_strides[2], k_tile, v_head, v_strides[2],
                    v_tile, k_offsets, gl.load(blocks + entry), scale_log2, D,
                )  # fmt: skip
        share = gl.convert_layout(1.0 / total, gl.SliceLayout(1, output))
        # Through shared memory, where queries have served: rows leave in 16-byte pieces.
        q_tile.store((acc * gl.expand_dims(share, 1)).to(dtype))
        natural = (top + gl.log2(total)) * 0.6931471805599453
        gl.store(lse_out + lse_row, natural, mask=lse_row < size)
        store_rows(out, q_tile.load(memory), size, o_strides[2], 64, D, memory)


@gluon.jit
def add_whole_tiles(
    q_tile,
    q_ready,
    k_box,
    k_buffer,
    v_box,
    v_buffer,
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
    """Attend to ``n`` >= 1 whole tiles of a list, from number ``tile`` on and around.

    Returns:
        Weighted sum of values [64, D], the score times ``scale_log2`` at which weights are 1 [64],
        sum of weights [64].
    """
    dtype: gl.constexpr = k_box.dtype
    scores: gl.constexpr = product_layout(64)
    output: gl.constexpr = product_layout(D)
    rows: gl.constexpr = gl.SliceLayout(1, scores)
    k_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(k_ready, count=1)
    mbarrier.init(v_ready, count=1)
    size: gl.constexpr = k_box.block_type.nbytes
    start = tile_start(blocks, tile, n, k_offsets, TILES_K, RAGGED_K)
    tile = tile_after(tile, n)
    following = tile_start(blocks, tile, n, k_offsets, TILES_K, RAGGED_K)
    mbarrier.expect(k_ready, size)
    mbarrier.expect(v_ready, size)
    async_load(k_box, [batch, head, start, 0], k_ready, k_buffer)
    async_load(v_box, [batch, head, start, 0], v_ready, v_buffer)
    key = k_buffer.reshape([64, D])
    value = v_buffer.reshape([64, D])
    zero = gl.zeros([64, 64], gl.float32, scores)
    top = gl.full([64], float("-inf"), gl.float32, rows)
    total = gl.zeros([64], gl.float32, rows)
    acc = gl.zeros([64, D], gl.float32, output)
    mbarrier.wait(q_ready, 0)
    for i in range(0, n):
        more = i + 1 < n
        mbarrier.wait(k_ready, i & 1)
        s = multiply_transposed(q_tile, key, zero)
        tile = tile_after(tile, n)
        behind = tile_start(blocks, tile, n, k_offsets, TILES_K, RAGGED_K)
        s = warpgroup_mma_wait(0, deps=[s])
        # Keys are free once their product is done, long before the values of this tile.
        mbarrier.expect(k_ready, size, pred=more)
        async_load(k_box, [batch, head, following, 0], k_ready, k_buffer, pred=more)
        highest = gl.max(s, 1) * scale_log2
        # Weights of up to 2^8 are rounded like those of up to 1, so mostly the reference stays. A
        # largest weight of exactly 1 would have no rounding: sharply peaked rows lose that.
        new_top = gl.where(highest > top + 8.0, highest, top)
        shrink = gl.exp2(top - new_top)
        p = gl.exp2(s * scale_log2 - gl.expand_dims(new_top, 1))
        total = total * shrink + gl.sum(p, 1)
        top = new_top
        weights = gl.convert_layout(p.to(dtype), factor_layout(D))
        acc = scale_rows(acc, shrink, D)
        mbarrier.wait(v_ready, i & 1)
        acc = warpgroup_mma(weights, value, acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.expect(v_ready, size, pred=more)
        async_load(v_box, [batch, head, following, 0], v_ready, v_buffer, pred=more)
        following = behind
    return acc, top, total


@gluon.jit
def add_grains(
    acc,
    top,
    total,
    q_tile,
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
    """Attend to one block of any size, 16 tokens at a time."""
    dtype: gl.constexpr = k_tile.dtype
    wide: gl.constexpr = product_layout(64)
    narrow: gl.constexpr = product_layout(16)
    output: gl.constexpr = product_layout(D)
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
        s = multiply_transposed(q_tile, key, zero)
        s = warpgroup_mma_wait(0, deps=[s])
        s = gl.where(column < end - first, s * scale_log2, float("-inf"))
        highest = gl.convert_layout(gl.max(s, 1), gl.SliceLayout(1, wide))
        new_top = gl.maximum(top, highest)
        shrink = gl.exp2(top - new_top)
        p = gl.exp2(s - gl.expand_dims(gl.convert_layout(new_top, gl.SliceLayout(1, narrow)), 1))
        total = total * shrink + gl.convert_layout(gl.sum(p, 1), gl.SliceLayout(1, wide))
        top = new_top
        weights = gl.convert_layout(p.to(dtype), factor_layout(D))
        acc = acc * gl.expand_dims(gl.convert_layout(shrink, gl.SliceLayout(1, output)), 1)
        acc = warpgroup_mma(weights, v_tile.slice(0, 16), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
    return acc, top, total
