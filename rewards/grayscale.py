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


def to_grayscale(video: Tensor, mode: GrayMode = "bt601") -> Tensor:
    """Gray clips on three equal channels.

    Args:
        video: [..., 3, H, W], uint8 or float in [0, 1].
        mode: ``bt601`` rounds the luma to the nearest of the 256 levels (half up),
            ``bt601_trunc`` truncates it, ``mean`` rounds the plain channel mean.

    Returns:
        Same shape and dtype as the input. Float results lie on the 8-bit levels k/255, so that a
        float clip and its 8-bit copy give the same gray.
    """
    if video.ndim < 3 or video.shape[-3] != 3:
        raise UserError(
            "clips have the wrong shape", received=tuple(video.shape), expected="[..., 3, H, W]"
        )
    if mode not in GRAY_MODES:
        raise UserError(
            "grayscale mode is unknown", received=mode, expected=", ".join(GRAY_MODES)
        )
    levels = _eight_bit(video).to(torch.int32)
    red, green, blue = levels.unbind(-3)
    # Integer arithmetic: a float sum of 0.299, 0.587 and 0.114 is 0.9999999 for white, which
    # truncation would turn into level 254.
    if mode == "mean":
        gray = (2 * (red + green + blue) + 3) // 6
    else:
        weight_r, weight_g, weight_b = BT601_MILLI
        milli = weight_r * red + weight_g * green + weight_b * blue
        gray = (milli + 500) // 1000 if mode == "bt601" else milli // 1000
    gray = gray.unsqueeze(-3).expand(video.shape)
    if video.dtype == torch.uint8:
        return gray.to(torch.uint8)
    return (gray.to(torch.float32) / 255.0).to(video.dtype)


def _eight_bit(video: Tensor) -> Tensor:
    if video.dtype == torch.uint8:
        return video
    return (video.to(torch.float32).clamp(0.0, 1.0) * 255.0).round()
