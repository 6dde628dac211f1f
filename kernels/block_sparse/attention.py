"""Block-sparse attention for users: from queries, keys and a rule, or from a block index.

Section 3.4.2: key blocks are selected by pooled scores, and every query attends to the keys of the
blocks selected for its block. Where a rule selects all blocks the result is dense attention, and
``backend="auto"`` calls PyTorch's.
"""

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.kernels.block_sparse.index import BlockIndex
from longtake.kernels.block_sparse.layout import BlockLayout, Size3
from longtake.kernels.block_sparse.operator import block_sparse_forward
from longtake.kernels.block_sparse.selection import count_from_rule, score_scale, select_blocks
from longtake.runtime.errors import UserError

#: Order of the tokens in the tensors: plain [T, H, W], or block order.
TokenOrder: TypeAlias = Literal["thw", "block"]


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid_q: Size3,
    grid_k: Size3 | None = None,
    block_q: Size3 = (4, 4, 4),
    block_k: Size3 = (4, 4, 4),
    topk: int | None = None,
    sparsity: float | None = None,
    cdf_p: float | None = None,
    min_blocks: int = 1,
    max_blocks: int | None = None,
    must_keep: Tensor | BlockIndex | None = None,
    scale: float | None = None,
    layout: TokenOrder = "thw",
    heads_first: bool = True,
    deterministic: bool = True,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention in which every block of queries reads the key blocks that suit it best.

    Gradients flow through the attention, not through the selection.

    Args:
        q: [B, Hq, N, D], or [B, N, Hq, D] with ``heads_first=False``; bfloat16, float16 or
            float32 with D 64 or 128 on a GPU, any float type and D on a CPU.
        k: [B, Hk, M, D] or [B, M, Hk, D]; query head h reads key head h // (Hq / Hk), an integer.
        v: as ``k``.
        grid_q: (T, H, W) of the queries, N tokens; any sizes, blocks at the edges are smaller.
        grid_k: (T, H, W) of the keys, M tokens; ``grid_q`` by default.
        block_q: (t, h, w) of a query block.
        block_k: (t, h, w) of a key block.
        topk: key blocks per query block; see
            :func:`longtake.kernels.block_sparse.selection.select_from_pooled` for the rules.
        sparsity: share of key blocks left out, instead of ``topk``; 0.9375 in the published model.
        cdf_p: smallest set of key blocks with this share of the pooled softmax.
        min_blocks: key blocks that every query block gets at least.
        max_blocks: length of the block lists, which bounds their memory under ``cdf_p``.
        must_keep: key blocks that are selected whatever their score.
        scale: factor of the scores, 1 / sqrt(D) by default.
        layout: "thw" for tokens in plain order, which are copied into block order and back;
            "block" for tokens that already lie in block order (:class:`BlockLayout`): no copies.
        heads_first: which of the middle axes of q, k, v and the output is the heads; a view
            either way.
        deterministic: gradients bitwise equal from run to run.
        return_lse: also return the log-sum-exp.
        backend: "auto", "triton" or "gluon" (GPU), or "reference" (PyTorch, any device).

    Returns:
        The output in the shape, type and token order of ``q``; with ``return_lse`` also the
        natural-log log-sum-exp [B, Hq, N] of the scaled scores, float32 or, for float64, float64.

    Raises:
        UserError: tensors, grids or rules that do not fit together.
    """
    layout_q = BlockLayout(grid_q, block_q)
    layout_k = BlockLayout(grid_q if grid_k is None else grid_k, block_k)
    q, k, v = _autocast(q, k, v)
    _check_tensors(q, k, v, layout_q, layout_k, heads_first)
    scale = score_scale(scale, q.shape[-1])
    count = count_from_rule(layout_k.num_blocks, topk=topk, sparsity=sparsity)
    others = (cdf_p, max_blocks, must_keep)
    everything = count == layout_k.num_blocks and all(option is None for option in others)
    if everything and backend == "auto" and not return_lse:
        # Dense attention does not depend on the order of the keys: no copies either.
        return _dense(q, k, v, scale, heads_first)
    q, k, v = _enter(q, k, v, layout_q, layout_k, layout, heads_first)
    index = select_blocks(
        q,
        k,
        layout_q,
        layout_k,
        topk=topk,
        sparsity=sparsity,
        cdf_p=cdf_p,
        min_blocks=min_blocks,
        max_blocks=max_blocks,
        must_keep=must_keep,
        scale=scale,
        backend=backend,
    )
    o, lse = _attend(q, k, v, index, layout_q, layout_k, scale, backend, deterministic)
    o, lse = _leave(o, lse, layout_q, layout, heads_first)
    return (o, lse) if return_lse else o


def attention_from_index(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: BlockIndex,
    layout_q: BlockLayout,
    layout_k: BlockLayout,
    *,
    scale: float | None = None,
    layout: TokenOrder = "thw",
    heads_first: bool = True,
    deterministic: bool = True,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention in which every block of queries reads the key blocks of its list.

    Args:
        q: queries, as in :func:`block_sparse_attention`, which explains the options too.
        k: keys.
        v: values.
        index: lists for [B or 1, Hq or 1, Nq] query blocks over Nk key blocks.
        layout_q: layout of the queries.
        layout_k: layout of the keys.
        scale: factor of the scores.
        layout: order of the tokens in the tensors.
        heads_first: order of the axes.
        deterministic: whether gradients are bitwise equal from run to run.
        return_lse: also return the log-sum-exp.
        backend: implementation.

    Returns:
        As :func:`block_sparse_attention`. Queries with an empty list get 0 and -inf, and no
        gradient.

    Raises:
        UserError: tensors, layouts or lists that do not fit together.
    """
    q, k, v = _autocast(q, k, v)
    _check_tensors(q, k, v, layout_q, layout_k, heads_first)
    index = _fitting(index, q, layout_q, layout_k, heads_first)
    q, k, v = _enter(q, k, v, layout_q, layout_k, layout, heads_first)
    scale = score_scale(scale, q.shape[-1])
    o, lse = _attend(q, k, v, index, layout_q, layout_k, scale, backend, deterministic)
    o, lse = _leave(o, lse, layout_q, layout, heads_first)
    return (o, lse) if return_lse else o


