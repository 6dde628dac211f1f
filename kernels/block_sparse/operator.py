"""The differentiable operator on block-ordered tensors, registered with `torch.library`.

Inside, tensors are views [B, H, N, D] in block order with a contiguous last axis. The registered
ops are opaque to `torch.compile`, which therefore sees one call without a graph break.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from longtake.kernels.block_sparse import reference
from longtake.kernels.block_sparse.registration import torch_op
from longtake.runtime.errors import UserError


def _fake_forward(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return reference.empty_outputs(q)


def _fake_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = map(reference.empty_in_order_of, (q, k, v))
    return dq, dk, dv


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
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """Attention from block lists, differentiable once through both results.

    Args:
        q: [B, Hq, N, D], any strides with a contiguous last axis, like all tensors here.
        k: [B, Hk, M, D]; query head h reads key head h // (Hq / Hk).
        v: as ``k``.
        indices: int32 [B, Hq, Nq, R], ascending, -1 in unused slots.
        counts: int32 [B, Hq, Nq].
        q_offsets: int32 [Nq + 1], first token of every query block, then N.
        k_offsets: int32 [Nk + 1].
        block_q: tokens of a whole query block; none is larger. Kernels choose their tiles by it,
            since reading the offsets would wait for the device.
        block_k: tokens of a whole key block.
        scale: factor of the scores.
        backend: a key of :data:`BACKENDS`, or "auto" for the best one of the device.
        deterministic: whether gradients must be bitwise equal from run to run.

    Returns:
        Output [B, Hq, N, D] in the type and memory order of ``q``, and natural-log log-sum-exp
        [B, Hq, N], float32 or, for float64, float64. A query without keys gets 0 and -inf.
    """
    run = implementation(backend, q.device)
    lists, sizes = (indices, counts, q_offsets, k_offsets), {"block_q": block_q, "block_k": block_k}
    o, lse = run.forward(q, k, v, *lists, scale, backend, **sizes)
    return o, lse


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
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`block_sparse_forward` in the types and memory orders of q, k and v.

    Args:
        do: gradient of the output [B, Hq, N, D].
        q: queries of the forward pass.
        k: keys.
        v: values.
        o: output.
        lse: log-sum-exp.
        dlse: gradient of the log-sum-exp [B, Hq, N]; None for zero.
        indices: lists of the forward pass.
        counts: their lengths.
        q_offsets: query blocks.
        k_offsets: key blocks.
        block_q: tokens of a whole query block.
        block_k: tokens of a whole key block.
        scale: factor of the scores.
        backend: as in the forward pass.
        deterministic: as in the forward pass.
    """
    run = implementation(backend, q.device)
    saved, lists = (q, k, v, o, lse, dlse), (indices, counts, q_offsets, k_offsets)
    options = (k_offsets.numel() - 1, scale, deterministic, backend)
    sizes = {"block_q": block_q, "block_k": block_k}
    dq, dk, dv = run.backward(do, *saved, *lists, *options, **sizes)
    return dq, dk, dv


def implementation(backend: str, device: torch.device) -> ModuleType:
    """The module with ``forward`` and ``backward`` for a backend and a device.

    Raises:
        UserError: unknown backend, or one that does not run on the device or is not installed.
    """
    name = backend
    if backend == "auto":
        name = "triton" if device.type == "cuda" else "reference"
    if name not in BACKENDS:
        raise UserError(
            "unknown backend of the block-sparse attention",
            received=backend,
            expected=", ".join(("auto", *BACKENDS)),
            remedy="use auto",
        )
    if name != "reference" and device.type != "cuda":
        raise UserError(
            f"the backend {name} needs tensors on a CUDA device",
            received=str(device),
            expected="cuda",
            remedy='move the tensors, or use backend="auto"',
        )
    return BACKENDS[name]()


def _hopper() -> ModuleType:
    # Imported at the first CUDA tensor: Triton is optional, and never loaded for a CPU.
    try:
        return importlib.import_module("longtake.kernels.block_sparse.hopper")
    except ImportError as error:
        raise UserError(
            "the GPU kernels need Triton",
            received=str(error),
            expected="triton >= 3.6",
            remedy='install triton, or use backend="reference"',
        ) from error


BACKENDS: dict[str, Callable[[], ModuleType]] = {
    "reference": lambda: reference,
    "triton": _hopper,
    "gluon": _hopper,
}
"""Implementations by name; all share the signatures of :mod:`reference`."""


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, indices, counts, q_offsets, k_offsets, *options = inputs
    ctx.save_for_backward(q, k, v, *output, indices, counts, q_offsets, k_offsets)
    ctx.options = options
    ctx.set_materialize_grads(False)  # an unused log-sum-exp costs nothing


def _differentiate(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, o, lse, *lists = ctx.saved_tensors
    if do is None:
        do = torch.zeros_like(o)
    if do.stride(-1) != 1:  # for instance the expanded ones of a sum
        do = do.contiguous()
    gradients = block_sparse_backward(do, q, k, v, o, lse, dlse, *lists, *ctx.options)
    return *gradients, *[None] * 9


torch.library.register_autograd(
    "longtake::block_sparse_forward", _differentiate, setup_context=_setup_context
)


def _refuse(ctx: Any, *gradients: Tensor | None) -> None:
    raise UserError(
        "gradients of gradients of the block-sparse attention are not implemented",
        received="a second differentiation",
        expected="one backward pass",
        remedy="drop create_graph=True, or use dense attention",
    )


torch.library.register_autograd("longtake::block_sparse_backward", _refuse)
