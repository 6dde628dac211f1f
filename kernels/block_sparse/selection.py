"""Selection of key blocks: the best r by pooled score, or the smallest set with a share of mass.

Appendix A.2.1 and A.2.3. Selection carries no gradient and never waits for the device; ties go to
the lower block, so that recomputation under activation checkpointing repeats it bit for bit.
"""

import math

import torch
from torch import Tensor

from longtake.kernels.block_sparse import reference
from longtake.kernels.block_sparse.index import (
    BlockIndex,
    compact,
    pack_bits,
    row_chunks,
    unpack_bits,
)
from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.kernels.block_sparse.operator import implementation
from longtake.kernels.block_sparse.pooling import pool_blocks
from longtake.kernels.block_sparse.registration import torch_op
from longtake.runtime.errors import UserError


@torch.no_grad()
def select_blocks(
    q: Tensor,
    k: Tensor,
    layout_q: BlockLayout,
    layout_k: BlockLayout,
    *,
    topk: int | None = None,
    sparsity: float | None = None,
    cdf_p: float | None = None,
    min_blocks: int = 1,
    max_blocks: int | None = None,
    must_keep: Tensor | BlockIndex | None = None,
    scale: float | None = None,
    compat: bool = False,
    backend: str = "auto",
) -> BlockIndex:
    """Select key blocks for every query block from the queries and keys themselves.

    Args:
        q: [B, Hq, N, D] in block order, after QK-norm and RoPE.
        k: [B, Hk, M, D] in block order; Hk divides Hq.
        layout_q: layout of the queries.
        layout_k: layout of the keys.
        topk: and the further arguments as in :func:`select_from_pooled`.
        sparsity: share of key blocks left out.
        cdf_p: share of mass.
        min_blocks: lower bound.
        max_blocks: upper bound.
        must_keep: blocks that are always selected.
        scale: factor of the scores, 1 / sqrt(D) by default.
        compat: round as the public code does, starting with the means.
        backend: implementation.

    Returns:
        The index [B, Hq, Nq, R] over Nk key blocks.

    Raises:
        UserError: wrong shapes or rules.
    """
    q_pool, k_pool = pool_blocks(q, layout_q), pool_blocks(k, layout_k)
    if compat:
        q_pool, k_pool = q_pool.to(q.dtype), k_pool.to(k.dtype)
    return select_from_pooled(
        q_pool,
        k_pool,
        topk=topk,
        sparsity=sparsity,
        cdf_p=cdf_p,
        min_blocks=min_blocks,
        max_blocks=max_blocks,
        must_keep=must_keep,
        scale=scale,
        compat=compat,
        backend=backend,
    )


@torch.no_grad()
def select_from_pooled(
    q_pool: Tensor,
    k_pool: Tensor,
    *,
    topk: int | None = None,
    sparsity: float | None = None,
    cdf_p: float | None = None,
    min_blocks: int = 1,
    max_blocks: int | None = None,
    must_keep: Tensor | BlockIndex | None = None,
    scale: float | None = None,
    compat: bool = False,
    backend: str = "auto",
) -> BlockIndex:
    """Select key blocks from block means.

    Blocks are ranked by score q_pool . k_pool. A rule says how many of them a row takes; with
    both ``topk`` (or ``sparsity``) and ``cdf_p``, the larger number.

    Args:
        q_pool: [B, Hq, Nq, D].
        k_pool: [B, Hk, Nk, D]; Hk divides Hq.
        topk: r; more than Nk means all.
        sparsity: share of key blocks left out, in [0, 1): r = floor((1 - sparsity) Nk), at least 1.
        cdf_p: in (0, 1]: the smallest set whose softmax(scale * score) sums to ``cdf_p`` or more.
        min_blocks: blocks that every row gets at least.
        max_blocks: length of the lists. Bounds their memory under ``cdf_p``, where it is Nk by
            default, and cuts the sets that are larger.
        must_keep: blocks that are selected whatever their score, first, and count towards the
            number: an index, or bool [Nq, Nk], [H, Nq, Nk] or [B, H, Nq, Nk], of which B and H
            may be 1. With a mask the lists have room for all Nk blocks.
        scale: factor of the scores, 1 / sqrt(D) by default; ``cdf_p`` depends on it.
        compat: the public implementation's rule and rounding. All steps run in the type of the
            means; r = int((1 - sparsity) Nk), which may be 0; ``cdf_p`` counts the blocks up to
            which the sum is at most ``cdf_p``. Rows may get no block when ``min_blocks`` is 0.
        backend: as for the attention; "reference" runs in PyTorch on any device.

    Returns:
        The index [B, Hq, Nq, R] over Nk key blocks.

    Raises:
        UserError: wrong shapes or rules.
    """
    _check_pooled(q_pool, k_pool)
    num_keys = k_pool.shape[2]
    count = count_from_rule(num_keys, topk=topk, sparsity=sparsity, compat=compat)
    if count is None and cdf_p is None:
        raise UserError(
            "no rule for the block selection",
            received="topk, sparsity and cdf_p are None",
            expected="topk or sparsity, or cdf_p, or both",
            remedy="sparsity=0.9375 is the published setting",
        )
    if cdf_p is not None and not 0 < cdf_p <= 1:
        raise UserError(
            "cdf_p is not a share of mass",
            received=cdf_p,
            expected="a number in (0, 1]",
            remedy="0.9 keeps the blocks with 90 % of the pooled softmax",
        )
    if min_blocks < 0 or (max_blocks is not None and max_blocks < max(min_blocks, count or 1)):
        raise UserError(
            "the bounds of the block selection contradict each other",
            received=f"min_blocks {min_blocks}, max_blocks {max_blocks}, top-r {count}",
            expected="0 <= min_blocks <= max_blocks and r <= max_blocks",
            remedy="leave max_blocks out, or raise it",
        )
    least = min(max(count or 0, min_blocks), num_keys)
    width = num_keys if cdf_p is not None else least
    kept = None
    if must_keep is not None:
        kept = _kept_bits(must_keep, q_pool, num_keys)
        width = max(width, _width_kept(must_keep, num_keys, max_blocks))
    if max_blocks is not None:
        width = min(width, max_blocks)
    scale = score_scale(scale, q_pool.shape[-1])
    rule = (kept, least, cdf_p or 0.0, max(width, 1), scale, compat, backend)
    indices, counts = select_key_blocks(q_pool, k_pool, *rule)
    return BlockIndex(indices, counts, num_keys)


