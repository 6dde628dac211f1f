"""Ulysses: every rank gets all tokens of some heads, attends alone, and sends the result back.

Shards of whole blocks in block order arrive in block order, so each head sees what one device
would show it: the result is that of one device, and ragged grids or any number of blocks fit.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longtake.kernels.block_sparse.api import attention_from_index
from longtake.kernels.block_sparse.context_parallel.comm import Pending, start_all_to_all
from longtake.kernels.block_sparse.context_parallel.shards import (
    BlockShards,
    Mesh,
    narrow_kept,
)
from longtake.kernels.block_sparse.reference import empty_in_order_of
from longtake.kernels.block_sparse.select import Rule, select_blocks
from longtake.runtime.errors import UserError


def ulysses_attention(
    q: Tensor, k: Tensor, v: Tensor, mesh: Mesh, rule: Rule, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention of this rank's queries [B, Hq, n, D] to the keys of all; differentiable.

    Returns:
        Output [B, Hq, n, D], and the log-sum-exp [B, Hq, n] if asked for: it has to travel too.
    """
    # Heads are independent, so the bits are those of one device: nothing has to be merged.
    ranks, heads = mesh.num_ranks, q.shape[1]
    if heads % ranks or k.shape[1] % ranks:
        raise UserError(
            "Ulysses cannot deal the heads to the ranks",
            received=f"{heads} query heads, {k.shape[1]} key heads, {ranks} ranks",
            expected="numbers of heads that the number of ranks divides",
            remedy='use mode="ring", or fewer ranks',
        )
    queries, keys = mesh.queries, mesh.keys
    # Taken out one by one, so that what was sent is not kept during the attention.
    coming = [_start_to_heads(x, s, mesh) for x, s in ((q, queries), (k, keys), (v, keys))]
    q_all = _ToHeads.apply(q, coming.pop(0), queries, mesh)
    k_all = _ToHeads.apply(k, coming.pop(0), keys, mesh)
    mine = heads // ranks
    must_keep = narrow_kept(rule.get("must_keep"), 1, mesh.rank * mine, mine, heads)
    # Blocks to keep are given for all heads; this rank selects for its own only.
    own: Rule = {**rule, "must_keep": must_keep}
    scale, backend, layouts = mesh.scale, mesh.backend, (queries.layout, keys.layout)
    index = select_blocks(q_all, k_all, *layouts, scale=scale, backend=backend, **own)
    v_all = _ToHeads.apply(v, coming.pop(0), keys, mesh)  # values travel during the selection
    o_all, lse_all = attention_from_index(
        q_all, k_all, v_all, index, *layouts,
        scale=scale, layout="block", return_lse=True, backend=backend,
    )  # fmt: skip
    o = _ToTokens.apply(o_all, q.detach(), queries, mesh)
    if not return_lse:
        return o, None
    # Sent as values of a head of size 1: the same transfer serves.
    like = lse_all.new_empty((*q.shape[:3], 1))
    return o, _ToTokens.apply(lse_all[..., None], like, queries, mesh)[..., 0]


class _ToHeads(torch.autograd.Function):
    """All ranks' tokens of this rank's heads."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, coming: Pending, shards: BlockShards, mesh: Mesh) -> Tensor:
        ctx.shape, ctx.shards, ctx.mesh = x.shape, shards, mesh
        return coming.wait().permute(1, 2, 0, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        # What went to the heads comes back: the gradient of one transfer is the other one.
        room = grads[0].new_empty(ctx.shape)
        return _to_tokens(grads[0], room, ctx.shards, ctx.mesh), None, None, None


class _ToTokens(torch.autograd.Function):
    """This rank's tokens of all heads: undoes :class:`_ToHeads`, in the order of ``like``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, like: Tensor, shards: BlockShards, mesh: Mesh) -> Tensor:
        ctx.shards, ctx.mesh = shards, mesh
        return _to_tokens(x, empty_in_order_of(like), shards, mesh)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        coming = _start_to_heads(grads[0], ctx.shards, ctx.mesh)
        return coming.wait().permute(1, 2, 0, 3), None, None, None


def _start_to_heads(x: Tensor, shards: BlockShards, mesh: Mesh) -> Pending:
    """Send every rank its heads of [B, H, n, D]; its own tokens [N, B, H / ranks, D] come."""
    rows = x.unflatten(1, (mesh.num_ranks, -1)).permute(1, 3, 0, 2, 4)
    rows = rows.reshape(-1, *rows.shape[2:]).contiguous()
    sent = [x.shape[2]] * mesh.num_ranks
    return start_all_to_all(rows, sent, shards.tokens, mesh.group)


def _to_tokens(x: Tensor, room: Tensor, shards: BlockShards, mesh: Mesh) -> Tensor:
    """Send every rank its tokens of [B, H / ranks, N, D]; fills ``room`` [B, H, n, D]."""
    ranks, here = mesh.num_ranks, room.shape[2]
    # Tokens first: what one rank gets is then one piece of memory.
    rows = x.permute(2, 0, 1, 3).contiguous()
    coming = start_all_to_all(rows, shards.tokens, [here] * ranks, mesh.group)
    parts = coming.wait().unflatten(0, (ranks, here)).permute(2, 0, 3, 1, 4)
    room.unflatten(1, (ranks, -1)).copy_(parts)
    return room
