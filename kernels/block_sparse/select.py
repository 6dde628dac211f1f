"""Selection of key blocks: the best r by pooled score, or the smallest set with a share of mass.

Appendix A.2.1 and A.2.3. Selection carries no gradient and never waits for the device; ties go to
the lower block, so that recomputation under activation checkpointing repeats it bit for bit. The
masks at the end need no scores: section 3.4.2 names such patterns as the way to other sparse
attentions.
"""

import math
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from longtake.kernels.block_sparse import reference
from longtake.kernels.block_sparse.backends import gpu_module, runs_on_gpu, torch_op
from longtake.kernels.block_sparse.index import BlockIndex, pack_bits
from longtake.kernels.block_sparse.layout import BlockLayout, Blocks, Size3
from longtake.runtime.errors import UserError


class Rule(TypedDict, total=False):
    """How many key blocks a query block takes; with two rules, the larger number.

    Blocks are ranked by score q_pool . k_pool.
    """

    topk: int | None
    """r; more than Nk means all."""
    sparsity: float | None
    """Share of key blocks left out, in [0, 1), instead of ``topk``: r = floor((1 - sparsity) Nk),
    at least 1; 0.9375 in the published model."""
    cdf_p: float | None
    """In (0, 1]: the smallest set whose softmax(scale * score) sums to ``cdf_p`` or more."""
    min_blocks: int
    """Blocks that every row gets at least; 1 by default."""
    max_blocks: int | None
    """Length of the lists. Bounds their memory under ``cdf_p``, where it is Nk by default, and
    cuts the sets that are larger."""
    must_keep: Tensor | BlockIndex | None
    """Blocks that are selected whatever their score, first, and count towards the number: an
    index, or bool [Nq, Nk], [H, Nq, Nk] or [B, H, Nq, Nk], of which B and H may be 1. With a mask
    the lists have room for all Nk blocks."""


@torch.no_grad()
def select_blocks(
    q: Tensor,
    k: Tensor,
    layout_q: BlockLayout,
    layout_k: BlockLayout,
    *,
    scale: float | None = None,
    backend: str = "auto",
    **rule: Unpack[Rule],
) -> BlockIndex:
    """Select key blocks for every query block from the queries and keys themselves.

    They are [B, Hq, N, D] and [B, Hk, M, D] in block order, after QK-norm and RoPE; Hk divides Hq.
    ``scale`` is 1 / sqrt(D) by default, and ``cdf_p`` depends on it. The index is [B, Hq, Nq, R]
    over Nk key blocks.
    """
    q_pool, k_pool = pool_blocks(q, layout_q, backend), pool_blocks(k, layout_k, backend)
    return select_from_pooled(q_pool, k_pool, scale=scale, backend=backend, **rule)


def pool_blocks(x: Tensor, layout: BlockLayout, backend: str = "auto") -> Tensor:
    """Means [B, H, Nblk, D] over the tokens of every block of ``x`` [B, H, N, D] in block order.

    Without gradient, in float32 (float64 for float64), and bitwise equal from run to run.
    """
    # Detached: the report lets no gradient pass through the choice, and means would keep q alive.
    layout.check_tokens(x, 2)
    x = x.detach() if x.stride(-1) == 1 else x.detach().contiguous()
    return block_means(x, layout.offsets(x.device), layout.max_block_size, backend)


@torch.no_grad()
def select_from_pooled(
    q_pool: Tensor,
    k_pool: Tensor,
    *,
    scale: float | None = None,
    backend: str = "auto",
    topk: int | None = None,
    sparsity: float | None = None,
    cdf_p: float | None = None,
    min_blocks: int = 1,
    max_blocks: int | None = None,
    must_keep: Tensor | BlockIndex | None = None,
) -> BlockIndex:
    """Select key blocks from block means [B, Hq, Nq, D] and [B, Hk, Nk, D].

    Arguments and result as in :func:`select_blocks`; :class:`Rule` explains the last six.
    """
    assert q_pool.shape[::3] == k_pool.shape[::3] and q_pool.shape[1] % k_pool.shape[1] == 0
    # Scores of neighbours differ by little; in bfloat16 many would tie and low blocks win.
    wide = torch.promote_types(q_pool.dtype, torch.float32)
    q_pool, k_pool = q_pool.to(wide), k_pool.to(wide)
    num_keys = k_pool.shape[2]
    count = count_from_rule(num_keys, topk=topk, sparsity=sparsity)
    _check_rule(count, cdf_p, min_blocks, max_blocks)
    least = min(max(count or 0, min_blocks), num_keys)
    # From shapes alone: the longest list that a share of mass gives is known to the device only.
    width = num_keys if cdf_p is not None else least
    kept = None
    if must_keep is not None:
        kept, longest = _bits_of(must_keep, q_pool, num_keys, max_blocks)
        width = max(width, longest)
    if max_blocks is not None:
        width = min(width, max_blocks)
    scale = score_scale(scale, q_pool.shape[-1])
    indices, counts = select_key_blocks(
        q_pool, k_pool, kept, least, cdf_p or 0.0, max(width, 1), scale, backend
    )
    return BlockIndex(indices, counts, num_keys)


