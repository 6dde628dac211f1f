"""Block-sparse attention: the operator for users, its registration, and who runs it.

Section 3.4.2: key blocks are selected by pooled scores, and every query attends to the keys of the
blocks selected for its block. Where a rule selects all blocks the result is dense attention, and
``backend="auto"`` calls PyTorch's. Inside, tensors are views [B, H, N, D] in block order with a
contiguous last axis.
"""

from types import ModuleType
from typing import Any, Literal, TypeAlias, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.kernels.block_sparse import reference
from longtake.kernels.block_sparse.backends import gpu_module, runs_on_gpu, torch_op
from longtake.kernels.block_sparse.index import BlockIndex, BlockPairs
from longtake.kernels.block_sparse.layout import BlockLayout, Blocks, Size3
from longtake.kernels.block_sparse.select import (
    Rule,
    count_from_rule,
    score_scale,
    select_blocks,
)
from longtake.runtime.errors import UserError

#: Order of the tokens in the tensors: plain [T, H, W], or block order.
TokenOrder: TypeAlias = Literal["thw", "block"]

#: Below this share of tokens in the room of their blocks, most blocks are not whole, and the masked
#: tiles of Triton are faster than Gluon's whole ones with the rest in grains.
MIN_FILL = 0.75


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid_q: Size3,
    grid_k: Size3 | None = None,
    block_q: Size3 = (4, 4, 4),
    block_k: Size3 = (4, 4, 4),
    scale: float | None = None,
    layout: TokenOrder = "thw",
    heads_first: bool = True,
    return_lse: bool = False,
    backend: str = "auto",
    **rule: Unpack[Rule],
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention in which every block of queries reads the key blocks that suit it best.

    Gradients flow through the attention, not through the selection, and are bitwise equal from run
    to run.

    Args:
        q: [B, Hq, N, D], or [B, N, Hq, D] with ``heads_first=False``; bfloat16, float16 or
            float32 with D 64 or 128 on a GPU, any float type and D on a CPU.
        k: [B, Hk, M, D] or [B, M, Hk, D]; query head h reads key head h // (Hq / Hk), an integer.
        v: as ``k``.
        grid_q: (T, H, W) of the queries, N tokens; any sizes, blocks at the edges are smaller.
        grid_k: (T, H, W) of the keys, M tokens; ``grid_q`` by default.
        block_q: (t, h, w) of a query block.
        block_k: (t, h, w) of a key block.
        scale: factor of the scores, 1 / sqrt(D) by default.
        layout: "thw" for tokens in plain order, which are copied into block order and back;
            "block" for tokens that already lie in block order (:class:`BlockLayout`): no copies.
        heads_first: which of the middle axes of q, k, v and the output is the heads; a view
            either way.
        return_lse: also return the log-sum-exp.
        backend: "auto", "triton" or "gluon" (GPU), or "reference" (PyTorch, any device).
        rule: which key blocks, see :class:`longtake.kernels.block_sparse.select.Rule`.

    Returns:
        The output in the shape, type and token order of ``q``; with ``return_lse`` also the
        natural-log log-sum-exp [B, Hq, N] of the scaled scores, float32 or, for float64, float64.
    """
    layout_q = BlockLayout(grid_q, block_q)
    layout_k = BlockLayout(grid_q if grid_k is None else grid_k, block_k)
    # Casts come first: block means of float32 tensors would choose other blocks than those of the
    # rounded ones that the attention then reads.
    q, k, v = cast_as_autocast(q, k, v)
    _check_call(q, k, v, layout_q, layout_k, layout, heads_first)
    scale = score_scale(scale, q.shape[-1])
    # min_blocks never asks for more than all blocks, so it cannot make the result sparse.
    options = {name: x for name, x in rule.items() if x is not None and name != "min_blocks"}
    count = count_from_rule(
        layout_k.num_blocks, topk=rule.get("topk"), sparsity=rule.get("sparsity")
    )
    alone = options.keys() <= {"topk", "sparsity"}
    if alone and count == layout_k.num_blocks and backend == "auto" and not return_lse:
        # Dense attention does not depend on the order of the keys: no copies either.
        return _dense(q, k, v, scale, heads_first)
    q, k, v = _enter(q, k, v, layout_q, layout_k, layout, heads_first)
    index = select_blocks(q, k, layout_q, layout_k, scale=scale, backend=backend, **rule)
    pairs = BlockPairs(index, layout_q.blocks(q.device), layout_k.blocks(q.device))
    o, lse = block_sparse_forward(q, k, v, *pairs.flat(), scale, backend)
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
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention in which every block of queries reads the key blocks of its list.

    ``index`` has lists for [B or 1, Hq or 1, Nq] query blocks over Nk key blocks; the other
    arguments and the results are those of :func:`block_sparse_attention`. Queries with an empty
    list get 0 and -inf, and no gradient.
    """
    q, k, v = cast_as_autocast(q, k, v)
    _check_call(q, k, v, layout_q, layout_k, layout, heads_first)
    batch, heads, blocks = index.counts.shape
    wide = q.shape[0], q.shape[1 if heads_first else 2]
    fits = (blocks, index.num_key_blocks) == (layout_q.num_blocks, layout_k.num_blocks)
    fits = fits and batch in (1, wide[0]) and heads in (1, wide[1])
    if not fits or index.device != q.device:
        raise UserError(
            "the index does not fit the layouts, the heads or the device",
            received=f"lists {batch, heads, blocks} of {index.num_key_blocks} on {index.device}",
            expected=f"{*wide, layout_q.num_blocks} of {layout_k.num_blocks} on {q.device}",
            remedy="select with the same layouts, or move the index with .to(device)",
        )
    # Lists that all heads share keep stride 0: no copy, and one read from the cache for all.
    index = index.expand(*wide)
    q, k, v = _enter(q, k, v, layout_q, layout_k, layout, heads_first)
    pairs = BlockPairs(index, layout_q.blocks(q.device), layout_k.blocks(q.device))
    scale = score_scale(scale, q.shape[-1])
    o, lse = block_sparse_forward(q, k, v, *pairs.flat(), scale, backend)
    o, lse = _leave(o, lse, layout_q, layout, heads_first)
    return (o, lse) if return_lse else o