def _enter(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout_q: BlockLayout,
    layout_k: BlockLayout,
    order: TokenOrder,
    heads_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors in block order as [B, H, N, D] with a contiguous last axis."""
    if order not in ("thw", "block"):
        raise UserError(
            "unknown token order",
            received=order,
            expected='"thw" or "block"',
            remedy='plain [T, H, W] order is "thw"',
        )
    if order == "thw":
        axis = 2 if heads_first else 1
        q, k, v = (
            layout_q.to_block(q, axis),
            layout_k.to_block(k, axis),
            layout_k.to_block(v, axis),
        )
    if not heads_first:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    return q, k, v


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: BlockIndex,
    layout_q: BlockLayout,
    layout_k: BlockLayout,
    scale: float,
    backend: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """The op on what :func:`_enter` returns."""
    lists = index.indices, index.counts
    offsets = layout_q.offsets(q.device), layout_k.offsets(q.device)
    sizes = layout_q.max_block_size, layout_k.max_block_size
    return block_sparse_forward(q, k, v, *lists, *offsets, *sizes, scale, backend, deterministic)


def _leave(
    o: Tensor, lse: Tensor, layout_q: BlockLayout, order: TokenOrder, heads_first: bool
) -> tuple[Tensor, Tensor]:
    """Undo :func:`_enter` for the results [B, H, N, D] and [B, H, N]."""
    if not heads_first:
        o = o.transpose(1, 2)
    if order == "thw":
        o = layout_q.from_block(o, 2 if heads_first else 1)
        lse = layout_q.from_block(lse, 2)
    return o, lse


def _dense(q: Tensor, k: Tensor, v: Tensor, scale: float, heads_first: bool) -> Tensor:
    if not heads_first:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=grouped)
    return out if heads_first else out.transpose(1, 2)


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """Under autocast, cast as PyTorch's own attention does: custom ops are not on its list."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    dtype = torch.get_autocast_dtype(kind)
    return [x if x.dtype == torch.float64 else x.to(dtype) for x in tensors]


def _fitting(
    index: BlockIndex,
    q: Tensor,
    layout_q: BlockLayout,
    layout_k: BlockLayout,
    heads_first: bool,
) -> BlockIndex:
    """The index for all batch entries and heads of ``q``."""
    blocks = index.counts.shape[2], index.num_key_blocks
    if blocks != (layout_q.num_blocks, layout_k.num_blocks) or index.device != q.device:
        raise UserError(
            "the index does not fit the layouts or the device",
            received=f"{blocks[0]} query blocks, {blocks[1]} key blocks on {index.device}",
            expected=f"{layout_q.num_blocks} and {layout_k.num_blocks} on {q.device}",
            remedy="select with the same layouts, or move the index with .to(device)",
        )
    return index.expand(q.shape[0], q.shape[1 if heads_first else 2])


def _check_tensors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout_q: BlockLayout,
    layout_k: BlockLayout,
    heads_first: bool,
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    tokens, heads = (2, 1) if heads_first else (1, 2)
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[::3] == k.shape[::3]
    if not fits or q.shape[heads] % k.shape[heads]:
        raise UserError(
            "queries, keys and values do not fit together",
            received=shapes,
            expected="one batch size and head size, equal k and v, key heads that divide q's",
            remedy=f"heads are axis {heads} with heads_first={heads_first}",
        )
    if len({q.dtype, k.dtype, v.dtype}) > 1 or not q.is_floating_point():
        raise UserError(
            "queries, keys and values of unlike or non-float types",
            received=f"{q.dtype}, {k.dtype}, {v.dtype}",
            expected="one float type",
            remedy="cast them, or run under torch.autocast",
        )
    if len({q.device, k.device, v.device}) > 1:
        raise UserError(
            "queries, keys and values on several devices",
            received=f"{q.device}, {k.device}, {v.device}",
            expected="one device",
            remedy="move them to one",
        )
    want = layout_q.num_tokens, layout_k.num_tokens
    if (q.shape[tokens], k.shape[tokens]) != want:
        swapped = (q.shape[heads], k.shape[heads]) == want
        raise UserError(
            "the tensors do not have the tokens of the grids",
            received=f"{shapes}, tokens on axis {tokens} (heads_first={heads_first})",
            expected=f"{want[0]} query and {want[1]} key tokens for the grids "
            f"{layout_q.grid} and {layout_k.grid}",
            remedy=f"pass heads_first={not heads_first}" if swapped else "pass the token grid",
        )
