"""Gradients of the attention over lists of blocks in Triton: the portable kernels.

With P = exp(scale Q K^T - lse) and delta = rowsum(dO o) - dlse on the selected pairs: dV = P^T dO,
dS = P (dO V^T - delta), dQ = scale dS K, dK = scale dS^T Q. The queries' kernel walks the lists of
key blocks, the keys' kernel the lists of query blocks; nothing is added atomically.
"""

import triton
import triton.language as tl

from longtake.kernels.block_sparse.triton.tiles import (
    load_tile,
    locate,
    query_tile,
    store_tile,
)


@triton.jit
def delta_kernel(
    o,
    do,
    lse,
    dlse,
    delta,
    num_heads,
    num_tokens,
    o_strides,
    do_strides,
    dlse_strides,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    HAS_DLSE: tl.constexpr,
):
    """Row sums of dO o, less dlse, of ROWS tokens of one head."""
    head = tl.program_id(1) % num_heads
    batch = tl.program_id(1) // num_heads
    first = tl.program_id(0) * ROWS
    size = num_tokens - first
    # Once for both kernels: each would read o and dO again to find the same sums.
    out = load_tile(o, batch, head, first, size, o_strides, ROWS, D, False).to(tl.float32)
    d_out = load_tile(do, batch, head, first, size, do_strides, ROWS, D, False).to(tl.float32)
    result = tl.sum(out * d_out, 1)
    row = tl.arange(0, ROWS)
    start = tl.program_id(1).to(tl.int64) * num_tokens + first
    if HAS_DLSE:
        at = batch.to(tl.int64) * dlse_strides[0] + head.to(tl.int64) * dlse_strides[1]
        at += (first + row).to(tl.int64) * dlse_strides[2]
        d_lse = tl.load(dlse + at, mask=row < size, other=0.0)
        # Without keys the log-sum-exp is the constant -inf.
        value = tl.load(lse + start + row, mask=row < size, other=0.0)
        result -= tl.where(value == float("-inf"), 0.0, d_lse)
    tl.store(delta + start + row, result, mask=row < size)


