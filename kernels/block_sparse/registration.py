"""Registration of a function as a PyTorch op.

`torch.library.custom_op` would do the same, but imports the compiler, and with it Triton, at the
first call on any device.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")


def torch_op(fake: Callable[..., R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the decorated function as the op ``longtake::<name>`` and return the op.

    The function has to be typed, must not change its arguments nor return one of them, and runs on
    all devices.

    Args:
        fake: the same call without computing: results of the right shape, type and strides.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        name = f"longtake::{function.__name__}"
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, "default", function)
        torch.library.register_fake(name, fake)
        op = getattr(torch.ops.longtake, function.__name__).default
        return cast(Callable[P, R], op)

    return register
