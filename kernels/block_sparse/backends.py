"""Registration of ops, and which implementation runs them.

GPU kernels are imported at the first CUDA tensor: Triton is optional, and never loaded for a CPU.
"""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from longtake.runtime.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

#: "auto" is the best one of the device; "triton" and "gluon" need a GPU.
BACKENDS = ("auto", "reference", "triton", "gluon")

#: A tile of a head has to be a power of two of columns, and at most this many fit in registers.
HEAD_SIZES = (16, 32, 64, 128, 256)


def runs_on_gpu(backend: str, x: Tensor) -> bool:
    """Whether GPU kernels run a call with tensors like ``x`` [B, H, N, D]."""
    dtype, dim, on_gpu = x.dtype, x.shape[-1], x.device.type == "cuda"
    if backend == "reference" or (backend == "auto" and not on_gpu):
        return False
    served = dtype in (torch.bfloat16, torch.float16, torch.float32) and dim in HEAD_SIZES
    if backend not in BACKENDS or not on_gpu or not served:
        raise UserError(
            "this backend of the block-sparse attention does not run here",
            received=f"{backend} on {x.device}, {dtype}, head size {dim}",
            expected=f"{', '.join(BACKENDS)}; GPU kernels take bfloat16, float16 or float32 on a "
            f"CUDA device and heads of {HEAD_SIZES}",
            remedy='move, cast or pad the tensors, or use backend="reference"',
        )
    return True


def gpu_module(name: str) -> ModuleType:
    """A module of GPU kernels, ``triton.launch`` for instance."""
    try:
        return importlib.import_module(f"longtake.kernels.block_sparse.{name}")
    except ImportError as error:
        raise UserError(
            "the GPU kernels need Triton",
            received=str(error),
            expected="triton >= 3.6",
            remedy='install triton, or use backend="reference"',
        ) from error


def torch_op(fake: Callable[..., R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the decorated function as the op ``longtake::<name>`` and return the op.

    An op is opaque to `torch.compile`, which therefore sees one call without a graph break.
    `torch.library.custom_op` would do the same, but imports the compiler, and with it Triton, at
    the first call on any device. The function has to be typed, must not change its arguments nor
    return one of them, and runs on all devices. Its first argument is a tensor. Autocast is off
    inside: it would round what the function widened.

    Args:
        fake: the same call without computing: results of the right shape, type and strides.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        name = f"longtake::{function.__name__}"
        schema = torch.library.infer_schema(function, mutates_args=())
        # One implementation under the key of all devices: it asks for the device itself.
        torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, "default", _without_autocast(function))
        torch.library.register_fake(name, fake)
        op = getattr(torch.ops.longtake, function.__name__).default
        return cast(Callable[P, R], op)

    return register


def _without_autocast(function: Callable[P, R]) -> Callable[..., R]:
    @functools.wraps(function)
    def run(first: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        call = cast(Callable[..., R], function)
        if not torch.is_autocast_enabled(first.device.type):
            return call(first, *args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return call(first, *args, **kwargs)

    return run