def cast_as_autocast(*tensors: Tensor) -> list[Tensor]:
    """Under autocast, cast as PyTorch's own attention does: custom ops are not on its list."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    dtype = torch.get_autocast_dtype(kind)
    return [x if x.dtype == torch.float64 else x.to(dtype) for x in tensors]


def check_tensors(
    q: Tensor, k: Tensor, v: Tensor, tokens: tuple[int, int], heads_first: bool, grids: str
) -> None:
    """Refuse tensors that do not fit together, or have other numbers of query and key tokens."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    along, heads = (2, 1) if heads_first else (1, 2)
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[::3] == k.shape[::3]
    alike = len({(x.dtype, x.device) for x in (q, k, v)}) == 1 and q.is_floating_point()
    if not fits or not alike or q.shape[heads] % k.shape[heads]:
        raise UserError(
            "queries, keys and values do not fit together",
            received=shapes + ", " + ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v)),
            expected="one batch size, head size, float type and device, equal k and v, key heads "
            "that divide q's",
            remedy=f"heads are axis {heads} with heads_first={heads_first}; torch.autocast casts",
        )
    if (q.shape[along], k.shape[along]) != tokens:
        swapped = (q.shape[heads], k.shape[heads]) == tokens
        raise UserError(
            "the tensors do not have the tokens of the grids",
            received=f"{shapes}, tokens on axis {along} (heads_first={heads_first})",
            expected=f"{tokens[0]} query and {tokens[1]} key tokens for {grids}",
            remedy=f"pass heads_first={not heads_first}" if swapped else "pass the token grid",
        )


def _check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout_q: BlockLayout,
    layout_k: BlockLayout,
    order: TokenOrder,
    heads_first: bool,
) -> None:
    assert order in ("thw", "block"), f"layout {order!r}"
    tokens = layout_q.num_tokens, layout_k.num_tokens
    grids = f"the grids {layout_q.grid} and {layout_k.grid}"
    check_tensors(q, k, v, tokens, heads_first, grids)


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
    if order == "thw":
        axis = 2 if heads_first else 1
        q, k, v = (
            layout_q.to_block(q, axis),
            layout_k.to_block(k, axis),
            layout_k.to_block(v, axis),
        )
    # A view: the kernels take strides, so tokens before heads cost no copy.
    if not heads_first:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    return q, k, v


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
    # Asked for only where needed: some of the dense kernels do not offer it.
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=grouped)
    return out if heads_first else out.transpose(1, 2)


