"""Rotary tables of Qwen2-VL as the public reward models computed them.

Both were trained on transformers 4.45 after ``model.to(bfloat16)``, which casts the frequency
buffers too, and both score that way. Later releases keep the frequencies in float32, a phase error
of about one radian at position 900 of a 7B model, so the rounding is part of the checkpoint:

- ``float32``: exact frequencies;
- ``bf16_frequencies``: frequencies rounded to bfloat16, everything after in float32;
- ``bf16``: what the public scorers ran. The language model widens the rounded frequencies to
  float32; the vision tower stays in bfloat16, so its angles, cosines and sines are rounded too.

The modules have no buffers: a model built on the meta device has nothing to fill in.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

RotaryPrecision = Literal["float32", "bf16_frequencies", "bf16"]
ROTARY_PRECISIONS: tuple[RotaryPrecision, ...] = get_args(RotaryPrecision)


def inverse_frequencies(
    dim: int, theta: float, precision: RotaryPrecision, device: torch.device
) -> Tensor:
    """theta^(-2i/dim) for i < dim/2, float32 [dim/2], rounded as ``precision`` says."""
    # Computed on the CPU so that every device rotates by the same angles.
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    frequencies = 1.0 / theta**exponents
    if precision != "float32":
        frequencies = frequencies.bfloat16().float()
    return frequencies.to(device)


class TextRotary(nn.Module):
    """Cosines and sines for the language model, from plain 1-D positions.

    Qwen2-VL splits the channels into three sections with a position each (time, height, width). The
    public reward models never pass those positions, so all three are the token index and the
    sections play no part.
    """

    def __init__(self, head_dim: int, theta: float, precision: RotaryPrecision) -> None:
        super().__init__()
        self.head_dim, self.theta, self.precision = head_dim, theta, precision

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tables [B, L, head_dim] in the dtype of ``x`` for positions [3, B, L]."""
        frequencies = inverse_frequencies(self.head_dim, self.theta, self.precision, x.device)
        angles = position_ids[0, ..., None].float() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class VisionRotary(nn.Module):
    """Cosines and sines for the vision tower: half the channels by row, half by column."""

    def __init__(self, head_dim: int, theta: float, precision: RotaryPrecision) -> None:
        super().__init__()
        self.head_dim, self.theta, self.precision = head_dim, theta, precision

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Float32 tables [N, head_dim] for patches at (row, column) ``position_ids`` [N, 2]."""
        frequencies = inverse_frequencies(self.head_dim // 2, self.theta, self.precision, x.device)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        angles = position_ids[..., None].to(dtype) * frequencies.to(dtype)  # [N, 2, head_dim / 4]
        angles = angles.flatten(1).repeat(1, 2)
        return angles.cos().float(), angles.sin().float()
