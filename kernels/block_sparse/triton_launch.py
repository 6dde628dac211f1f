"""Launches of the Triton kernels."""

import dataclasses
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longtake.kernels.block_sparse import triton_backward, triton_forward
from longtake.kernels.block_sparse.launch import (
    BOX_ROWS,
    Call,
    KeyLists,
    box,
    has_tma,
    in_reach_of_tma,
    key_lists,
    strides,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is launched."""

    tile: int
    """Tokens of a tile, at most."""
    warps: int
    """Warps per program."""
    stages: int
    """Depth of the software pipeline."""


LAUNCHES: dict[tuple[str, int], Launch] = {
    ("forward", 2): Launch(tile=64, warps=4, stages=2),
    ("query_gradient", 2): Launch(tile=64, warps=4, stages=2),
    ("key_gradient", 2): Launch(tile=64, warps=4, stages=2),
    ("forward", 4): Launch(tile=32, warps=8, stages=1),
    ("query_gradient", 4): Launch(tile=32, warps=8, stages=1),
    ("key_gradient", 4): Launch(tile=32, warps=8, stages=1),
}
"""Kernel and bytes per element -> launch."""


def forward(call: Call, o: Tensor, lse: Tensor) -> None:
    """Fill the output [B, Hq, N, D] and the log-sum-exp [B, Hq, N]."""
    options, inputs = _options("forward", call, call.q, call.k, call.v)
    indices, counts, order = call.lists.indices, call.lists.counts, call.lists.order
    triton_forward.forward_kernel[(counts.numel() * options["TILES_Q"],)](
        *inputs,
        o,
        lse,
        indices,
        counts,
        call.queries.offsets,
        call.keys.offsets,
        counts if order is None else order,
        call.scale_log2,
        *call.heads,
        call.queries.count,
        call.queries.num_tokens,
        *strides(call.q, call.k, call.v, o, indices, counts),
        ORDERED=order is not None,
        **options,
    )


def delta(o: Tensor, do: Tensor, lse: Tensor, dlse: Tensor | None) -> Tensor:
    """Row sums of ``do o``, less the gradient of the log-sum-exp: float32 [B, Hq, N]."""
    out = torch.empty_like(lse)
    batch, heads, tokens, dim = o.shape
    rows = 64
    d_lse = lse if dlse is None else dlse
    triton_backward.delta_kernel[(triton.cdiv(tokens, rows), batch * heads)](
        o,
        do,
        lse,
        d_lse,
        out,
        heads,
        tokens,
        *strides(o, do, d_lse),
        ROWS=rows,
        D=dim,
        HAS_DLSE=dlse is not None,
        num_warps=4,
    )
    return out


def query_gradient(call: Call, do: Tensor, lse: Tensor, delta: Tensor, dq: Tensor) -> None:
    """Fill the gradient of the queries."""
    tensors = call.q, do, call.k, call.v
    options, inputs = _options("query_gradient", call, *tensors)
    indices, counts, order = call.lists.indices, call.lists.counts, call.lists.order
    triton_backward.query_gradient_kernel[(counts.numel() * options["TILES_Q"],)](
        *inputs,
        dq,
        lse,
        delta,
        indices,
        counts,
        call.queries.offsets,
        call.keys.offsets,
        counts if order is None else order,
        call.scale,
        call.scale_log2,
        *call.heads,
        call.queries.count,
        call.queries.num_tokens,
        *strides(*tensors, dq, indices, counts),
        ORDERED=order is not None,
        **options,
    )


def lists_for_keys(call: Call) -> KeyLists:
    """Lists that :func:`key_gradient` reads."""
    return key_lists(call, split=False)


def key_gradient(
    call: Call, lists: KeyLists, do: Tensor, lse: Tensor, delta: Tensor, dk: Tensor, dv: Tensor
) -> None:
    """Fill the gradients of the keys and values."""
    tensors = call.q, do, call.k, call.v
    options, inputs = _options("key_gradient", call, *tensors)
    triton_backward.key_gradient_kernel[(lists.order.numel() * options["TILES_K"],)](
        *inputs,
        dk,
        dv,
        lse,
        delta,
        lists.row_pointers,
        lists.query_blocks,
        call.queries.offsets,
        call.keys.offsets,
        lists.order,
        call.scale,
        call.scale_log2,
        *call.heads,
        call.keys.count,
        call.queries.num_tokens,
        lists.query_blocks.shape[-1],
        *strides(*tensors, dk, dv),
        **options,
    )


def _options(kernel: str, call: Call, *tensors: Tensor) -> tuple[dict[str, Any], list[Any]]:
    """Constants of a kernel, and its tensors: as TMA descriptors where those serve."""
    launch = LAUNCHES[kernel, call.q.element_size()]
    tile_q, tile_k = (
        max(16, min(launch.tile, triton.next_power_of_2(blocks.largest)))
        for blocks in (call.queries, call.keys)
    )
    ragged_q, ragged_k = call.queries.ragged(tile_q), call.keys.ragged(tile_k)
    boxes = (
        has_tma(call.q.device)
        and tile_q == tile_k == BOX_ROWS
        and not (ragged_q or ragged_k)
        and all(in_reach_of_tma(x) for x in tensors)
    )
    options = {
        "D": call.q.shape[-1],
        "TILE_Q": tile_q,
        "TILE_K": tile_k,
        "TILES_Q": call.queries.tiles(tile_q),
        "TILES_K": call.keys.tiles(tile_k),
        "RAGGED_Q": ragged_q,
        "RAGGED_K": ragged_k,
        "TMA": boxes,
        "PRECISION": "ieee" if call.q.dtype == torch.float32 else "tf32",
        "STAGES": launch.stages,
        "num_warps": launch.warps,
        "num_stages": launch.stages,
    }
    if boxes:
        return options, [box(TensorDescriptor, x, x.shape[-1]) for x in tensors]
    return options, list(tensors)
