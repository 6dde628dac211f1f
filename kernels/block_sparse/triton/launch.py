"""Attention and its gradients through the Triton kernels."""

import dataclasses
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longtake.kernels.block_sparse.index import BlockPairs
from longtake.kernels.block_sparse.reference import empty_in_order_of, empty_outputs
from longtake.kernels.block_sparse.triton import backward as backward_kernels
from longtake.kernels.block_sparse.triton.forward import forward_kernel
from longtake.kernels.block_sparse.triton.lists import contiguous, key_lists, work_order

LOG2_E = 1.4426950408889634

#: Rows of a TMA box and of a Gluon tile: those of a warpgroup's product.
BOX_ROWS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is launched."""

    tile: int
    """Tokens of a tile, at most."""
    warps: int
    """Warps per program."""
    stages: int
    """Depth of the software pipeline."""


#: By bytes per element. Products of float32 take more registers: smaller tiles, more warps.
LAUNCHES = {
    2: Launch(tile=64, warps=4, stages=2),
    4: Launch(tile=32, warps=8, stages=1),
}


def forward(
    q: Tensor, k: Tensor, v: Tensor, pairs: BlockPairs, scale: float
) -> tuple[Tensor, Tensor]:
    """As :func:`reference.forward`; tensors of any strides with a contiguous last axis."""
    o, lse = empty_outputs(q)
    # One program a tile of queries, not a persistent one: lists of unequal length balance alone.
    options, inputs = _options(pairs, q, k, v)
    lists, counts, order = contiguous(pairs.index), pairs.index.counts, work_order(pairs.index)
    forward_kernel[(counts.numel() * options["TILES_Q"],)](
        *inputs,
        o,
        lse,
        lists,
        counts,
        pairs.queries.offsets,
        pairs.keys.offsets,
        counts if order is None else order,
        scale * LOG2_E,
        q.shape[1],
        k.shape[1],
        pairs.queries.count,
        pairs.queries.num_tokens,
        *strides(q, k, v, o, lists, counts),
        ORDERED=order is not None,
        **options,
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
    of_keys = key_lists(pairs, k.shape[1], split=False)
    delta = row_sums(o, do, lse, dlse)
    dq, dk, dv = (empty_in_order_of(x) for x in (q, k, v))
    options, inputs = _options(pairs, q, do, k, v)
    lists, counts, order = contiguous(pairs.index), pairs.index.counts, work_order(pairs.index)
    backward_kernels.query_gradient_kernel[(counts.numel() * options["TILES_Q"],)](
        *inputs,
        dq,
        lse,
        delta,
        lists,
        counts,
        pairs.queries.offsets,
        pairs.keys.offsets,
        counts if order is None else order,
        scale,
        scale * LOG2_E,
        q.shape[1],
        k.shape[1],
        pairs.queries.count,
        pairs.queries.num_tokens,
        *strides(q, do, k, v, dq, lists, counts),
        ORDERED=order is not None,
        **options,
    )
    backward_kernels.key_gradient_kernel[(of_keys.order.numel() * options["TILES_K"],)](
        *inputs,
        dk,
        dv,
        lse,
        delta,
        of_keys.row_pointers,
        of_keys.query_blocks,
        pairs.queries.offsets,
        pairs.keys.offsets,
        of_keys.order,
        scale,
        scale * LOG2_E,
        q.shape[1],
        k.shape[1],
        pairs.keys.count,
        pairs.queries.num_tokens,
        of_keys.query_blocks.shape[-1],
        *strides(q, do, k, v, dk, dv),
        **options,
    )
    return dq, dk, dv


def row_sums(o: Tensor, do: Tensor, lse: Tensor, dlse: Tensor | None) -> Tensor:
    """Row sums of ``do o``, less the gradient of the log-sum-exp: float32 [B, Hq, N]."""
    out = torch.empty_like(lse)
    batch, heads, tokens, dim = o.shape
    rows = 64
    d_lse = lse if dlse is None else dlse
    backward_kernels.delta_kernel[(triton.cdiv(tokens, rows), batch * heads)](
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


def strides(*tensors: Tensor) -> list[tuple[int, ...]]:
    """Strides of the first three axes of every tensor."""
    return [x.stride()[:3] for x in tensors]


def has_tma(device: torch.device) -> bool:
    """Whether the device has a tensor memory accelerator: compute capability 9 and up."""
    return torch.cuda.get_device_capability(device)[0] >= 9


def in_reach_of_tma(x: Tensor) -> bool:
    """Whether address and strides are multiples of 16 bytes; axes of size 1 have no stride."""
    axes = zip(x.shape[:3], x.stride()[:3], strict=True)
    steps = [stride * x.element_size() for size, stride in axes if size > 1]
    return x.data_ptr() % 16 == 0 and all(0 < n < 2**40 and n % 16 == 0 for n in steps)


def box(kind: Any, x: Tensor, *layout: Any) -> Any:
    """TMA descriptor of tiles [1, 1, 64, D] of ``x`` [B, H, N, D]."""
    dim = x.shape[-1]
    # PyTorch leaves the stride of an axis of size 1 undefined; a descriptor has to be right.
    axes = zip(x.shape[:3], x.stride()[:3], strict=True)
    steps = [stride if size > 1 else dim for size, stride in axes]
    return kind(x, list(x.shape), [*steps, 1], [1, 1, BOX_ROWS, dim], *layout)


def _options(pairs: BlockPairs, *tensors: Tensor) -> tuple[dict[str, Any], list[Any]]:
    """Constants of a kernel, and its tensors: as TMA descriptors where those serve."""
    q = tensors[0]
    launch = LAUNCHES[q.element_size()]
    tile_q, tile_k = (
        # A product takes at least 16 rows; small blocks waste the rest.
        max(16, min(launch.tile, triton.next_power_of_2(blocks.largest)))
        for blocks in (pairs.queries, pairs.keys)
    )
    ragged_q, ragged_k = pairs.queries.ragged(tile_q), pairs.keys.ragged(tile_k)
    # Boxes have no masks: one ragged side is enough for pointers everywhere.
    boxes = (
        has_tma(q.device)
        and tile_q == tile_k == BOX_ROWS
        and not (ragged_q or ragged_k)
        and all(in_reach_of_tma(x) for x in tensors)
    )
    options = {
        "D": q.shape[-1],
        "TILE_Q": tile_q,
        "TILE_K": tile_k,
        "TILES_Q": pairs.queries.tiles(tile_q),
        "TILES_K": pairs.keys.tiles(tile_k),
        "RAGGED_Q": ragged_q,
        "RAGGED_K": ragged_k,
        "TMA": boxes,
        # TF32 would take 13 of the 23 bits of a float32's fraction without a word.
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        "STAGES": launch.stages,
        "num_warps": launch.warps,
        "num_stages": launch.stages,
    }
    return options, [box(TensorDescriptor, x) for x in tensors] if boxes else list(tensors)