def score_scale(scale: float | None, dim: int) -> float:
    """The factor of the scores: ``scale``, or 1 / sqrt(dim) for None."""
    if scale is None:
        return float(dim**-0.5)
    # The kernels rank unscaled scores: a negative factor would turn the order around.
    assert 0 < scale < math.inf, f"scale {scale}: expected a positive number"
    return float(scale)


def count_from_rule(
    num_key_blocks: int, *, topk: int | None = None, sparsity: float | None = None
) -> int | None:
    """The number r of a top-r rule, or None without one."""
    # True is an int: topk=True would silently select one block.
    is_count = isinstance(topk, int) and not isinstance(topk, bool) and topk >= 1
    is_share = sparsity is not None and 0 <= sparsity < 1
    if (topk is not None and (sparsity is not None or not is_count)) or (
        sparsity is not None and not is_share
    ):
        raise UserError(
            "not a number of key blocks",
            received=f"topk {topk!r}, sparsity {sparsity!r}",
            expected="one of them: topk an integer of at least 1, sparsity in [0, 1)",
            remedy="sparsity is the share to leave out: 0.9375 keeps one block in 16",
        )
    if topk is not None:
        return min(topk, num_key_blocks)
    if sparsity is None:
        return None
    # (1 - 0.9) * 1000 is 99.99... in binary: a millionth before rounding down.
    return max(1, math.floor((1 - sparsity) * num_key_blocks + 1e-6))


def _check_rule(count: int | None, cdf_p: float | None, least: int, most: int | None) -> None:
    bounded = least >= 0 and (most is None or most >= max(least, count or 1))
    bounded = bounded and (cdf_p is None or 0 < cdf_p <= 1)
    if not bounded or (count is None and cdf_p is None):
        raise UserError(
            "no rule for the block selection, or one out of range",
            received=f"top-r {count}, cdf_p {cdf_p}, min_blocks {least}, max_blocks {most}",
            expected="topk, sparsity or cdf_p in (0, 1]; 0 <= min_blocks <= max_blocks >= r",
            remedy="sparsity=0.9375 is the published setting; leave max_blocks out, or raise it",
        )


def _bits_of(
    must_keep: Tensor | BlockIndex, q_pool: Tensor, num_keys: int, max_blocks: int | None
) -> tuple[Tensor, int]:
    """Bit rows [B or 1, Hq or 1, Nq, words], and how many blocks a row may have.

    The second number comes from shapes alone, because looking would wait for the device.
    """
    batch, heads, num_queries, _ = q_pool.shape
    longest = num_keys
    shape: tuple[int, ...] = ()
    if isinstance(must_keep, BlockIndex):
        shape = (*must_keep.counts.shape, must_keep.num_key_blocks)
        longest = must_keep.indices.shape[-1]
    elif isinstance(must_keep, Tensor) and must_keep.dtype == torch.bool:
        shape = (*[1] * (4 - must_keep.ndim), *must_keep.shape)
    # Blocks to keep are moved by the caller: a copy to the device in every layer would wait.
    fits = len(shape) == 4 and shape[2:] == (num_queries, num_keys)
    fits = fits and shape[0] in (1, batch) and shape[1] in (1, heads)
    if not fits or must_keep.device != q_pool.device:
        raise UserError(
            "must_keep does not fit the blocks",
            received=f"{type(must_keep).__name__} over {shape}, {getattr(must_keep, 'dtype', '')} "
            f"on {getattr(must_keep, 'device', '')}",
            expected=f"bool or a BlockIndex over [{batch} or 1, {heads} or 1, "
            f"{num_queries}, {num_keys}] on {q_pool.device}",
            remedy="build it for these two layouts, and move it once, not in every call",
        )
    # Cutting would drop kept blocks by number, not by score, and nobody would notice.
    if max_blocks is not None and longest > max_blocks:
        raise UserError(
            "max_blocks could cut blocks that must be kept",
            received=f"max_blocks {max_blocks}, up to {longest} blocks to keep",
            expected="room for every block to keep",
            remedy="pass BlockIndex.from_dense_mask(mask) as must_keep, or raise max_blocks",
        )
    if isinstance(must_keep, BlockIndex):
        must_keep = must_keep.to_dense_mask()
    return pack_bits(must_keep.reshape(shape)), longest


