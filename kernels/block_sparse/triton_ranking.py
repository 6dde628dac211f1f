"""The best key blocks of every row of scores, as a Triton kernel, and their lists.

The score of a row's last block is searched: an interval of scores is narrowed until as many blocks
as wanted reach its lower end, or until it holds one number. Nothing is sorted, lists come out
ascending, and ties go to the lower block. What is chosen is handed on as bits, one int32 word per
32 blocks: the threads that compare scores are too many to write a short list well.
"""

import triton
import triton.language as tl


@triton.jit
def choose_kernel(
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
    kept_stride_b,
    kept_stride_h,
    kept_stride_q,
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
        at = row // heads * kept_stride_b + row % heads * kept_stride_h + query * kept_stride_q
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
def lists_kernel(
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
    wanted = tl.log2(count + 0.5)
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
        over = tl.log2(at_low + 0.5) - wanted
        under = wanted - tl.log2(above + 0.5)
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
    wanted = tl.ceil(missing / tl.maximum(each, 1e-38))
    wanted = tl.minimum(tl.maximum(wanted, 1.0), num_ties.to(tl.float32)).to(tl.int32)
    return num_higher + wanted


@triton.jit
def _pack(chosen, KEYS: tl.constexpr):
    """Bits of blocks, the lowest first: int32 [KEYS / 32]."""
    parts = tl.reshape(chosen, [KEYS // 32, 32]).to(tl.int32)
    return tl.sum(parts << tl.arange(0, 32)[None, :], 1)


@triton.jit
def _popcount(word):
    """Number of set bits: of pairs, of fours, of bytes, and of all."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word * 0x01010101) >> 24