@triton.jit
def query_gradient_kernel(
    q,
    do,
    k,
    v,
    dq,
    lse,
    delta,
    lists,
    counts,
    q_offsets,
    k_offsets,
    order,
    scale,
    scale_log2,
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
    D: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    TILES_Q: tl.constexpr,
    TILES_K: tl.constexpr,
    RAGGED_Q: tl.constexpr,
    RAGGED_K: tl.constexpr,
    ORDERED: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradient of one tile of queries; arguments as in the forward kernel."""
    batch, head, key_head, blocks, count, first, size = query_tile(
        lists, list_strides, counts, count_strides, q_offsets, order, num_heads, num_key_heads,
        num_blocks, TILE_Q, TILES_Q, TILES_K, RAGGED_Q, ORDERED,
    )  # fmt: skip
    query = load_tile(q, batch, head, first, size, q_strides, TILE_Q, D, TMA)
    d_out = load_tile(do, batch, head, first, size, do_strides, TILE_Q, D, TMA)
    at = tl.arange(0, TILE_Q)
    start = (batch * num_heads + head).to(tl.int64) * num_tokens + first
    row_lse = tl.load(lse + start + at, mask=at < size, other=0.0) * 1.4426950408889634
    row_delta = tl.load(delta + start + at, mask=at < size, other=0.0)
    acc = tl.zeros([TILE_Q, D], tl.float32)
    column = tl.arange(0, TILE_K)[None, :]
    for i in tl.range(0, count, num_stages=STAGES):
        near = tl.load(blocks + i // TILES_K)
        k_first, k_size = locate(k_offsets, near, i % TILES_K, TILE_K, TILES_K, RAGGED_K)
        key = load_tile(k, batch, key_head, k_first, k_size, k_strides, TILE_K, D, TMA)
        s = tl.dot(query, key.T, input_precision=PRECISION)
        p = tl.exp2(s * scale_log2 - row_lse[:, None])
        # Keys past the end are zero, but exp(0 - lse) may overflow.
        if RAGGED_K:
            p = tl.where(column < k_size, p, 0.0)
        value = load_tile(v, batch, key_head, k_first, k_size, v_strides, TILE_K, D, TMA)
        dp = tl.dot(d_out, value.T, input_precision=PRECISION)
        ds = p * (dp - row_delta[:, None])
        acc = tl.dot(ds.to(key.dtype), key, acc, input_precision=PRECISION)
    store_tile(dq, acc * scale, batch, head, first, size, dq_strides, TILE_Q, D)


@triton.jit
def key_gradient_kernel(
    q,
    do,
    k,
    v,
    dk,
    dv,
    lse,
    delta,
    row_pointers,
    query_blocks,
    q_offsets,
    k_offsets,
    order,
    scale,
    scale_log2,
    num_heads,
    num_key_heads,
    num_blocks,
    num_tokens,
    list_size,
    q_strides,
    do_strides,
    k_strides,
    v_strides,
    dk_strides,
    dv_strides,
    D: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    TILES_Q: tl.constexpr,
    TILES_K: tl.constexpr,
    RAGGED_Q: tl.constexpr,
    RAGGED_K: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of one tile of keys, in the order of rows [B, Hk, Nk] given by ``order``.

    ``num_blocks`` is Nk, ``num_tokens`` the number of queries, ``list_size`` the room for the lists
    of one head in ``query_blocks``.
    """
    tile = tl.program_id(0)
    row = tl.load(order + tile // TILES_K)
    block = row % num_blocks
    key_head = row // num_blocks % num_key_heads
    batch = row // num_blocks // num_key_heads
    first, size = locate(k_offsets, block, tile % TILES_K, TILE_K, TILES_K, RAGGED_K)
    key = load_tile(k, batch, key_head, first, size, k_strides, TILE_K, D, TMA)
    value = load_tile(v, batch, key_head, first, size, v_strides, TILE_K, D, TMA)
    # Both at once: they share P, and Q and dO are read a single time.
    dk_acc = tl.zeros([TILE_K, D], tl.float32)
    dv_acc = tl.zeros([TILE_K, D], tl.float32)
    at = tl.arange(0, TILE_Q)
    group = num_heads // num_key_heads
    # Heads that share keys are added by one program: atomics would end the equality of two runs.
    for member in range(0, group):
        head = key_head * group + member
        head_row = (batch * num_heads + head).to(tl.int64)
        pointer = row_pointers + head_row * (num_blocks + 1) + block
        # Lists per key block have one array a head with row pointers: their lengths differ widely.
        begin = tl.load(pointer)
        count = (tl.load(pointer + 1) - begin) * TILES_Q
        blocks = query_blocks + head_row * list_size + begin
        for i in tl.range(0, count, num_stages=STAGES):
            near = tl.load(blocks + i // TILES_Q)
            q_first, q_size = locate(q_offsets, near, i % TILES_Q, TILE_Q, TILES_Q, RAGGED_Q)
            query = load_tile(q, batch, head, q_first, q_size, q_strides, TILE_Q, D, TMA)
            start = head_row * num_tokens + q_first
            # Rows past the end of a block are zero in Q and dO, so that they add nothing.
            lse_row = tl.load(lse + start + at, mask=at < q_size, other=0.0) * 1.4426950408889634
            s = tl.dot(key, query.T, input_precision=PRECISION)
            p = tl.exp2(s * scale_log2 - lse_row[None, :])
            d_out = load_tile(
                do, batch, head, q_first, q_size, do_strides, TILE_Q, D,
                TMA,
            )  # fmt: skip
            dv_acc = tl.dot(p.to(d_out.dtype), d_out, dv_acc, input_precision=PRECISION)
            delta_row = tl.load(delta + start + at, mask=at < q_size, other=0.0)
            dp = tl.dot(value, d_out.T, input_precision=PRECISION)
            ds = p * (dp - delta_row[None, :])
            dk_acc = tl.dot(ds.to(query.dtype), query, dk_acc, input_precision=PRECISION)
    store_tile(
        dk, dk_acc * scale, batch, key_head, first, size, dk_strides,
        TILE_K, D,
    )  # fmt: skip
    store_tile(dv, dv_acc, batch, key_head, first, size, dv_strides, TILE_K, D)