def score_scale(scale: float | None, dim: int) -> float:
    """The factor of the scores: ``scale``, or 1 / sqrt(dim) for None.

    Raises:
        UserError: not a positive number.
    """
    if scale is None:
        return float(dim**-0.5)
    if not 0 < scale < math.inf:
        raise UserError(
            "the scale of the scores is not a positive number",
            received=scale,
            expected="a positive number, or None for 1 / sqrt(D)",
            remedy="leave it out",
        )
    return float(scale)


def count_from_rule(
    num_key_blocks: int,
    *,
    topk: int | None = None,
    sparsity: float | None = None,
    compat: bool = False,
) -> int | None:
    """The number r of a top-r rule, or None without one.

    (1 - 0.9) * 1000 is 99.99... in binary; a millionth is added before rounding down, except
    with ``compat``, where r may also be 0.

    Raises:
        UserError: two rules, or a value out of range.
    """
    if topk is not None and sparsity is not None:
        raise UserError(
            "two numbers of key blocks",
            received=f"topk {topk} and sparsity {sparsity}",
            expected="one of them",
            remedy="drop one",
        )
    if topk is not None:
        if isinstance(topk, bool) or not isinstance(topk, int) or topk < 1:
            raise UserError(
                "topk is not a number of blocks",
                received=topk,
                expected="an integer of at least 1",
                remedy="give the share to leave out as sparsity instead",
            )
        return min(topk, num_key_blocks)
    if sparsity is None:
        return None
    if not 0 <= sparsity < 1:
        raise UserError(
            "sparsity is not a share of blocks to leave out",
            received=sparsity,
            expected="a number in [0, 1)",
            remedy="0.9375 keeps one block in 16",
        )
    if compat:
        return int((1 - sparsity) * num_key_blocks)
    return max(1, math.floor((1 - sparsity) * num_key_blocks + 1e-6))


def _empty_lists(
    q_pool: Tensor,
    k_pool: Tensor,
    kept: Tensor | None,
    least: int,
    cdf_p: float,
    width: int,
    *options: object,
) -> tuple[Tensor, Tensor]:
    shape = q_pool.shape[:3]
    return (
        q_pool.new_empty((*shape, width), dtype=torch.int32),
        q_pool.new_empty(shape, dtype=torch.int32),
    )


