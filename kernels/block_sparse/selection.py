"""Selection of key blocks: the best r by pooled score, or the smallest set with a share of mass.

Appendix A.2.1 and A.2.3. Selection carries no gradient and never waits for the device; ties go to
the lower block, so that recomputation under activation checkpointing repeats it bit for bit.
"""

import math

import torch
from torch import Tensor

from longtake.kernels.block_sparse.index import BlockIndex, pack_bits
from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.kernels.block_sparse.pooling import pool_blocks
from longtake.kernels.block_sparse.ranking import select_key_blocks
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
        backend: implementation.

    Returns:
        The index [B, Hq, Nq, R] over Nk key blocks.

    Raises:
        UserError: wrong shapes or rules.
    """
    q_pool, k_pool = pool_blocks(q, layout_q, backend), pool_blocks(k, layout_k, backend)
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
        backend: as for the attention; "reference" runs in PyTorch on any device.

    Returns:
        The index [B, Hq, Nq, R] over Nk key blocks.

    Raises:
        UserError: wrong shapes or rules.
    """
    _check_pooled(q_pool, k_pool)
    wide = torch.promote_types(q_pool.dtype, torch.float32)
    q_pool, k_pool = q_pool.to(wide), k_pool.to(wide)
    num_keys = k_pool.shape[2]
    count = count_from_rule(num_keys, topk=topk, sparsity=sparsity)
    _check_rule(count, cdf_p, min_blocks, max_blocks)
    least = min(max(count or 0, min_blocks), num_keys)
    width = num_keys if cdf_p is not None else least
    kept = None
    if must_keep is not None:
        kept = _kept_bits(must_keep, q_pool, num_keys)
        width = max(width, _width_kept(must_keep, num_keys, max_blocks))
    if max_blocks is not None:
        width = min(width, max_blocks)
    scale = score_scale(scale, q_pool.shape[-1])
    rule = (kept, least, cdf_p or 0.0, max(width, 1), scale, backend)
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
) -> int | None:
    """The number r of a top-r rule, or None without one.

    (1 - 0.9) * 1000 is 99.99... in binary; a millionth is added before rounding down.

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
    return max(1, math.floor((1 - sparsity) * num_key_blocks + 1e-6))


def _check_rule(
    count: int | None, cdf_p: float | None, min_blocks: int, max_blocks: int | None
) -> None:
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
    fits = len(shape) == 4 and shape[2:] == (num_queries, num_keys)
    if not fits or shape[0] not in (1, batch) or shape[1] not in (1, heads):
        raise UserError(
            "must_keep does not fit the blocks",
            received=f"{type(must_keep).__name__} over {shape}, {getattr(must_keep, 'dtype', '')}",
            expected=f"bool or a BlockIndex over [{batch} or 1, {heads} or 1, "
            f"{num_queries}, {num_keys}]",
            remedy="build it for these two layouts",
        )
    if must_keep.device != q_pool.device:
        raise UserError(
            "must_keep lies on another device than the queries",
            received=str(must_keep.device),
            expected=str(q_pool.device),
            remedy="move it once with .to(device), not in every call",
        )
    if isinstance(must_keep, BlockIndex):
        return must_keep.bits()
    return pack_bits(must_keep.reshape(shape))
