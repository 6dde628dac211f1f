"""Grayscale clips for the motion reward (report section 3.3.2, Figure 20).

The motion reward must not like a colour, so it sees gray clips in training and in scoring. The
report does not give the formula. Default: BT.601 luma computed in float, rounded to 8 bits and
repeated on the three channels. The alternates are the variants other public ports use.
"""

from typing import Literal

import torch
from torch import Tensor

from longtake.runtime.errors import UserError

GrayMode = Literal["bt601", "bt601_trunc", "mean"]
GRAY_MODES: tuple[GrayMode, ...] = ("bt601", "bt601_trunc", "mean")

BT601_MILLI = (299, 587, 114)
"""BT.601 luma weights in thousandths."""
MEAN_THIRDS = (1, 1, 1)
"""Weights of the plain mean in thirds."""


def to_grayscale(video: Tensor, mode: GrayMode = "bt601") -> Tensor:
    """Gray clips on three equal channels.

    Args:
        video: [..., 3, H, W], uint8 or float in [0, 1].
        mode: ``bt601`` rounds the luma to the nearest of the 256 levels (half up),
            ``bt601_trunc`` truncates it, ``mean`` rounds the plain channel mean.

    Returns:
        Same shape and dtype as the input. Float results lie on the 8-bit levels k/255, and a
        uint8 clip and its float copy (divided by 255) give the same gray.
    """
    if video.ndim < 3 or video.shape[-3] != 3:
        raise UserError(
            "clips have the wrong shape", received=tuple(video.shape), expected="[..., 3, H, W]"
        )
    if mode not in GRAY_MODES:
        raise UserError("grayscale mode is unknown", received=mode, expected=", ".join(GRAY_MODES))
    scale = 1.0 if video.dtype == torch.uint8 else 255.0
    weights = MEAN_THIRDS if mode == "mean" else BT601_MILLI
    whole = sum(weights)
    red, green, blue = video.to(torch.float32).unbind(-3)
    luma = (weights[0] * red + weights[1] * green + weights[2] * blue) * scale
    # In thousandths (or thirds) of a level, 8-bit pixels have whole lumas, and float32 holds them
    # exactly. With weights 0.299, 0.587, 0.114 white sums to 0.99999994, and truncation gives 254.
    nearest = luma.round()
    luma = torch.where((luma - nearest).abs() < 0.1, nearest, luma)
    offset = 0.0 if mode == "bt601_trunc" else whole / 2
    levels = ((luma + offset) / whole).floor().clamp(0, 255)
    gray = levels.to(torch.uint8) if video.dtype == torch.uint8 else levels / 255.0
    return gray.to(video.dtype).unsqueeze(-3).expand(video.shape)
