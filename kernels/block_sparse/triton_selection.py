"""Selection of key blocks in Triton: means of blocks, their scores, and the launch of the choice.

Scores are products on tensor cores, yet as exact as in float32: every mean is the sum of two
float16 numbers, which together hold 22 bits, and three of their four products are added up.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from longtake.kernels.block_sparse.triton_ranking import choose_kernel, lists_kernel

#: Bytes of scores in memory at a time; heads are worked off in groups. They are freed before the
#: attention allocates its output, which is larger up to some 260,000 tokens.
SCORE_BYTES = 1 << 28

#: Tokens that a program averages at a time: few enough for all of them to be on their way at once,
#: as compilers otherwise add up the first while they load the last.
ROWS = 16

#: Blocks whose means a program splits.
MEANS = 16

#: Query and key blocks of a tile of scores, and columns multiplied at a time.
TILE_Q, TILE_K, COLUMNS = 64, 128, 32

#: Key blocks of a row that the selection holds in registers.
MAX_KEY_BLOCKS = 1 << 15


def block_means(x: Tensor, offsets: Tensor) -> Tensor:
    """Mean of the tokens of every block.

    Args:
        x: [B, H, N, D] in block order with a contiguous last axis, D a power of two.
        offsets: int32 [Nblk + 1], first token of every block.

    Returns:
        float32 [B, H, Nblk, D].
    """
    batch, heads, _, dim = x.shape
    num_blocks = offsets.numel() - 1
    out = torch.empty((batch, heads, num_blocks, dim), dtype=torch.float32, device=x.device)
    # Heads vary fastest: with tokens before heads in memory, neighbours read neighbouring rows.
    # One warp per block adds its tokens in registers; more would meet in shared memory.
    _pool_kernel[(batch * heads, num_blocks)](
        x, out, offsets, heads, *x.stride()[:3], ROWS=ROWS, D=dim, num_warps=1
    )
    return out


def choose(
    q_pool: Tensor,
    k_pool: Tensor,
    kept: Tensor | None,
    least: int,
    cdf_p: float,
    width: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Lists of the selected key blocks.

    Args:
        q_pool: float32 [B, Hq, Nq, D], contiguous; D a power of two.
        k_pool: float32 [B, Hk, Nk, D], contiguous; Hk divides Hq.
        kept: bit rows of blocks that are always selected, int32 [B or 1, Hq or 1, Nq, words].
        least: blocks that every row gets at least.
        cdf_p: share of mass of softmax(scale * score) that the selected blocks have at least, 0 for
            no such rule.
        width: R, which bounds the number of blocks of a row.
        scale: factor of the scores.

    Returns:
        int32 indices [B, Hq, Nq, R], ascending, then -1; and int32 counts [B, Hq, Nq].
    """
    batch, heads, num_queries, dim = q_pool.shape
    key_heads, num_keys = k_pool.shape[1:3]
    indices = torch.empty(
        (batch, heads, num_queries, width), dtype=torch.int32, device=q_pool.device
    )
    counts = torch.empty((batch, heads, num_queries), dtype=torch.int32, device=q_pool.device)
    rows = batch * heads
    step = max(1, min(rows, SCORE_BYTES // (4 * num_queries * num_keys)))
    step = triton.cdiv(rows, triton.cdiv(rows, step))  # groups of equal size
    scores = q_pool.new_empty((step, num_queries, num_keys))
    num_words = triton.cdiv(num_keys, 32)
    words = counts.new_empty((step, num_queries, num_words))
    q_halves, q_scales = _split(q_pool)
    k_halves, k_scales = _split(k_pool)
    strides = (
        (0, 0, 0)
        if kept is None
        else tuple(
            0 if size == 1 else stride
            for size, stride in zip(kept.shape[:3], kept.stride()[:3], strict=True)
        )
    )
    keys = max(32, triton.next_power_of_2(num_keys))
    for first in range(0, rows, step):
        group = min(step, rows - first)
        grid = (triton.cdiv(num_keys, TILE_K), triton.cdiv(num_queries, TILE_Q), group)
        _scores_kernel[grid](
            q_pool,
            k_pool,
            q_halves,
            k_halves,
            q_scales,
            k_scales,
            scores,
            first,
            heads,
            key_heads,
            num_queries,
            num_keys,
            D=dim,
            TILE_Q=TILE_Q,
            TILE_K=TILE_K,
            COLUMNS=min(COLUMNS, dim),
            num_warps=4,
            num_stages=3,
        )
        choose_kernel[(num_queries, group)](
            scores,
            kept if kept is not None else counts,
            words,
            first,
            heads,
            num_queries,
            num_keys,
            num_words,
            width,
            least,
            cdf_p,
            scale * 1.4426950408889634,
            *strides,
            KEYS=keys,
            KEPT=kept is not None,
            CDF=cdf_p > 0,
            num_warps=max(1, min(16, keys // 1024)),
        )
        lists_kernel[(group * num_queries,)](
            words,
            indices,
            counts,
            first * num_queries,
            num_words,
            width,
            WORDS=keys // 32,
            WIDTH=triton.next_power_of_2(width),
            num_warps=1,
        )
    return indices, counts


def _split(means: Tensor) -> tuple[Tensor, Tensor]:
    """Means as sums of two float16 numbers.

    Args:
        means: float32 [B, H, Nblk, D], contiguous.

    Returns:
        float16 [B, H, Nblk, 2, D], and float32 [B, H, Nblk]: powers of two that the sums are to be
        multiplied by, NaN for means that are not finite.
    """
    *shape, dim = means.shape
    halves = means.new_empty((*shape, 2, dim), dtype=torch.float16)
    scales = means.new_empty(shape)
    rows = scales.numel()
    _split_kernel[(triton.cdiv(rows, MEANS),)](
        means, halves, scales, rows, ROWS=MEANS, D=dim, num_warps=4
    )
    return halves, scales


@triton.jit
def _pool_kernel(
    x,
    out,
    offsets,
    heads,
    stride_b,
    stride_h,
    stride_n,
    ROWS: tl.constexpr,
    D: tl.constexpr,
):
    """Mean of one block of one head."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    start = x + row // heads * stride_b + row % heads * stride_h
    begin = tl.load(offsets + block)
    end = tl.load(offsets + block + 1)
    column = tl.arange(0, D)
    total = tl.zeros([D], tl.float32)
    for first in range(begin, end, ROWS):
        token = first + tl.arange(0, ROWS)[:, None]
        at = start + token.to(tl.int64) * stride_n + column[None, :]
        total += tl.sum(tl.load(at, mask=token < end, other=0.0).to(tl.float32), 0)
    where = (row * tl.num_programs(1) + block) * D + column
    tl.store(out + where, total / (end - begin).to(tl.float32))


@triton.jit
def _split_kernel(means, halves, scales, rows, ROWS: tl.constexpr, D: tl.constexpr):
    """Scale rows to below 2^15, far from both ends of float16, and split them."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    at = row[:, None] * D + tl.arange(0, D)[None, :]
    value = tl.load(means + at, mask=inside[:, None], other=0.0)
    # As integers, NaN is larger than infinity, and infinity than all else.
    largest = tl.max(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
    exponent = tl.maximum(largest >> 23, 15)
    finite = exponent < 255
    scale = ((268 - exponent) << 23).to(tl.float32, bitcast=True)
    back = ((exponent - 14) << 23).to(tl.float32, bitcast=True)
    value = tl.where(finite[:, None], value * scale[:, None], 0.0)
    high = value.to(tl.float16)
    low = (value - high.to(tl.float32)).to(tl.float16)
    at += row[:, None] * D
    tl.store(halves + at, high, mask=inside[:, None])
    tl.store(halves + at + D, low, mask=inside[:, None])
    tl.store(scales + row, tl.where(finite, back, float("nan")), mask=inside)


@triton.jit
def _scores_kernel(
    q_pool,
    k_pool,
    q_halves,
    k_halves,
    q_scales,
    k_scales,
    scores,
    first,
    heads,
    key_heads,
    num_queries,
    num_keys,
    D: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_K: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One tile of the scores [group, Nq, Nk], to float32 accuracy."""
    here = tl.program_id(2).to(tl.int64)
    row = first + here
    key_row = row // heads * key_heads + row % heads // (heads // key_heads)
    query = tl.program_id(1) * TILE_Q + tl.arange(0, TILE_Q)
    key = tl.program_id(0) * TILE_K + tl.arange(0, TILE_K)
    is_query, is_key = query < num_queries, key < num_keys
    q_row, k_row = row * num_queries + query, key_row * num_keys + key
    column = tl.arange(0, COLUMNS)
    q_start = q_halves + (q_row * (2 * D))[:, None] + column[None, :]
    k_start = k_halves + (k_row * (2 * D))[None, :] + column[:, None]
    acc = tl.zeros([TILE_Q, TILE_K], tl.float32)
    for at in range(0, D, COLUMNS):
        q_high = tl.load(q_start + at, mask=is_query[:, None], other=0.0)
        q_low = tl.load(q_start + at + D, mask=is_query[:, None], other=0.0)
        k_high = tl.load(k_start + at, mask=is_key[None, :], other=0.0)
        k_low = tl.load(k_start + at + D, mask=is_key[None, :], other=0.0)
        acc = tl.dot(q_low, k_high, acc)
        acc = tl.dot(q_high, k_low, acc)
        acc = tl.dot(q_high, k_high, acc)
    q_scale = tl.load(q_scales + q_row, mask=is_query, other=1.0)
    k_scale = tl.load(k_scales + k_row, mask=is_key, other=1.0)
    acc *= q_scale[:, None] * k_scale[None, :]
    q_broken, k_broken = q_scale != q_scale, k_scale != k_scale
    if tl.max(q_broken.to(tl.int32), 0) + tl.max(k_broken.to(tl.int32), 0) > 0:
        # Halves of infinity would add up to NaN where infinity, even negative, is right.
        acc = tl.zeros([TILE_Q, TILE_K], tl.float32)
        for at in range(D):
            left = tl.load(q_pool + q_row * D + at, mask=is_query, other=0.0)
            right = tl.load(k_pool + k_row * D + at, mask=is_key, other=0.0)
            acc += left[:, None] * right[None, :]
    where = (here * num_queries + query)[:, None] * num_keys + key[None, :]
    tl.store(scores + where, acc, mask=is_query[:, None] & is_key[None, :])
