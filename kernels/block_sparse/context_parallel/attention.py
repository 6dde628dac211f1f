"""Block-sparse attention over tokens that several ranks share (Appendix A.2.2), for users."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch.distributed as dist
from torch import Tensor

from longtake.kernels.block_sparse.attention import _autocast
from longtake.kernels.block_sparse.context_parallel.head_groups import head_group_attention
from longtake.kernels.block_sparse.context_parallel.placement import Options, Placement
from longtake.kernels.block_sparse.context_parallel.ring import ring_attention
from longtake.kernels.block_sparse.context_parallel.sharding import shards_of
from longtake.kernels.block_sparse.context_parallel.ulysses import ulysses_attention
from longtake.kernels.block_sparse.index import BlockIndex
from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.kernels.block_sparse.selection import score_scale
from longtake.runtime.errors import UserError

#: How tokens meet; see :func:`context_parallel_attention`.
Mode: TypeAlias = Literal["ulysses", "allgather", "ring"]

MODES: dict[str, Callable[..., tuple[Tensor, Tensor | None]]] = {
    "ulysses": ulysses_attention,
    "allgather": head_group_attention,
    "ring": ring_attention,
}
"""Implementations by name."""


def context_parallel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout_q: BlockLayout,
    layout_k: BlockLayout | None = None,
    mode: Mode = "ulysses",
    group: dist.ProcessGroup | None = None,
    blocks_q: Sequence[int] | None = None,
    blocks_k: Sequence[int] | None = None,
    topk: int | None = None,
    sparsity: float | None = None,
    cdf_p: float | None = None,
    min_blocks: int = 1,
    max_blocks: int | None = None,
    must_keep: Tensor | BlockIndex | None = None,
    scale: float | None = None,
    heads_first: bool = True,
    deterministic: bool = True,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of this rank's queries to the selected key blocks of all ranks.

    Every rank of the group calls this with its own tokens and equal options. Tokens lie in block
    order, and a rank owns whole blocks (:class:`BlockShards`). What travels, per rank, with the
    bytes of its share of q, k and v as the unit n (equal grids, R ranks):

    - "ulysses": q, k, v and the output once, 4 n (R - 1) / R. The default: least traffic, and the
      result is bitwise that of one device, but R has to divide both numbers of heads.
    - "allgather": all keys and values, 2 n (R - 1), a few heads at a time. Any number of heads;
      results equal one device's up to rounding. Holds all tokens of two groups of heads.
    - "ring": the same traffic in R - 1 steps. Memory does not grow with R, but partial results are
      merged, and every step takes as long as the slowest rank.

    The last two also gather block means, and move keys, values and their gradients in the backward
    pass. Gradients flow through the attention, not through the selection.

    Args:
        q: [B, Hq, n, D], or [B, n, Hq, D] with ``heads_first=False``; this rank's queries.
        k: [B, Hk, m, D] or [B, m, Hk, D]; Hk divides Hq.
        v: as ``k``.
        layout_q: layout of the queries of all ranks.
        layout_k: layout of the keys of all ranks; ``layout_q`` by default.
        mode: "ulysses", "allgather" or "ring".
        group: the ranks; None for all.
        blocks_q: query blocks of every rank, also 0; an even split by default.
        blocks_k: key blocks of every rank; without ``layout_k`` as ``blocks_q`` by default.
        topk: rules and options as in
            :func:`longtake.kernels.block_sparse.attention.block_sparse_attention`.
        sparsity: share of key blocks left out.
        cdf_p: share of mass.
        min_blocks: lower bound.
        max_blocks: upper bound.
        must_keep: blocks that are always selected, over the query blocks and heads of all ranks.
        scale: factor of the scores, 1 / sqrt(D) by default.
        heads_first: order of the axes.
        deterministic: whether gradients are bitwise equal from run to run.
        return_lse: also return the log-sum-exp.
        backend: implementation of the operator.

    Returns:
        The output in the shape and type of ``q``; with ``return_lse`` also the natural-log
        log-sum-exp [B, Hq, n].

    Raises:
        UserError: no process group, or tensors, layouts, ranks and rules that do not fit together.
            An error on one rank alone, such as a wrong number of tokens, leaves the others waiting
            until the timeout of the group.
    """
    if mode not in MODES:
        raise UserError(
            "unknown mode of context parallelism",
            received=mode,
            expected=", ".join(MODES),
            remedy='use "ulysses"',
        )
    rank, size = _rank_and_size(group)
    if layout_k is None:
        layout_k, blocks_k = layout_q, blocks_q if blocks_k is None else blocks_k
    place = Placement(
        group=group,
        rank=rank,
        queries=shards_of(layout_q, blocks_q, size, "blocks_q"),
        keys=shards_of(layout_k, blocks_k, size, "blocks_k"),
    )
    q, k, v = _autocast(q, k, v)
    if not heads_first:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    _check_tensors(q, k, v, place)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    scale = score_scale(scale, q.shape[-1])
    rule = {
        "topk": topk,
        "sparsity": sparsity,
        "cdf_p": cdf_p,
        "min_blocks": min_blocks,
        "max_blocks": max_blocks,
        "must_keep": must_keep,
        "scale": scale,
        "backend": backend,
    }
    options = Options(scale=scale, backend=backend, deterministic=deterministic)
    run = MODES[mode] if size > 1 else ulysses_attention  # one rank has nobody to send to
    o, lse = run(q, k, v, place, rule, options, return_lse)
    if not heads_first:
        o = o.transpose(1, 2)
    return o if lse is None or not return_lse else (o, lse)


def _rank_and_size(group: dist.ProcessGroup | None) -> tuple[int, int]:
    if not dist.is_available() or not dist.is_initialized():
        raise UserError(
            "context parallelism needs a process group",
            received="none",
            expected="torch.distributed, initialised",
            remedy="start with torchrun and call torch.distributed.init_process_group",
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise UserError(
            "this rank is not in the group",
            received=f"rank {dist.get_rank()} of all",
            expected="a rank of the group",
            remedy="call this on the ranks of the group only",
        )
    return rank, dist.get_world_size(group)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, place: Placement) -> None:
    """Check [B, H, n, D] tensors against each other and against this rank's shards."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} as [B, H, n, D]"
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[::3] == k.shape[::3]
    if not fits or q.shape[1] % k.shape[1]:
        raise UserError(
            "queries, keys and values do not fit together",
            received=shapes,
            expected="one batch size and head size, equal k and v, key heads that divide q's",
            remedy="check heads_first",
        )
    kinds = {(x.dtype, x.device) for x in (q, k, v)}
    if len(kinds) > 1 or not q.is_floating_point():
        raise UserError(
            "queries, keys and values of unlike or non-float types, or on several devices",
            received=", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v)),
            expected="one float type and one device",
            remedy="cast or move them",
        )
    want = place.queries.tokens[place.rank], place.keys.tokens[place.rank]
    if (q.shape[2], k.shape[2]) != want:
        raise UserError(
            "the tensors do not have the tokens of this rank's blocks",
            received=f"{shapes} on rank {place.rank}",
            expected=f"{want[0]} query and {want[1]} key tokens: blocks {place.queries.blocks} of "
            f"{place.queries.layout.grid} and {place.keys.blocks} of {place.keys.layout.grid}",
            remedy="cut them with BlockShards.local, or check heads_first",
        )
