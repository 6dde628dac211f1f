"""Selection of key blocks in Triton: means of blocks, their scores, the best of every row.

Scores are products on tensor cores, yet as exact as in float32: every mean is the sum of two
float16 numbers, which together hold 22 bits, and three of their four products are added up.
The score of a row's last block is searched: an interval of scores is narrowed until as many blocks
as wanted reach its lower end, or until it holds one number. Nothing is sorted, lists come out
ascending, and ties go to the lower block. What is chosen is handed on as bits, one int32 word per
32 blocks: the threads that compare scores are too many to write a short list well.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from longtake.kernels.block_sparse.layout import Blocks
from longtake.runtime.errors import UserError

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


def pool(x: Tensor, blocks: Blocks) -> Tensor:
    """Mean of every block of ``x`` [B, H, N, D], summed in float32: float32 [B, H, Nblk, D]."""
    batch, heads, _, dim = x.shape
    out = torch.empty((batch, heads, blocks.count, dim), dtype=torch.float32, device=x.device)
    # Heads vary fastest: with tokens before heads in memory, neighbours read neighbouring rows.
    # One warp per block adds its tokens in registers; more would meet in shared memory.
    _pool_kernel[(batch * heads, blocks.count)](
        x, out, blocks.offsets, heads, x.stride()[:3], ROWS=ROWS, D=dim, num_warps=1
    )
    return out


def select(
    q_pool: Tensor,
    k_pool: Tensor,
    kept: Tensor | None,
    least: int,
    cdf_p: float,
    width: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Lists of the selected key blocks, as :func:`reference.select`."""
    batch, heads, num_queries, dim = q_pool.shape
    key_heads, num_keys = k_pool.shape[1:3]
    if num_keys > MAX_KEY_BLOCKS:
        raise UserError(
            "too many key blocks for the selection kernel",
            received=num_keys,
            expected=f"at most {MAX_KEY_BLOCKS}",
            remedy='use larger key blocks, or backend="reference"',
        )
    q_pool, k_pool = q_pool.float().contiguous(), k_pool.float().contiguous()
    indices = torch.empty(
        (batch, heads, num_queries, width), dtype=torch.int32, device=q_pool.device
    )
    counts = torch.empty((batch, heads, num_queries), dtype=torch.int32, device=q_pool.device)
    rows = batch * heads
    step = max(1, min(rows, SCORE_BYTES // (4 * num_queries * num_keys)))
    # A last group of few heads would leave most of the GPU idle.
    step = triton.cdiv(rows, triton.cdiv(rows, step))  # groups of equal size
    scores = q_pool.new_empty((step, num_queries, num_keys))
    num_words = triton.cdiv(num_keys, 32)
    words = counts.new_empty((step, num_queries, num_words))
    # Split once and not in every tile: a mean enters the scores of all blocks of the other side.
    q_halves, q_scales = _split(q_pool)
    k_halves, k_scales = _split(k_pool)
    kept_strides: tuple[int, ...] = (0, 0, 0)
    if kept is not None:  # rows that all share are read again and again
        axes = zip(kept.shape[:3], kept.stride()[:3], strict=True)
        kept_strides = tuple(0 if size == 1 else stride for size, stride in axes)
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
        _choose_kernel[(num_queries, group)](
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
            kept_strides,
            KEYS=keys,
            KEPT=kept is not None,
            CDF=cdf_p > 0,
            num_warps=max(1, min(16, keys // 1024)),
        )
        _lists_kernel[(group * num_queries,)](
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
    """Means [B, H, Nblk, D] as sums of two float16 numbers [B, H, Nblk, 2, D].

    The second result, [B, H, Nblk], is the power of two by which the sums are to be multiplied, NaN
    for means that are not finite.
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
    strides,
    ROWS: tl.constexpr,
    D: tl.constexpr,
):
    """Mean of one block of one head."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    start = x + row // heads * strides[0] + row % heads * strides[1]
    begin = tl.load(offsets + block)
    end = tl.load(offsets + block + 1)
    column = tl.arange(0, D)
    total = tl.zeros([D], tl.float32)
    for first in range(begin, end, ROWS):
        token = first + tl.arange(0, ROWS)[:, None]
        at = start + token.to(tl.int64) * strides[2] + column[None, :]
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


@triton.jit
def _choose_kernel(
    scores,
    kept,
    words,
    first,
    heads,
    num_queries,
    num_keys,
    num_words,
    width,
    least,
    cdf_p,
    scale_log2,
    kept_strides,
    KEYS: tl.constexpr,
    KEPT: tl.constexpr,
    CDF: tl.constexpr,
):
    """Bits of the blocks chosen for one query block: row [words] of [group, Nq, words]."""
    query = tl.program_id(0).to(tl.int64)
    here = tl.program_id(1).to(tl.int64)
    row = first + here
    key = tl.arange(0, KEYS)
    valid = key < num_keys
    start = scores + (here * num_queries + query) * num_keys
    score = tl.load(start + key, mask=valid, other=0.0)
    mean = tl.sum(score, 0) / num_keys
    variance = tl.sum(score * score, 0) / num_keys - mean * mean
    # NaN ranks first: it must show in the result, not be hidden by being left out.
    score = tl.where(score <= 3.4028234663852886e38, score, 3.4028234663852886e38)
    score = tl.where(valid, score, float("-inf"))
    order = score
    count = tl.maximum(least, 0)
    if KEPT:
        at = (
            row // heads * kept_strides[0] + row % heads * kept_strides[1] + query * kept_strides[2]
        )
        word = tl.load(kept + at + key // 32, mask=valid, other=0)
        must = ((word >> (key % 32)) & 1) != 0
        order = tl.where(must, float("inf"), score)
        count = tl.maximum(count, tl.sum(must.to(tl.int32), 0))
    if CDF:
        exponent = (score - tl.max(score, 0)) * scale_log2
        weight = tl.where(valid, tl.exp2(exponent), 0.0)
        count = tl.maximum(count, _count_for_mass(order, valid, weight, cdf_p * tl.sum(weight, 0)))
    count = tl.minimum(count, tl.minimum(width, num_keys))
    best = _best(order, valid, count, num_keys, mean, tl.sqrt(tl.maximum(variance, 0.0)), KEYS)
    slot = tl.arange(0, KEYS // 32)
    out = words + (here * num_queries + query) * num_words
    tl.store(out + slot, best, mask=slot < num_words)


@triton.jit
def _lists_kernel(
    words,
    indices,
    counts,
    first,
    num_words,
    width,
    WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The list of one row of bits; row 0 of ``words`` is row ``first`` of the lists."""
    here = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, WORDS)
    word = tl.load(words + here * num_words + slot, mask=slot < num_words, other=0)
    size = _popcount(word)
    place = tl.cumsum(size, 0) - size
    count = tl.sum(size, 0)
    left = tl.max(size, 0)
    out = indices + (first + here) * width
    while left > 0:
        lowest = word & -word
        # The exponent of a power of two; that of bit 31 is a negative number's.
        bit = ((lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) & 255) - 127
        tl.store(out + place, 32 * slot + bit, mask=word != 0)
        word ^= lowest
        place += 1
        left -= 1
    end = tl.arange(0, WIDTH)
    tl.store(out + end, tl.full([WIDTH], -1, tl.int32), mask=(end >= count) & (end < width))
    tl.store(counts + first + here, count)


@triton.jit
def _rank(score):
    """Integers in the order of the scores."""
    bits = score.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _score(rank):
    """The score of a rank, undoing :func:`_rank`."""
    return (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _between(low, high, guess, usable):
    """The rank of ``guess`` if it is usable and in (low, high), and the middle rank otherwise.

    Scores are spread evenly and ranks are not, but only halving ranks is sure to end.
    """
    middle = (low & high) + ((low ^ high) >> 1)  # without overflow
    rank = _rank(guess)
    return tl.where(usable & (rank > low) & (rank < high), rank, middle)


@triton.jit
def _best(score, valid, count, num_keys, mean, deviation, KEYS: tl.constexpr):
    """Bits of the ``count`` blocks of highest score, the lower block first in ties.

    The search starts from the quantile of a normal distribution (by Tukey's lambda, which is near
    enough) and goes on as if the logarithm of the number of blocks fell linearly with the score:
    four to six steps instead of the ten of halving. Ten such steps are given; ties need more.
    """
    share = count / num_keys
    tail = tl.exp2(0.1349 * tl.log2(share))
    rest = tl.exp2(0.1349 * tl.log2(1 - share))
    guess = mean + deviation * (rest - tail) * 5.063
    slope = deviation * 0.4734 * (tail + rest * share / (1 - share))  # per doubling of the number
    target = tl.log2(count + 0.5)
    low = tl.full([], -2139095041, tl.int32)  # -infinity
    high = tl.full([], 2139095041, tl.int32)  # past infinity
    at_low = num_keys + 0 * count  # blocks of at least that rank: >= count
    above = 0 * count  # blocks of at least rank ``high``: < count
    step = 0 * count
    while (high > low + 1) & (at_low != count):
        middle = _between(low, high, guess, step < 32)
        reached = tl.sum((score >= _score(middle)).to(tl.int32), 0)
        enough = reached >= count
        low = tl.where(enough, middle, low)
        at_low = tl.where(enough, reached, at_low)
        high = tl.where(enough, high, middle)
        above = tl.where(enough, above, reached)
        step += 1
        bottom, top = _score(low), _score(high)
        over = tl.log2(at_low + 0.5) - target
        under = target - tl.log2(above + 0.5)
        guess = bottom + (top - bottom) * (over / (over + under))
        # With one end still at infinity, further and further out.
        guess = tl.where(high > 2139095040, bottom + slope * step * over, guess)
        guess = tl.where(low < -2139095040, top - slope * step * under, guess)
        guess = tl.where(step < 10, guess, 0.5 * bottom + 0.5 * top)
    edge = _score(low)
    if at_low == count:
        best = _pack((score >= edge) & valid & (count > 0), KEYS)
    else:  # the interval holds one rank
        best = _pack(score > edge, KEYS)
        tie = _pack((score == edge) & valid, KEYS)
        size = _popcount(tie)
        room = count - above - (tl.cumsum(size, 0) - size)
        while tl.max(tl.where(tie != 0, room, 0), 0) > 0:
            lowest = tie & -tie
            best = tl.where(room > 0, best | lowest, best)
            tie ^= lowest
            room -= 1
    return best


@triton.jit
def _count_for_mass(score, valid, weight, mass):
    """Size of the smallest set of highest score whose weights sum to ``mass`` or more."""
    low = _rank(tl.min(tl.where(valid, score, float("inf")), 0))
    high = _rank(tl.max(score, 0)) + 1
    step = tl.sum(valid.to(tl.int32), 0) * 0
    while high > low + 1:
        halfway = 0.5 * _score(low) + 0.5 * _score(tl.minimum(high, 2139095040))
        middle = _between(low, high, halfway, step < 24)
        reached = tl.sum(tl.where(score >= _score(middle), weight, 0.0), 0)
        enough = reached >= mass
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
        step += 1
    edge = _score(low)
    higher = valid & (score > edge)
    tie = valid & (score == edge)
    num_higher = tl.sum(higher.to(tl.int32), 0)
    num_ties = tl.sum(tie.to(tl.int32), 0)
    # Blocks of one score have one weight, except those kept by force, which all count anyway.
    each = tl.max(tl.where(tie, weight, 0.0), 0)
    missing = mass - tl.sum(tl.where(higher, weight, 0.0), 0)
    number = tl.ceil(missing / tl.maximum(each, 1e-38))
    number = tl.minimum(tl.maximum(number, 1.0), num_ties.to(tl.float32)).to(tl.int32)
    return num_higher + number


@triton.jit
def _pack(member, KEYS: tl.constexpr):
    """Bits of blocks, the lowest first: int32 [KEYS / 32]."""
    parts = tl.reshape(member, [KEYS // 32, 32]).to(tl.int32)
    return tl.sum(parts << tl.arange(0, 32)[None, :], 1)


@triton.jit
def _popcount(word):
    """Number of set bits: of pairs, of fours, of bytes, and of all."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word * 0x01010101) >> 24
