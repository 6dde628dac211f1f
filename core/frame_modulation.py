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
        ctx.layout = layout
        return _apply(y, factor, shift, layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (y, factor), layout = grads, ctx.saved_tensors, ctx.layout
        needs_y, needs_factor, needs_shift, _ = ctx.needs_input_grad
        return (
            _apply(grad, factor, None, layout) if needs_y else None,
            _sum_frames(grad * y, layout) if needs_factor else None,
            _sum_frames(grad, layout) if needs_shift else None,
            None,
        )


# Compilers fuse a gather into what follows, but take seconds to trace the views of one call.


def _apply(y: Tensor, factor: Tensor, shift: Tensor | None, layout: BlockLayout) -> Tensor:
    if torch.compiler.is_compiling():
        frame = layout.frame_index(y.device)
        out = y * factor[:, frame]
        return out if shift is None else out + shift[:, frame]
    out = torch.empty_like(y, memory_format=torch.contiguous_format)
    targets, sources = equal_blocks(out, layout, 1), equal_blocks(y, layout, 1)
    for (frames, target), (_, source) in zip(targets, sources, strict=True):
        torch.mul(source, _blocks(factor, frames, source), out=target)
        if shift is not None:
            target += _blocks(shift, frames, source)
    return out


def _sum_frames(x: Tensor, layout: BlockLayout) -> Tensor:
    """Sum of the tokens [B, S, C] of every frame: [B, T, C], in a fixed order."""
    if torch.compiler.is_compiling():
        return layout.from_block(x, 1).unflatten(1, (layout.grid[0], -1)).sum(2)
    out = x.new_zeros((x.shape[0], layout.grid[0], x.shape[2]))
    for frames, view in equal_blocks(x, layout, 1):
        out[:, frames] += view.sum((2, 3, 5)).flatten(1, 2)
    return out


def _blocks(per_frame: Tensor, frames: slice, view: Tensor) -> Tensor:
    """[B, T, C] as [B, nt, 1, 1, t, 1, C], against a view [B, nt, nh, nw, t, hw, C]."""
    framed = per_frame[:, frames].unflatten(1, (view.shape[1], view.shape[4]))
    return framed[:, :, None, None, :, None]
