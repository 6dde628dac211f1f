"""3D rotary position embedding over (frame, row, column) token coordinates (section 3.1).

The head dimension is split into a time part and two equal space parts; each part rotates
consecutive channel pairs by position / 10000^(2i/dim).
"""

from typing import Any

import torch
from torch import Tensor, nn

from longtake.core.flow import widen
from longtake.kernels.block_sparse import BlockLayout

ROPE_BASE = 10000.0


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels given to (time, height, width): the space axes take a third each, rounded down."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def rotation_angles(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """Angles [T*H*W, head_dim/2] in token order (frame-major, then rows, then columns)."""
    parts = []
    for axis, (size, dim) in enumerate(zip(grid, axis_dims(head_dim), strict=True)):
        exponent = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
        position = torch.arange(size, device=device, dtype=torch.float32)
        angle = torch.outer(position, ROPE_BASE**-exponent)  # [size, dim/2]
        shape = [1, 1, 1, dim // 2]
        shape[axis] = size
        parts.append(angle.view(shape).expand(*grid, dim // 2))
    return torch.cat(parts, dim=-1).flatten(0, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs of ``x`` [B, N, S, D] by tables [S, D/2]; computed in float32."""
    even, odd = widen(x).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


class RotaryTables(nn.Module):
    """Cosine and sine tables per token grid and order, kept for the few a run uses."""

    MAX_GRIDS = 8

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self._tables: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def forward(
        self,
        grid: tuple[int, int, int],
        device: torch.device,
        layout: BlockLayout | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tables (cos, sin), each [T*H*W, D/2] float32, for the token grid (T, H, W).

        ``layout`` is the block order of the tokens; None for frame-major order.
        """
        # Not the layout itself: compilers cannot hash it.
        key = (grid, device, None if layout is None else (layout.block, layout.segments))
        if key not in self._tables:
            if len(self._tables) >= self.MAX_GRIDS:
                self._tables.pop(next(iter(self._tables)))
            angles = rotation_angles(grid, self.head_dim, device)
            if layout is not None:
                angles = layout.to_block(angles, 0)
            self._tables[key] = (angles.cos(), angles.sin())
        return self._tables[key]
