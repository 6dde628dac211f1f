"""Registration of a function as a PyTorch op.

`torch.library.custom_op` would do the same, but imports the compiler, and with it Triton, at the
first call on any device.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def torch_op(fake: Callable[..., R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the decorated function as the op ``longtake::<name>`` and return the op.

    The function has to be typed, must not change its arguments nor return one of them, and runs on
    all devices. Its first argument is a tensor. Autocast is off inside: it would round what the
    function widened.

    Args:
        fake: the same call without computing: results of the right shape, type and strides.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        name = f"longtake::{function.__name__}"
        schema = torch.library.infer_schema(function, mutates_args=())
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