def _fake_forward(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return reference.empty_outputs(q)


@torch_op(fake=_fake_forward)
def block_sparse_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    counts: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    block_q: int,
    block_k: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Attention from block lists, differentiable once through both results.

    The tensors and results are those of :func:`reference.forward`, with any strides but a
    contiguous last axis; from ``indices`` to ``block_k`` the arguments are
    :meth:`BlockPairs.flat`, since an op takes no objects.
    """
    pairs = _pairs(q, k, indices, counts, q_offsets, k_offsets, block_q, block_k)
    o, lse = _kernels(backend, pairs, q, k, v).forward(q, k, v, pairs, scale)
    return o, lse


def _fake_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = map(reference.empty_in_order_of, (q, k, v))
    return dq, dk, dv


@torch_op(fake=_fake_backward)
def block_sparse_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    dlse: Tensor | None,
    indices: Tensor,
    counts: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    block_q: int,
    block_k: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`block_sparse_forward`; see :func:`reference.backward`."""
    if do.stride(-1) != 1:  # for instance the expanded one of a sum
        do = do.contiguous()
    pairs = _pairs(q, k, indices, counts, q_offsets, k_offsets, block_q, block_k)
    kernels = _kernels(backend, pairs, q, k, v, do)
    dq, dk, dv = kernels.backward(do, q, k, v, o, lse.contiguous(), dlse, pairs, scale)
    return dq, dk, dv


def _pairs(
    q: Tensor, k: Tensor, indices: Tensor, counts: Tensor, q_offsets: Tensor, k_offsets: Tensor,
    block_q: int, block_k: int,
) -> BlockPairs:  # fmt: skip
    """Undo :meth:`BlockPairs.flat`."""
    queries = Blocks(q_offsets, q.shape[2], block_q)
    keys = Blocks(k_offsets, k.shape[2], block_k)
    return BlockPairs(BlockIndex(indices, counts, keys.count), queries, keys)


def _kernels(backend: str, pairs: BlockPairs, *tensors: Tensor) -> ModuleType:
    """The module whose ``forward`` and ``backward`` serve a call with these tensors.

    Gluon kernels are for Hopper GPUs, whose compute capability is 9.
    """
    if not runs_on_gpu(backend, tensors[0]):
        return reference
    # Compute capability 9 and not "at least": warpgroup products are Hopper's alone.
    on_hopper = torch.cuda.get_device_capability(tensors[0].device)[0] == 9
    if backend == "triton" or (backend == "auto" and not on_hopper):
        return gpu_module("triton.launch")
    gluon = gpu_module("gluon.launch")
    obstacle = gluon.obstacle(pairs, *tensors) if on_hopper else "another device"
    if backend == "gluon" and obstacle:
        raise UserError(
            "the Gluon kernels do not serve this call",
            received=obstacle,
            expected="a Hopper GPU, 16-bit types, head size 64 or 128, blocks of a multiple of "
            "64 tokens, 16-byte aligned tensors and strides",
            remedy='use backend="auto"',
        )
    # Decided from sizes on the host: a look at the offsets would wait for the device.
    sparse = min(pairs.queries.fill, pairs.keys.fill) < MIN_FILL
    if obstacle or (backend == "auto" and sparse):
        return gpu_module("triton.launch")
    return gluon


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, indices, counts, q_offsets, k_offsets, *options = inputs
    ctx.save_for_backward(q, k, v, *output, indices, counts, q_offsets, k_offsets)
    ctx.options = options
    ctx.set_materialize_grads(False)  # an unused log-sum-exp costs nothing


def _differentiate(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, o, lse, *lists = ctx.saved_tensors
    # The kernels always read dO; only the log-sum-exp was used then, which is rare.
    do = torch.zeros_like(o) if do is None else do
    # An op of its own, so that compiled graphs hold one node for the backward pass too.
    gradients = block_sparse_backward(do, q, k, v, o, lse, dlse, *lists, *ctx.options)
    return *gradients, *[None] * 8


def _refuse(ctx: Any, *gradients: Tensor | None) -> None:
    raise UserError(
        "gradients of gradients of the block-sparse attention are not implemented",
        received="a second differentiation",
        expected="one backward pass",
        remedy="drop create_graph=True, or use dense attention",
    )


torch.library.register_autograd(
    "longtake::block_sparse_forward", _differentiate, setup_context=_setup_context
)
torch.library.register_autograd("longtake::block_sparse_backward", _refuse)