def _empty_means(x: Tensor, offsets: Tensor, *rest: object) -> Tensor:
    batch, heads, _, dim = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((batch, heads, offsets.shape[0] - 1, dim), dtype=wide)


@torch_op(fake=_empty_means)
def block_means(x: Tensor, offsets: Tensor, block_size: int, backend: str) -> Tensor:
    """Means [B, H, Nblk, D] of the blocks of ``x`` [B, H, N, D] with a contiguous last axis.

    ``offsets`` is int32 [Nblk + 1], and no block has more than ``block_size`` tokens.
    """
    blocks = Blocks(offsets, x.shape[2], block_size)
    on_gpu = runs_on_gpu(backend, x)
    means: Tensor = (gpu_module("triton.select") if on_gpu else reference).pool(x, blocks)
    return means


def _empty_lists(
    q_pool: Tensor, k_pool: Tensor, kept: Tensor | None, least: int, cdf_p: float, width: int,
    *options: object,
) -> tuple[Tensor, Tensor]:  # fmt: skip
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
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Lists and counts of the selected key blocks; see :func:`reference.select`."""
    run = gpu_module("triton.select") if runs_on_gpu(backend, q_pool) else reference
    indices, counts = run.select(q_pool, k_pool, kept, least, cdf_p, width, scale)
    return indices, counts


def space_and_time(layout_q: BlockLayout, layout_k: BlockLayout, start: int = 0) -> Tensor:
    """Block-wise 2D + 1D attention: all blocks of the same frames, and of the same place.

    Masks are bool [Nq, Nk] and combine with ``|`` and ``&``; :meth:`BlockIndex.from_dense_mask`
    turns one into lists, or pass it as ``must_keep`` to add it to a selection. ``start`` is the
    time block of the keys at which the queries begin: that of a key-value cache before them.
    """
    same_time, same_row, same_column = (x == 0 for x in _distances(layout_q, layout_k, start))
    return same_time | (same_row & same_column)


def local_window(
    layout_q: BlockLayout, layout_k: BlockLayout, radius: Size3, start: int = 0
) -> Tensor:
    """Mask of the blocks at most ``radius`` blocks away along time, height and width.

    A radius of 0 is the same block only; layouts and ``start`` as in :func:`space_and_time`.
    """
    away = torch.stack(_distances(layout_q, layout_k, start), -1)
    return (away.abs() <= torch.tensor(radius)).all(-1)


def first_frames(layout_q: BlockLayout, layout_k: BlockLayout, time_blocks: int = 1) -> Tensor:
    """Mask of the first time blocks for every query: condition frames, or an attention sink."""
    _, nh, nw = layout_k.block_grid
    # Block order has time outermost, so the first time blocks are a prefix.
    first = torch.arange(layout_k.num_blocks) < time_blocks * nh * nw
    return first.expand(layout_q.num_blocks, -1).clone()


def _distances(layout_q: BlockLayout, layout_k: BlockLayout, start: int) -> tuple[Tensor, ...]:
    """Key block minus query block along time, height and width, each [Nq, Nk]."""
    assert layout_q.block_grid[1:] == layout_k.block_grid[1:], "blocks of unlike frames"
    at_q, at_k = (
        torch.cartesian_prod(*(torch.arange(n) for n in layout.block_grid))
        for layout in (layout_q, layout_k)
    )
    time, row, column = (at_k[None] - at_q[:, None]).unbind(-1)
    return time - start, row, column
