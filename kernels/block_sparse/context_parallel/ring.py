"""The ring of Appendix A.2.2: keys and values travel from rank to rank, and results are merged.

Block means of all keys are gathered first, so that every query block selects among all blocks. In
step s a rank attends to the selected blocks of the rank s places before it while the next keys
arrive. The report does not describe the backward pass: here keys and values travel once more, and
with them, one step behind, their gradients in float32, which are home after the last step. (What
a rank adds to them, and its partial outputs, come from the operator in the type of the inputs.)
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longtake.kernels.block_sparse.api import block_sparse_backward, block_sparse_forward
from longtake.kernels.block_sparse.context_parallel.comm import (
    Pending,
    from_rows,
    start_all_gather,
    start_pass_on,
    to_rows,
)
from longtake.kernels.block_sparse.context_parallel.shards import Mesh, narrow_kept
from longtake.kernels.block_sparse.index import BlockIndex, BlockPairs
from longtake.kernels.block_sparse.reference import empty_in_order_of, empty_outputs
from longtake.kernels.block_sparse.select import Rule, select_from_pooled


def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, mesh: Mesh, rule: Rule, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention of this rank's queries [B, Hq, n, D] to the keys of all; differentiable.

    Returns:
        Output [B, Hq, n, D] and log-sum-exp [B, Hq, n], which costs nothing here.
    """
    o, lse = _Ring.apply(q, k, v, select_global(q, k, mesh, rule).indices, mesh)
    return o, lse


@torch.no_grad()
def select_global(q: Tensor, k: Tensor, mesh: Mesh, rule: Rule) -> BlockIndex:
    """Select key blocks of all ranks for the query blocks of this one.

    Only block means travel: 1/64 of the keys for blocks of 64 tokens.

    Returns:
        The index [B, Hq, query blocks of this rank, R] over the key blocks of all ranks.
    """
    first, stop = mesh.queries.block_range(mesh.rank)
    total = mesh.queries.layout.num_blocks
    # Keys first: their means travel while those of the queries are computed.
    k_pool = mesh.keys.pool(k, mesh.rank, mesh.backend)
    coming = start_all_gather(to_rows(k_pool), mesh.keys.blocks, mesh.group)
    must_keep = narrow_kept(rule.get("must_keep"), 2, first, stop - first, total)
    own: Rule = {**rule, "must_keep": must_keep if first < stop else None}
    q_pool = mesh.queries.pool(q, mesh.rank, mesh.backend)
    (k_pool,) = from_rows(coming.wait())
    if first == stop:  # kernels are not launched on nothing, but a wrong rule is refused here too
        q_pool = q_pool.new_zeros((*q_pool.shape[:2], 1, q_pool.shape[-1]))
    index = select_from_pooled(q_pool, k_pool, scale=mesh.scale, backend=mesh.backend, **own)
    lists, counts = index.indices[:, :, : stop - first], index.counts[:, :, : stop - first]
    return BlockIndex(lists, counts, index.num_key_blocks)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, indices: Tensor, mesh: Mesh
    ) -> tuple[Tensor, Tensor]:
        # Merged in float32: rounding after each of R steps would add up.
        wide = torch.promote_types(q.dtype, torch.float32)
        total: Tensor | None = None
        for k_here, v_here, pairs, _ in _steps(q, k, v, indices, mesh):
            if q.shape[2] and k_here.shape[2]:
                part = block_sparse_forward(
                    q, k_here, v_here, *pairs.flat(), mesh.scale, mesh.backend
                )
            else:  # kernels are not launched on nothing
                part_o, part_lse = empty_outputs(q)
                part = part_o.zero_(), part_lse.fill_(-torch.inf)
            if total is None:
                total, lse = part[0].to(wide, copy=True), part[1]
            else:
                merge_into(total, lse, *part)
        assert total is not None
        o = empty_in_order_of(q).copy_(total)
        ctx.save_for_backward(q, k, v, o, lse, indices)
        ctx.mesh = mesh
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
        mesh: Mesh = ctx.mesh
        homeward: Pending | None = None
        for k_here, v_here, pairs, next_tokens in _steps(q, k, v, indices, mesh):
            if q.shape[2] and k_here.shape[2]:
                dq_part, *share = block_sparse_backward(
                    do, q, k_here, v_here, o, lse, dlse, *pairs.flat(), mesh.scale, mesh.backend
                )
                dq += dq_part
                gradient = to_rows(*share).to(wide)
            else:
                # Sent all the same: a rank that skips a message would leave its neighbour waiting.
                gradient = torch.zeros_like(to_rows(k_here, v_here), dtype=wide)
            if homeward is not None:
                # Gradients of a stretch of keys follow it, one step behind, and gather shares.
                gradient += homeward.wait()
            homeward = start_pass_on(gradient, next_tokens, mesh.group)
        assert homeward is not None
        # After R steps the gradients of this rank's own keys have come home.
        dk, dv = (
            empty_in_order_of(x).copy_(arrived)
            for x, arrived in zip((k, v), from_rows(homeward.wait()), strict=True)
        )
        return empty_in_order_of(q).copy_(dq), dk, dv, None, None


