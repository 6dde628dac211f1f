"""Launches of the Gluon kernels, for Hopper GPUs.

Gluon is Triton's experimental language for explicit control; this module and those of the kernels
are imported at the first call on a Hopper GPU.
"""

from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from longtake.kernels.block_sparse import (
    gluon_forward,
    gluon_key_gradient,
    gluon_query_gradient,
)
from longtake.kernels.block_sparse.launch import (
    BOX_ROWS,
    Call,
    KeyLists,
    box,
    key_lists,
    strides,
)
from longtake.kernels.block_sparse.triton_lists import wholes_first

WARPS = 4


def forward(call: Call, o: Tensor, lse: Tensor) -> None:
    """Fill the output [B, Hq, N, D] and the log-sum-exp [B, Hq, N]."""
    dim = call.q.shape[-1]
    lists, counts, wholes, order = _lists(call)
    gluon_forward.forward_kernel[(counts.numel() * call.queries.tiles(BOX_ROWS),)](
        _box(call.q, dim),
        call.k,
        _box(call.k, dim),
        call.v,
        _box(call.v, dim),
        o,
        lse,
        lists,
        counts,
        wholes,
        call.queries.offsets,
        call.keys.offsets,
        counts if order is None else order,
        call.scale_log2,
        _side_by_side(call, 4),
        *call.heads,
        call.queries.count,
        call.queries.num_tokens,
        *strides(call.k, call.v, o, lists, counts),
        **_constants(call),
        ORDERED=order is not None,
        num_warps=WARPS,
    )


def query_gradient(call: Call, do: Tensor, lse: Tensor, delta: Tensor, dq: Tensor) -> None:
    """Fill the gradient of the queries."""
    dim = call.q.shape[-1]
    lists, counts, wholes, order = _lists(call)
    gluon_query_gradient.query_gradient_kernel[(counts.numel() * call.queries.tiles(BOX_ROWS),)](
        call.q,
        do,
        call.k,
        _box(call.k, dim),
        call.v,
        _box(call.v, dim),
        dq,
        lse,
        delta,
        lists,
        counts,
        wholes,
        call.queries.offsets,
        call.keys.offsets,
        counts if order is None else order,
        call.scale,
        call.scale_log2,
        _side_by_side(call, 2),
        *call.heads,
        call.queries.count,
        call.queries.num_tokens,
        *strides(call.q, do, call.k, call.v, dq, lists, counts),
        **_constants(call),
        ORDERED=order is not None,
        num_warps=WARPS,
    )


def lists_for_keys(call: Call) -> KeyLists:
    """Lists that :func:`key_gradient` reads."""
    return key_lists(call, split=call.queries.ragged(BOX_ROWS))


def key_gradient(
    call: Call, lists: KeyLists, do: Tensor, lse: Tensor, delta: Tensor, dk: Tensor, dv: Tensor
) -> None:
    """Fill the gradients of the keys and values."""
    dim = call.q.shape[-1]
    wholes = lists.row_pointers if lists.wholes is None else lists.wholes
    gluon_key_gradient.key_gradient_kernel[(lists.order.numel() * call.keys.tiles(BOX_ROWS),)](
        call.q,
        _box(call.q, dim),
        do,
        _box(do, dim),
        _box(call.k, dim),
        _box(call.v, dim),
        dk,
        dv,
        lse,
        delta,
        lists.row_pointers,
        lists.query_blocks,
        wholes,
        call.queries.offsets,
        call.keys.offsets,
        lists.order,
        call.scale,
        call.scale_log2,
        _side_by_side(call, 2),
        *call.heads,
        call.keys.count,
        call.queries.num_tokens,
        lists.query_blocks.shape[-1],
        *strides(call.q, do, dk, dv),
        **_constants(call),
        num_warps=WARPS,
    )


def _lists(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Lists, their lengths, the numbers of whole blocks that they start with, and the order."""
    lists = call.lists
    if not call.keys.ragged(BOX_ROWS):
        return lists.indices, lists.counts, lists.counts, lists.order
    sorted_lists = wholes_first(lists.indices, lists.counts, call.keys.offsets, call.keys.largest)
    return sorted_lists[0], lists.counts, sorted_lists[1], lists.order


def _side_by_side(call: Call, per_processor: int) -> int:
    """Programs that a GPU runs at a time; ``walk_entry`` says what for."""
    processors = torch.cuda.get_device_properties(call.q.device).multi_processor_count
    return int(per_processor * processors)


def _constants(call: Call) -> dict[str, Any]:
    return {
        "D": call.q.shape[-1],
        "TILES_Q": call.queries.tiles(BOX_ROWS),
        "TILES_K": call.keys.tiles(BOX_ROWS),
        "RAGGED_Q": call.queries.ragged(BOX_ROWS),
        "RAGGED_K": call.keys.ragged(BOX_ROWS),
    }


def _box(x: Tensor, columns: int) -> Any:
    """Descriptor of tiles [64, columns] in the swizzled order that the tensor cores read."""
    dtype = gl.float16 if x.dtype == torch.float16 else gl.bfloat16
    layout = gl.NVMMASharedLayout.get_default_for([1, 1, BOX_ROWS, columns], dtype)
    return box(TensorDescriptor, x, columns, layout)