@torch_op(fake=_empty_lists)
def select_key_blocks(
    q_pool: Tensor,
    k_pool: Tensor,
    kept: Tensor | None,
    least: int,
    cdf_p: float,
    width: int,
    scale: float,
    compat: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Lists and counts of the selected key blocks.

    Args:
        q_pool: [B, Hq, Nq, D].
        k_pool: [B, Hk, Nk, D].
        kept: bit rows of blocks that are always selected, int32 [B or 1, Hq or 1, Nq, words].
        least: blocks that every row gets at least: r, or the lower bound beside ``cdf_p``.
        cdf_p: share of mass, 0 for none.
        width: R.
        scale: factor of the scores.
        compat: see :func:`select_from_pooled`.
        backend: see :func:`select_from_pooled`.

    Returns:
        int32 indices [B, Hq, Nq, R] and counts [B, Hq, Nq].
    """
    # Only PyTorch repeats the public rounding.
    run = implementation("reference" if compat else backend, q_pool.device)
    if run is not reference:
        indices, counts = run.select(q_pool, k_pool, kept, least, cdf_p, width, scale)
        return indices, counts
    indices, counts = _empty_lists(q_pool, k_pool, kept, least, cdf_p, width)
    group, num_keys = q_pool.shape[1] // k_pool.shape[1], k_pool.shape[2]
    for b, h, rows in row_chunks(counts.shape, 40 * num_keys):
        scores = q_pool[b, h, rows] @ k_pool[b, h // group].mT
        must = None
        if kept is not None:
            bits = kept[b if kept.shape[0] > 1 else 0, h if kept.shape[1] > 1 else 0, rows]
            must = unpack_bits(bits, num_keys)
        chosen = _choose(scores, must, least, cdf_p, width, scale, compat)
        indices[b, h, rows], counts[b, h, rows] = compact(chosen, width)
    return indices, counts


def _choose(
    scores: Tensor,
    must: Tensor | None,
    least: int,
    cdf_p: float,
    width: int,
    scale: float,
    compat: bool,
) -> Tensor:
    """Bool [rows, Nk] of the selected blocks, for ``scores`` [rows, Nk]."""
    weights = (scores * scale).softmax(-1) if cdf_p else scores
    # The public code ranks by rounded weights. Without rounding, scores give the same order.
    ranked = weights if compat else scores
    # A NaN ranks first: it must show in the result, not be hidden by being left out.
    largest = torch.finfo(scores.dtype).max
    ranked = ranked.nan_to_num(nan=largest, posinf=largest, neginf=-math.inf)
    if must is not None:
        ranked = ranked.masked_fill(must, math.inf)
    order = ranked.sort(dim=-1, descending=True, stable=True).indices
    count = torch.full_like(order[:, 0], least)
    if must is not None:
        count = torch.maximum(count, must.sum(-1))
    if cdf_p:
        weights = weights.gather(-1, order)
        if compat:
            enough = (_scan(weights).float() <= cdf_p).sum(-1)
        else:
            enough = (weights.cumsum(-1) < cdf_p).sum(-1) + 1
        count = torch.maximum(count, enough)
    count = count.clamp(max=width)
    rank = torch.arange(order.shape[-1], device=order.device)
    taken = rank < count[:, None]
    return torch.zeros_like(taken).scatter_(-1, order, taken)


def _scan(x: Tensor) -> Tensor:
    """Prefix sums [rows, n] in the order of a parallel scan, rounded to the type in each step.

    In bfloat16 the order of additions decides which sums reach a threshold; this is the one of
    the GPU that the public implementation ran on (recorded masks agree for n = 16).
    """
    n = x.shape[-1]
    size = 1 << (n - 1).bit_length()
    y = torch.nn.functional.pad(x, (0, size - n))
    half = 1
    while half < size:
        pair = y.unflatten(-1, (-1, 2, half))
        y = torch.stack((pair[..., 0, :], pair[..., 1, :] + pair[..., 0, -1:]), dim=-2).flatten(1)
        half *= 2
    return y[:, :n]


def _check_pooled(q_pool: Tensor, k_pool: Tensor) -> None:
    fits = q_pool.ndim == 4 and k_pool.ndim == 4 and q_pool.dtype == k_pool.dtype
    if not fits or q_pool.shape[::3] != k_pool.shape[::3] or q_pool.shape[1] % k_pool.shape[1]:
        raise UserError(
            "block means of queries and keys do not fit",
            received=f"{q_pool.dtype} {tuple(q_pool.shape)}, {k_pool.dtype} {tuple(k_pool.shape)}",
            expected="[B, Hq, Nq, D] and [B, Hk, Nk, D] of one type, Hq a multiple of Hk",
            remedy="pool both with pool_blocks",
        )


def _width_kept(must_keep: Tensor | BlockIndex, num_keys: int, max_blocks: int | None) -> int:
    """Blocks that a row of ``must_keep`` may have, without looking into it."""
    width = must_keep.indices.shape[-1] if isinstance(must_keep, BlockIndex) else num_keys
    if max_blocks is not None and width > max_blocks:
        raise UserError(
            "max_blocks could cut blocks that must be kept",
            received=f"max_blocks {max_blocks}, up to {width} blocks to keep",
            expected="room for every block to keep",
            remedy="pass BlockIndex.from_dense_mask(mask) as must_keep, or raise max_blocks",
        )
    return width


def _kept_bits(must_keep: Tensor | BlockIndex, q_pool: Tensor, num_keys: int) -> Tensor:
    """Bit rows [B or 1, Hq or 1, Nq, words]."""
    batch, heads, num_queries, _ = q_pool.shape
    shape: tuple[int, ...] = ()
    if isinstance(must_keep, BlockIndex):
        shape = (*must_keep.counts.shape, must_keep.num_key_blocks)
    elif isinstance(must_keep, Tensor) and must_keep.dtype == torch.bool:
        shape = (1,) * (4 - must_keep.ndim) + tuple(must_keep.shape)
    if (
        len(shape) != 4
        or shape[2:] != (num_queries, num_keys)
        or (shape[0] not in (1, batch) or shape[1] not in (1, heads))
    ):
        raise UserError(
            "must_keep does not fit the blocks",
            received=f"{type(must_keep).__name__} over {shape}, {getattr(must_keep, 'dtype', '')}",
            expected=f"bool or a BlockIndex over [{batch} or 1, {heads} or 1, "
            f"{num_queries}, {num_keys}]",
            remedy="build it for these two layouts",
        )
    if isinstance(must_keep, BlockIndex):
        return must_keep.bits()
    return pack_bits(must_keep.reshape(shape))
