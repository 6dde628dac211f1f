"""Per-frame scale and shift of tokens (AdaLN, section 3.1), in plain or in block order.

In plain order the tokens of a frame lie together, and a view gives time its own axis. In block
order it takes one view per shape of block; nothing is gathered and no table of N tokens is made.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longtake.kernels.block_sparse.layout import BlockLayout
from longtake.kernels.block_sparse.views import equal_blocks


def scale_frames(y: Tensor, factor: Tensor, layout: BlockLayout | None = None) -> Tensor:
    """``y`` times the factor of its frame.

    Args:
        y: tokens [B, S, C].
        factor: [B, T, C] of the type of ``y``; one frame (T = 1) counts for all tokens.
        layout: block order of the tokens; None for plain order, S a multiple of T.
    """
    if layout is None or factor.shape[1] == 1:
        return (y.unflatten(1, (factor.shape[1], -1)) * factor[:, :, None]).flatten(1, 2)
    return _FrameAffine.apply(y, factor, None, layout)  # type: ignore[no-any-return]


def scale_and_shift_frames(
    y: Tensor, factor: Tensor, shift: Tensor, layout: BlockLayout | None = None
) -> Tensor:
    """``y`` times the factor plus the shift of its frame; arguments as in :func:`scale_frames`."""
    if layout is None or factor.shape[1] == 1:
        framed = y.unflatten(1, (factor.shape[1], -1))
        return (framed * factor[:, :, None] + shift[:, :, None]).flatten(1, 2)
    return _FrameAffine.apply(y, factor, shift, layout)  # type: ignore[no-any-return]


class _FrameAffine(torch.autograd.Function):
    """Explicit gradients: autograd would copy the whole result for every view written to."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, factor: Tensor, shift: Tensor | None, layout: BlockLayout
    ) -> Tensor:
        ctx.save_for_backward(y, factor)
        ctx.layout, ctx.has_shift = layout, shift is not None
        out = torch.empty_like(y, memory_format=torch.contiguous_format)
        for (frames, target), (_, source) in _together(layout, out, y):
            _multiply(source, _blocks(factor, frames, source), target)
            if shift is not None:
                target += _blocks(shift, frames, source)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (y, factor), layout = grads, ctx.saved_tensors, ctx.layout
        needs_y, needs_factor, needs_shift, _ = ctx.needs_input_grad
        dy = torch.empty_like(grad, memory_format=torch.contiguous_format) if needs_y else None
        d_factor = torch.zeros_like(factor) if needs_factor else None
        d_shift = torch.zeros_like(factor) if needs_shift and ctx.has_shift else None
        for (frames, g), (_, source) in _together(layout, grad, y):
            if d_factor is not None:
                d_factor[:, frames] += (g * source).sum((2, 3, 5)).flatten(1, 2)
            if d_shift is not None:
                d_shift[:, frames] += g.sum((2, 3, 5)).flatten(1, 2)
        if dy is not None:
            for (frames, g), (_, target) in _together(layout, grad, dy):
                _multiply(g, _blocks(factor, frames, g), target)
        return dy, d_factor, d_shift, None


def _multiply(a: Tensor, b: Tensor, target: Tensor) -> None:
    if torch.compiler.is_compiling():  # fuses the two, and takes no strided ``out``
        target.copy_(a * b)
    else:
        torch.mul(a, b, out=target)


def _together(layout: BlockLayout, a: Tensor, b: Tensor) -> Any:
    return zip(equal_blocks(a, layout, 1), equal_blocks(b, layout, 1), strict=True)


def _blocks(per_frame: Tensor, frames: slice, view: Tensor) -> Tensor:
    """[B, T, C] as [B, nt, 1, 1, t, 1, C], against a view [B, nt, nh, nw, t, hw, C]."""
    framed = per_frame[:, frames].unflatten(1, (view.shape[1], view.shape[4]))
    return framed[:, :, None, None, :, None]
