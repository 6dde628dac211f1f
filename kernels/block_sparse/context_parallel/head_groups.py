"""All-gather of keys and values for a few heads at a time.

While one group of heads is computed, the next one's keys and values travel. One kernel call per
group sees all keys, so nothing is merged; memory holds two groups. In the backward pass keys and
values travel again, and every rank's share of dK and dV goes to the owner, who adds the shares in
the order of the ranks.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longtake.kernels.block_sparse.context_parallel.exchange import (
    Pending,
    from_rows,
    start_all_gather,
    start_all_to_all,
    to_rows,
)
from longtake.kernels.block_sparse.context_parallel.placement import Blocks, Options, Placement
from longtake.kernels.block_sparse.context_parallel.selecting import select_global
from longtake.kernels.block_sparse.index import BlockIndex
from longtake.kernels.block_sparse.reference import empty_in_order_of, empty_outputs

#: Key heads that travel together. Fewer need less memory; more make longer messages.
HEADS_PER_GROUP = 4


def head_group_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Placement,
    rule: Mapping[str, Any],
    options: Options,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention of this rank's queries; differentiable.

    Args:
        q: this rank's queries [B, Hq, n, D].
        k: this rank's keys [B, Hk, m, D].
        v: as ``k``.
        place: ranks and shards.
        rule: arguments of :func:`longtake.kernels.block_sparse.selection.select_from_pooled`.
        options: options of the operator.
        return_lse: not needed here.

    Returns:
        Output [B, Hq, n, D] and log-sum-exp [B, Hq, n].

    Raises:
        UserError: a wrong rule.
    """
    return attend_in_head_groups(q, k, v, select_global(q, k, place, rule), place, options)


def attend_in_head_groups(
    q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, place: Placement, options: Options
) -> tuple[Tensor, Tensor]:
    """Attention from an index [B, Hq, query blocks of this rank, R] over all key blocks."""
    o, lse = _HeadGroups.apply(q, k, v, index.indices, index.counts, place, options)
    return o, lse


class _HeadGroups(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        indices: Tensor,
        counts: Tensor,
        place: Placement,
        options: Options,
    ) -> tuple[Tensor, Tensor]:
        o, lse = empty_outputs(q)
        for _, heads, blocks in _gathered(q, k, v, indices, counts, place):
            o[:, heads], lse[:, heads] = blocks.forward(options)
        ctx.save_for_backward(q, k, v, o, lse, indices, counts)
        ctx.place, ctx.options = place, options
        ctx.set_materialize_grads(False)
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        do, dlse = grads
        q, k, v, o, lse, indices, counts = ctx.saved_tensors
        do = torch.zeros_like(o) if do is None else do
        dq, dk, dv = (empty_in_order_of(x) for x in (q, k, v))
        place: Placement = ctx.place
        tokens = place.keys.tokens
        received = [k.shape[2]] * place.num_ranks
        leaving: tuple[slice, Pending] | None = None
        for key_heads, heads, blocks in _gathered(q, k, v, indices, counts, place):
            one_dlse = None if dlse is None else dlse[:, heads]
            dq[:, heads], *shares = blocks.backward(
                do[:, heads], o[:, heads], lse[:, heads], one_dlse, ctx.options
            )
            if leaving is not None:
                _add_shares(dk, dv, *leaving, place.num_ranks)
            pending = start_all_to_all(to_rows(*shares), tokens, received, place.group)
            leaving = key_heads, pending
        if leaving is not None:
            _add_shares(dk, dv, *leaving, place.num_ranks)
        return dq, dk, dv, None, None, None, None


def _gathered(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, counts: Tensor, place: Placement
) -> Iterator[tuple[slice, slice, Blocks]]:
    """(key heads, query heads, their blocks) of every group, with all ranks' keys.

    The next group is on its way while the caller works on one.
    """
    groups = [
        slice(first, min(first + HEADS_PER_GROUP, k.shape[1]))
        for first in range(0, k.shape[1], HEADS_PER_GROUP)
    ]
    share = q.shape[1] // k.shape[1]
    tokens = place.keys.tokens
    q_offsets = place.queries.offsets(place.rank, q.device)
    k_offsets = place.keys.layout.offsets(q.device)

    def start(group: slice) -> Pending:
        return start_all_gather(to_rows(k[:, group], v[:, group]), tokens, place.group)

    coming = start(groups[0])
    for group, following in zip(groups, [*groups[1:], None], strict=True):
        k_all, v_all = from_rows(coming.wait())
        if following is not None:
            coming = start(following)
        heads = slice(group.start * share, group.stop * share)
        yield (
            group,
            heads,
            Blocks(
                q=q[:, heads],
                k=k_all,
                v=v_all,
                indices=indices[:, heads],
                counts=counts[:, heads],
                q_offsets=q_offsets,
                k_offsets=k_offsets,
                block_q=place.queries.layout.max_block_size,
                block_k=place.keys.layout.max_block_size,
            ),
        )


def _add_shares(dk: Tensor, dv: Tensor, heads: slice, arriving: Pending, num_ranks: int) -> None:
    """Gradients of this rank's keys and values: the sum of what all ranks found."""
    wide = torch.promote_types(dk.dtype, torch.float32)
    shares = arriving.wait().unflatten(0, (num_ranks, dk.shape[2]))
    dk[:, heads], dv[:, heads] = from_rows(shares.sum(0, dtype=wide))
