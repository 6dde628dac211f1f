"""Block-sparse attention over tokens that several ranks share (Appendix A.2.2), for users."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, Unpack

import torch.distributed as dist
from torch import Tensor

from longtake.kernels.block_sparse.api import cast_as_autocast, check_tensors
from longtake.kernels.block_sparse.context_parallel.ring import ring_attention
from longtake.kernels.block_sparse.context_parallel.shards import BlockShards, Mesh
from longtake.kernels.block_sparse.context_parallel.ulysses import ulysses_attention
from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.kernels.block_sparse.select import Rule, score_scale
from longtake.runtime.errors import UserError

#: How tokens meet; see :func:`context_parallel_attention`.
Mode: TypeAlias = Literal["ulysses", "ring"]

#: Implementations by name.
MODES = {"ulysses": ulysses_attention, "ring": ring_attention}


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
    scale: float | None = None,
    heads_first: bool = True,
    return_lse: bool = False,
    backend: str = "auto",
    **rule: Unpack[Rule],
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of this rank's queries to the selected key blocks of all ranks.

    Every rank of the group calls this with its own tokens and equal options. Tokens lie in block
    order, and a rank owns whole blocks (:class:`BlockShards`). What travels, per rank, with the
    bytes of its share of q, k and v as the unit n (equal grids, R ranks):

    - "ulysses": q, k, v and the output once, 4 n (R - 1) / R. The default: least traffic, and the
      result is bitwise that of one device, but R has to divide both numbers of heads.
    - "ring": all keys and values, 2 n (R - 1), in R - 1 steps, and block means; in the backward
      pass again, with their gradients. Any number of heads, and memory does not grow with R, but
      partial results are merged, and every step takes as long as the slowest rank.

    An error on one rank alone, such as a wrong number of tokens, leaves the others waiting until
    the timeout of the group.

    Args:
        q: [B, Hq, n, D], or [B, n, Hq, D] with ``heads_first=False``; this rank's queries.
        k: [B, Hk, m, D] or [B, m, Hk, D]; Hk divides Hq.
        v: as ``k``.
        layout_q: layout of the queries of all ranks.
        layout_k: layout of the keys of all ranks; ``layout_q`` by default.
        mode: "ulysses" or "ring".
        group: the ranks; None for all.
        blocks_q: query blocks of every rank, also 0; an even split by default.
        blocks_k: key blocks of every rank; without ``layout_k`` as ``blocks_q`` by default.
        scale: and the other options as in
            :func:`longtake.kernels.block_sparse.block_sparse_attention`.
        heads_first: order of the axes.
        return_lse: also return the log-sum-exp.
        backend: implementation of the operator.
        rule: which key blocks; ``must_keep`` is over the query blocks and heads of all ranks.

    Returns:
        The output in the shape and type of ``q``; with ``return_lse`` also the natural-log
        log-sum-exp [B, Hq, n].
    """
    assert mode in MODES, f"mode {mode!r}: expected one of {', '.join(MODES)}"
    rank, size = _rank_and_size(group)
    if layout_k is None:
        layout_k, blocks_k = layout_q, blocks_q if blocks_k is None else blocks_k
    q, k, v = cast_as_autocast(q, k, v)
    # The scale is fixed before heads are dealt: every rank has to use the same.
    mesh = Mesh(
        group=group,
        rank=rank,
        queries=BlockShards.of(layout_q, size, blocks_q),
        keys=BlockShards.of(layout_k, size, blocks_k),
        scale=score_scale(scale, q.shape[-1]),
        backend=backend,
    )
    tokens = mesh.queries.tokens[rank], mesh.keys.tokens[rank]
    grids = f"the blocks of rank {rank}: {mesh.queries.blocks} of {layout_q.grid}, "
    grids += f"{mesh.keys.blocks} of {layout_k.grid}; cut with BlockShards.local"
    check_tensors(q, k, v, tokens, heads_first, grids)
    if not heads_first:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    # Only the last axis: views of one projection stay views until they are packed for sending.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    run = MODES[mode] if size > 1 else ulysses_attention  # one rank has nobody to send to
    o, lse = run(q, k, v, mesh, rule, return_lse)
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
    assert rank >= 0, "this rank is not in the group"
    return rank, dist.get_world_size(group)