def _steps(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, mesh: Mesh
) -> Iterator[tuple[Tensor, Tensor, BlockPairs, int]]:
    """(keys, values, blocks that meet, tokens that the previous rank holds) of every step.

    The next step's keys are on their way while the caller works on one.
    """
    tokens = mesh.keys.tokens
    queries = mesh.queries.blocks_of(mesh.rank, q.device)
    rows, coming = to_rows(k, v), None
    for step in range(mesh.num_ranks):
        owner = (mesh.rank - step) % mesh.num_ranks
        before = tokens[owner - 1]  # the last rank's for owner 0
        if coming is not None:
            rows = coming.wait()
        if step + 1 < mesh.num_ranks:
            coming = start_pass_on(rows, before, mesh.group)
        # Every rank cuts its own lists: global numbers never travel.
        keys = mesh.keys.blocks_of(owner, q.device)
        lists, counts = lists_within(indices, *mesh.keys.block_range(owner))
        index = BlockIndex(lists, counts, max(keys.count, 1))
        k_here, v_here = from_rows(rows)
        yield k_here, v_here, BlockPairs(index, queries, keys), before


def lists_within(indices: Tensor, first: int, stop: int) -> tuple[Tensor, Tensor]:
    """The part of every list that lies in the key blocks from ``first`` up to ``stop``.

    Lists int32 [B, H, Nq, min(R, stop - first)], counted from ``first``, and int32 counts.
    """
    width = indices.shape[-1]
    # Lists ascend, so the part in a stretch is contiguous: a gather, no search.
    before = ((indices >= 0) & (indices < first)).sum(-1, keepdim=True)
    counts = ((indices >= first) & (indices < stop)).sum(-1, dtype=torch.int32)
    slot = torch.arange(min(width, stop - first), device=indices.device)
    listed = indices.gather(-1, (before + slot).clamp(max=width - 1)) - first
    return torch.where(slot < counts[..., None], listed, -1), counts


def merge_into(o: Tensor, lse: Tensor, part_o: Tensor, part_lse: Tensor) -> None:
    """Add the result over further keys to the result so far, in place.

    With softmax weights w = exp(lse) and w' = exp(part_lse): o <- (w o + w' o') / (w + w') and
    lse <- log(w + w'), computed relative to the larger one. A query that saw no key so far, or
    sees none in this part (lse -inf, output 0), keeps the other result bit for bit.
    """
    top = lse.maximum(part_lse)
    top = top.masked_fill(top == -math.inf, 0.0)  # -inf - -inf would be NaN
    weight, part_weight = (lse - top).exp(), (part_lse - top).exp()
    total = weight + part_weight
    lse.copy_(top + total.log())
    # Neither part saw a key: 0 / 0 would be NaN, and 0 is right.
    total = total.masked_fill(total == 0, 1.0)
    o.mul_((weight / total)[..., None]).add_(part_o * (part_weight / total)[..., None])
