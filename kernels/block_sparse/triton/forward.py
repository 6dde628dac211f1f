"""Forward attention over lists of key blocks in Triton: the portable kernel."""

import triton
import triton.language as tl

from longtake.kernels.block_sparse.triton.tiles import (
    load_tile,
    locate,
    query_tile,
    store_tile,
)


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    o,
    lse,
    lists,
    counts,
    q_offsets,
    k_offsets,
    order,
    scale_log2,
    num_heads,
    num_key_heads,
    num_blocks,
    num_tokens,
    q_strides,
    k_strides,
    v_strides,
    o_strides,
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
    """One program per tile of queries; ``reference.forward`` explains the tensors.

    A query block has TILES_Q tiles of TILE_Q tokens, a key block TILES_K of TILE_K; the last ones
    may be short or empty where RAGGED. ``order`` permutes the rows of lists when ORDERED.
    """
    batch, head, key_head, blocks, count, first, size = query_tile(
        lists, list_strides, counts, count_strides, q_offsets, order, num_heads, num_key_heads,
        num_blocks, TILE_Q, TILES_Q, TILES_K, RAGGED_Q, ORDERED,
    )  # fmt: skip
    query = load_tile(q, batch, head, first, size, q_strides, TILE_Q, D, TMA)
    # The running softmax: scores of all keys are never in memory together.
    top = tl.full([TILE_Q], float("-inf"), tl.float32)
    total = tl.zeros([TILE_Q], tl.float32)
    acc = tl.zeros([TILE_Q, D], tl.float32)
    column = tl.arange(0, TILE_K)[None, :]
    for i in tl.range(0, count, num_stages=STAGES):
        near = tl.load(blocks + i // TILES_K)
        k_first, k_size = locate(k_offsets, near, i % TILES_K, TILE_K, TILES_K, RAGGED_K)
        key = load_tile(k, batch, key_head, k_first, k_size, k_strides, TILE_K, D, TMA)
        # Scaled here and in float32: scaled keys would be rounded, and disagree with the backward.
        s = tl.dot(query, key.T, input_precision=PRECISION) * scale_log2
        # Keys past the end are zero, whose score 0 may well be the largest.
        if RAGGED_K:
            s = tl.where(column < k_size, s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        # Powers of two are one instruction; the factor log2(e) is in the scale.
        p = tl.exp2(s - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        value = load_tile(v, batch, key_head, k_first, k_size, v_strides, TILE_K, D, TMA)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(value.dtype), value, acc, input_precision=PRECISION)
        top = new_top
    # A row without keys: output 0, log-sum-exp -inf.
    divisor = tl.where(total == 0.0, 1.0, total)
    acc = acc / divisor[:, None]
    natural = (top + tl.log2(divisor)) * 0.6931471805599453
    at = tl.arange(0, TILE_Q)
    start = (batch * num_heads + head).to(tl.int64) * num_tokens + first
    tl.store(lse + start + at, natural, mask=at < size)
    store_tile(o, acc, batch, head, first, size, o_strides, TILE_Q, D)
