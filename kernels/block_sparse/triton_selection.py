"""Selection of key blocks in Triton: means of blocks, their scores, and the best of every row.

A row is selected by searching the score of its last block: scores are mapped to integers of the
same order, and an interval of them is halved until it holds that score. Nothing is sorted, lists
come out ascending, and ties go to the lower block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Bytes of scores in memory at a time; heads are worked off in groups. They are freed before the
#: attention allocates its output, which is larger up to some 260,000 tokens.
SCORE_BYTES = 1 << 28

#: Tokens that a program averages at a time.
ROWS = 64

#: Query and key blocks of a tile of scores, and columns multiplied at a time.
TILE_Q, TILE_K, COLUMNS = 64, 64, 64

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
    _pool_kernel[(batch * heads, num_blocks)](
        x, out, offsets, heads, *x.stride()[:3], ROWS=ROWS, D=dim, num_warps=4
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
    strides = (
        (0, 0, 0)
        if kept is None
        else tuple(
            0 if size == 1 else stride
            for size, stride in zip(kept.shape[:3], kept.stride()[:3], strict=True)
        )
    )
    keys = triton.next_power_of_2(num_keys)
    for first in range(0, rows, step):
        group = min(step, rows - first)
        grid = (triton.cdiv(num_keys, TILE_K), triton.cdiv(num_queries, TILE_Q), group)
        _scores_kernel[grid](
            q_pool,
            k_pool,
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
        )
        _choose_kernel[(num_queries, group)](
            scores,
            kept if kept is not None else counts,
            indices,
            counts,
            first,
            heads,
            num_queries,
            num_keys,
            width,
            least,
            cdf_p,
            scale * 1.4426950408889634,
            *strides,
            KEYS=keys,
            WIDTH=triton.next_power_of_2(width),
            KEPT=kept is not None,
            CDF=cdf_p > 0,
            num_warps=max(1, min(16, keys // 1024)),
        )
    return indices, counts


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
def _scores_kernel(
    q_pool,
    k_pool,
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
    query = tl.program_id(1) * TILE_Q + tl.arange(0, TILE_Q)[:, None]
    key = tl.program_id(0) * TILE_K + tl.arange(0, TILE_K)
    column = tl.arange(0, COLUMNS)
    q_start = q_pool + (row * num_queries + query) * D
    k_start = k_pool + (key_row * num_keys + key[:, None]) * D
    acc = tl.zeros([TILE_Q, TILE_K], tl.float32)
    for at in tl.static_range(0, D, COLUMNS):
        left = tl.load(q_start + at + column[None, :], mask=query < num_queries, other=0.0)
        right = tl.load(k_start + at + column[None, :], mask=key[:, None] < num_keys, other=0.0)
        acc = tl.dot(left, right.T, acc, input_precision="tf32x3")
    where = (here * num_queries + query) * num_keys + key[None, :]
    tl.store(scores + where, acc, mask=(query < num_queries) & (key[None, :] < num_keys))


@triton.jit
def _choose_kernel(
    scores,
    kept,
    indices,
    counts,
    first,
    heads,
    num_queries,
    num_keys,
    width,
    least,
    cdf_p,
    scale_log2,
    kept_stride_b,
    kept_stride_h,
    kept_stride_q,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    KEPT: tl.constexpr,
    CDF: tl.constexpr,
):
    """The list of one query block."""
    query = tl.program_id(0).to(tl.int64)
    here = tl.program_id(1).to(tl.int64)
    row = first + here
    key = tl.arange(0, KEYS)
    valid = key < num_keys
    start = scores + (here * num_queries + query) * num_keys
    score = tl.load(start + key, mask=valid, other=float("-inf"))
    # NaN ranks first: it must show in the result, not be hidden by being left out.
    score = tl.where(
        (score != score) | (score > 3.4028234663852886e38), 3.4028234663852886e38, score
    )
    rank = _rank(score)
    count = tl.maximum(least, 0)
    if KEPT:
        at = row // heads * kept_stride_b + row % heads * kept_stride_h + query * kept_stride_q
        word = tl.load(kept + at + key // 32, mask=valid, other=0)
        must = ((word >> (key % 32)) & 1) != 0
        rank = tl.where(must, 2147483647, rank)
        count = tl.maximum(count, tl.sum(must.to(tl.int32), 0))
    rank = tl.where(valid, rank, -2147483648)
    if CDF:
        exponent = (score - tl.max(score, 0)) * scale_log2
        weight = tl.where(valid, tl.exp2(exponent), 0.0)
        count = tl.maximum(count, _count_for_mass(rank, valid, weight, cdf_p * tl.sum(weight, 0)))
    count = tl.minimum(count, tl.minimum(width, num_keys))
    chosen = _best(rank, valid, count).to(tl.int32)
    line = row * num_queries + query
    out = indices + line * width
    tl.store(out + tl.cumsum(chosen, 0) - 1, key, mask=chosen > 0)
    slot = tl.arange(0, WIDTH)
    tl.store(out + slot, tl.full([WIDTH], -1, tl.int32), mask=(slot >= count) & (slot < width))
    tl.store(counts + line, count)


@triton.jit
def _rank(score):
    """Integers in the order of the scores; both zeros are one."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _score(rank):
    """The score of a rank, undoing :func:`_rank`."""
    return (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _between(low, high, step):
    """A rank in (low, high): halfway in score, where that is one, and halfway in rank otherwise.

    Scores are spread evenly and ranks are not, but only halving ranks is sure to end: it takes over
    after 24 steps.
    """
    middle = low + (high - low) // 2
    top = tl.minimum(high, 2139095040).to(tl.int32)  # infinity
    bottom = tl.maximum(low, -2139095040).to(tl.int32)
    guess = _rank(0.5 * _score(bottom) + 0.5 * _score(top)).to(tl.int64)
    fits = (guess > low) & (guess < high) & (step < 24)
    return tl.where(fits, guess, middle)


@triton.jit
def _best(rank, valid, count):
    """Whether each block is among the ``count`` of highest rank, the lower block first in ties."""
    low = tl.min(tl.where(valid, rank, 2147483647), 0).to(tl.int64)
    high = tl.max(rank, 0).to(tl.int64) + 1
    at_low = tl.sum(valid.to(tl.int32), 0)  # blocks of at least that rank: >= count
    above = 0 * at_low  # blocks of at least rank ``high``: < count
    step = 0 * at_low
    while (high - low > 1) & (at_low != count):
        middle = _between(low, high, step)
        reached = tl.sum((valid & (rank >= middle.to(tl.int32))).to(tl.int32), 0)
        enough = reached >= count
        low = tl.where(enough, middle, low)
        at_low = tl.where(enough, reached, at_low)
        high = tl.where(enough, high, middle)
        above = tl.where(enough, above, reached)
        step += 1
    edge = low.to(tl.int32)
    # The interval holds one rank, or as many blocks as wanted reach its lower end.
    exact = at_low == count
    tie = valid & (rank == edge)
    first_ties = tl.cumsum(tie.to(tl.int32), 0) <= count - above
    chosen = valid & ((rank > edge) | (tie & (exact | first_ties)))
    return chosen & (count > 0)


@triton.jit
def _count_for_mass(rank, valid, weight, mass):
    """Size of the smallest set of highest rank whose weights sum to ``mass`` or more."""
    low = tl.min(tl.where(valid, rank, 2147483647), 0).to(tl.int64)
    high = tl.max(rank, 0).to(tl.int64) + 1
    step = tl.sum(valid.to(tl.int32), 0) * 0
    while high - low > 1:
        middle = _between(low, high, step)
        reached = tl.sum(tl.where(rank >= middle.to(tl.int32), weight, 0.0), 0)
        enough = reached >= mass
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
        step += 1
    edge = low.to(tl.int32)
    higher = valid & (rank > edge)
    tie = valid & (rank == edge)
    num_higher = tl.sum(higher.to(tl.int32), 0)
    num_ties = tl.sum(tie.to(tl.int32), 0)
    # Blocks of one rank have one weight, except those kept by force, which all count anyway.
    each = tl.max(tl.where(tie, weight, 0.0), 0)
    missing = mass - tl.sum(tl.where(higher, weight, 0.0), 0)
    wanted = tl.ceil(missing / tl.maximum(each, 1e-38))
    wanted = tl.minimum(tl.maximum(wanted, 1.0), num_ties.to(tl.float32)).to(tl.int32)
    return num_higher + wanted
