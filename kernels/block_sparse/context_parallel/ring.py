"""The ring of Appendix A.2.2: keys and values travel from rank to rank, and results are merged.

Block means of all keys are gathered first, so that every query block selects among all blocks. In
step s a rank attends to the selected blocks of the rank s places before it while the next keys
arrive. The report does not describe the backward pass: here keys and values travel once more, and
with them, one step behind, their gradients in float32, which are home after the last step. (What
a rank adds to them, and its partial outputs, come from the operator in the type of the inputs.)
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longtake.kernels.block_sparse.context_parallel.exchange import (
    Pending,
    from_rows,
    start_pass_on,
    to_rows,
)
from longtake.kernels.block_sparse.context_parallel.merge import merge_into
from longtake.kernels.block_sparse.context_parallel.placement import Blocks, Options, Placement
from longtake.kernels.block_sparse.context_parallel.selecting import select_global
from longtake.kernels.block_sparse.index import BlockIndex
from longtake.kernels.block_sparse.reference import empty_in_order_of


def ring_attention(
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
    return attend_in_ring(q, k, v, select_global(q, k, place, rule), place, options)


def attend_in_ring(
    q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, place: Placement, options: Options
) -> tuple[Tensor, Tensor]:
    """Attention from an index [B, Hq, query blocks of this rank, R] over all key blocks."""
    o, lse = _Ring.apply(q, k, v, index.indices, index.counts, place, options)
    return o, lse


class _Ring(torch.autograd.Function):
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
        wide = torch.promote_types(q.dtype, torch.float32)
        total: Tensor | None = None
        for blocks, _ in _steps(q, k, v, indices, place):
            part_o, part_lse = blocks.forward(options)
            if total is None:
                total, lse = part_o.to(wide, copy=True), part_lse
            else:
                merge_into(total, lse, part_o, part_lse)
        assert total is not None
        o = empty_in_order_of(q).copy_(total)
        ctx.save_for_backward(q, k, v, o, lse, indices)
        ctx.place, ctx.options = place, options
        ctx.set_materialize_grads(False)
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        do, dlse = grads
        q, k, v, o, lse, indices = ctx.saved_tensors
        do = torch.zeros_like(o) if do is None else do
        wide = torch.promote_types(q.dtype, torch.float32)
        dq = torch.zeros_like(q, dtype=wide)
        place: Placement = ctx.place
        homeward: Pending | None = None
        for blocks, next_tokens in _steps(q, k, v, indices, place):
            dq_part, *share = blocks.backward(do, o, lse, dlse, ctx.options)
            dq += dq_part
            gradient = to_rows(*share).to(wide)
            if homeward is not None:
                gradient += homeward.wait()
            homeward = start_pass_on(gradient, next_tokens, place.group)
        assert homeward is not None
        dk, dv = (empty_in_order_of(x) for x in (k, v))
        for mine, found in zip((dk, dv), from_rows(homeward.wait()), strict=True):
            mine.copy_(found)
        return empty_in_order_of(q).copy_(dq), dk, dv, None, None, None, None


def _steps(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, place: Placement
) -> Iterator[tuple[Blocks, int]]:
    """(blocks that meet here, tokens that the previous rank holds) of every step.

    The next step's keys are on their way while the caller works on one.
    """
    tokens = place.keys.tokens
    q_offsets = place.queries.offsets(place.rank, q.device)
    rows, coming = to_rows(k, v), None
    for step in range(place.num_ranks):
        owner = (place.rank - step) % place.num_ranks
        before = tokens[owner - 1]  # the last rank's for owner 0
        if coming is not None:
            rows = coming.wait()
        if step + 1 < place.num_ranks:
            coming = start_pass_on(rows, before, place.group)
        k_here, v_here = from_rows(rows)
        listed, counts = lists_within(indices, *place.keys.block_range(owner))
        blocks = Blocks(
            q=q,
            k=k_here,
            v=v_here,
            indices=listed,
            counts=counts,
            q_offsets=q_offsets,
            k_offsets=place.keys.offsets(owner, q.device),
            block_q=place.queries.layout.max_block_size,
            block_k=place.keys.layout.max_block_size,
        )
        yield blocks, before


def lists_within(indices: Tensor, first: int, stop: int) -> tuple[Tensor, Tensor]:
    """The part of every list that lies in some stretch of key blocks.

    Args:
        indices: int32 [B, H, Nq, R], ascending, -1 in unused slots.
        first: first block of the stretch.
        stop: the block behind its last.

    Returns:
        Lists int32 [B, H, Nq, min(R, stop - first)], counted from ``first``, and int32 counts.
    """
    width = indices.shape[-1]
    before = ((indices >= 0) & (indices < first)).sum(-1, keepdim=True)
    counts = ((indices >= first) & (indices < stop)).sum(-1, dtype=torch.int32)
    slot = torch.arange(min(width, stop - first), device=indices.device)
    listed = indices.gather(-1, (before + slot).clamp(max=width - 1)) - first
    return torch.where(slot < counts[..., None], listed, -1), counts
