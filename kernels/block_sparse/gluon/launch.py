"""Attention and its gradients through the Gluon kernels."""

from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from longtake.kernels.block_sparse.gluon.forward import forward_kernel
from longtake.kernels.block_sparse.gluon.key_gradient import key_gradient_kernel
from longtake.kernels.block_sparse.gluon.query_gradient import query_gradient_kernel
from longtake.kernels.block_sparse.index import BlockPairs
from longtake.kernels.block_sparse.reference import empty_in_order_of, empty_outputs
from longtake.kernels.block_sparse.triton.launch import (
    BOX_ROWS,
    LOG2_E,
    box,
    in_reach_of_tma,
    row_sums,
    strides,
)
from longtake.kernels.block_sparse.triton.lists import (
    contiguous,
    key_lists,
    wholes_first,
    work_order,
)

WARPS = 4


def obstacle(pairs: BlockPairs, q: Tensor, *others: Tensor) -> str:
    """Why the kernels cannot run a call on a Hopper GPU, or nothing."""
    sizes = pairs.queries.largest, pairs.keys.largest
    if q.dtype not in (torch.bfloat16, torch.float16) or q.shape[-1] not in (64, 128):
        return f"{q.dtype}, head size {q.shape[-1]}"
    # A warpgroup multiplies 64 rows: a tile over two small blocks would mix their lists.
    if any(size % BOX_ROWS for size in sizes):
        return f"blocks of {sizes[0]} queries and {sizes[1]} keys"
    # Rows of log-sum-exp are numbered with 32 bits.
    if q.shape[:3].numel() >= 2**31:
        return f"{q.shape[:3].numel()} queries in all heads"
    if not all(in_reach_of_tma(x) for x in (q, *others)):
        return "tensors that TMA cannot address"
    return ""


def forward(
    q: Tensor, k: Tensor, v: Tensor, pairs: BlockPairs, scale: float
) -> tuple[Tensor, Tensor]:
    """As :func:`reference.forward`; tensors of any strides with a contiguous last axis."""
    o, lse = empty_outputs(q)
    lists, counts, wholes, order = _lists(pairs)
    forward_kernel[(counts.numel() * pairs.queries.tiles(BOX_ROWS),)](
        _box(q),
        k,
        _box(k),
        v,
        _box(v),
        o,
        lse,
        lists,
        counts,
        wholes,
        pairs.queries.offsets,
        pairs.keys.offsets,
        counts if order is None else order,
        scale * LOG2_E,
        _side_by_side(q.device, 4),
        q.shape[1],
        k.shape[1],
        pairs.queries.count,
        pairs.queries.num_tokens,
        *strides(k, v, o, lists, counts),
        **_constants(pairs, q.shape[-1]),
        ORDERED=order is not None,
        num_warps=WARPS,
    )
    return o, lse


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    dlse: Tensor | None,
    pairs: BlockPairs,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`reference.backward`, bitwise equal from run to run on one kind of GPU."""
    # Before the gradients are allocated: the inversion needs some memory for a moment.
    of_keys = key_lists(pairs, k.shape[1], split=pairs.queries.ragged(BOX_ROWS))
    delta = row_sums(o, do, lse, dlse)
    dq, dk, dv = (empty_in_order_of(x) for x in (q, k, v))
    lists, counts, wholes, order = _lists(pairs)
    query_gradient_kernel[(counts.numel() * pairs.queries.tiles(BOX_ROWS),)](
        q,
        do,
        k,
        _box(k),
        v,
        _box(v),
        dq,
        lse,
        delta,
        lists,
        counts,
        wholes,
        pairs.queries.offsets,
        pairs.keys.offsets,
        counts if order is None else order,
        scale,
        scale * LOG2_E,
        _side_by_side(q.device, 2),
        q.shape[1],
        k.shape[1],
        pairs.queries.count,
        pairs.queries.num_tokens,
        *strides(q, do, k, v, dq, lists, counts),
        **_constants(pairs, q.shape[-1]),
        ORDERED=order is not None,
        num_warps=WARPS,
    )
    key_gradient_kernel[(of_keys.order.numel() * pairs.keys.tiles(BOX_ROWS),)](
        q,
        _box(q),
        do,
        _box(do),
        _box(k),
        _box(v),
        dk,
        dv,
        lse,
        delta,
        of_keys.row_pointers,
        of_keys.query_blocks,
        of_keys.row_pointers if of_keys.wholes is None else of_keys.wholes,
        pairs.queries.offsets,
        pairs.keys.offsets,
        of_keys.order,
        scale,
        scale * LOG2_E,
        _side_by_side(q.device, 2),
        q.shape[1],
        k.shape[1],
        pairs.keys.count,
        pairs.queries.num_tokens,
        of_keys.query_blocks.shape[-1],
        *strides(q, do, dk, dv),
        **_constants(pairs, q.shape[-1]),
        num_warps=WARPS,
    )
    return dq, dk, dv


def _lists(pairs: BlockPairs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Lists, their lengths, the numbers of whole blocks that they start with, and the order."""
    counts, order = pairs.index.counts, work_order(pairs.index)
    # The reordering costs a kernel, so only ragged grids pay for it.
    if not pairs.keys.ragged(BOX_ROWS):
        return contiguous(pairs.index), counts, counts, order
    lists, wholes = wholes_first(pairs)
    return lists, counts, wholes, order


def _side_by_side(device: torch.device, per_processor: int) -> int:
    """Programs that a GPU runs at a time; ``walk_entry`` says what for."""
    # Asked and not assumed to be 132: parts of a GPU have fewer.
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return int(per_processor * processors)


def _constants(pairs: BlockPairs, dim: int) -> dict[str, Any]:
    return {
        "D": dim,
        "TILES_Q": pairs.queries.tiles(BOX_ROWS),
        "TILES_K": pairs.keys.tiles(BOX_ROWS),
        "RAGGED_Q": pairs.queries.ragged(BOX_ROWS),
        "RAGGED_K": pairs.keys.ragged(BOX_ROWS),
    }


def _box(x: Tensor) -> Any:
    """Descriptor of tiles [64, D] in the swizzled order that the tensor cores read."""
    dtype = gl.float16 if x.dtype == torch.float16 else gl.bfloat16
    layout = gl.NVMMASharedLayout.get_default_for([1, 1, BOX_ROWS, x.shape[-1]], dtype)
    return box(TensorDescriptor, x, layout)
