"""Frame sampling and per-frame aggregation (report section 3.3.2).

HPSv3-general is the mean over all frames; HPSv3-percentile is the mean of the best 30 % of all
frames. The report does not say how 30 % is rounded: ``floor`` with at least one frame is the
default, and it is part of a reward's fingerprint.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from longtake.runtime.errors import UserError

Aggregation = Literal["mean", "top_fraction"]
Rounding = Literal["floor", "ceil", "nearest"]


def all_frames(num_frames: int) -> Tensor:
    """Indices of every frame, int64 [num_frames]."""
    _check_positive("number of frames", num_frames)
    return torch.arange(num_frames)


def stride_frames(num_frames: int, stride: int) -> Tensor:
    """Indices 0, stride, 2*stride, ... below ``num_frames``."""
    _check_positive("number of frames", num_frames)
    _check_positive("frame stride", stride)
    return torch.arange(0, num_frames, stride)


def even_frames(num_frames: int, num_samples: int) -> Tensor:
    """``num_samples`` indices spread evenly from the first to the last frame.

    One sample is the middle frame. More samples than frames give every frame once, never twice:
    a repeated frame would count double in a mean.
    """
    _check_positive("number of frames", num_frames)
    _check_positive("number of sampled frames", num_samples)
    if num_samples >= num_frames:
        return torch.arange(num_frames)
    if num_samples == 1:
        return torch.tensor([(num_frames - 1) // 2])
    steps = torch.arange(num_samples, dtype=torch.float64)
    return (steps * (num_frames - 1) / (num_samples - 1)).round().long()


def num_top_frames(
    num_frames: int, fraction: float, rounding: Rounding = "floor", minimum: int = 1
) -> int:
    """How many frames the best ``fraction`` of ``num_frames`` is.

    Args:
        num_frames: frames of the clip, F >= 1.
        fraction: share of the frames in (0, 1].
        rounding: ``floor``, ``ceil`` or ``nearest`` (half to even).
        minimum: lower bound of the result, 1..F; capped at F.
    """
    _check_positive("number of frames", num_frames)
    _check_positive("minimum number of frames", minimum)
    if not 0.0 < fraction <= 1.0:
        raise UserError(
            "top fraction cannot be used", received=fraction, expected="a number in (0, 1]"
        )
    # 0.3 * 10 is 2.9999999999999996: the share is rounded to 1e-9 before floor and ceil see it.
    share = round(fraction * num_frames, 9)
    if rounding == "floor":
        count = math.floor(share)
    elif rounding == "ceil":
        count = math.ceil(share)
    elif rounding == "nearest":
        count = round(share)
    else:
        raise UserError("rounding is unknown", received=rounding, expected="floor, ceil or nearest")
    return min(max(count, minimum), num_frames)


def aggregate(
    per_frame: Tensor,
    how: Aggregation = "mean",
    *,
    fraction: float = 0.3,
    rounding: Rounding = "floor",
    minimum: int = 1,
) -> Tensor:
    """Clip scores from frame scores (report section 3.3.2).

    Args:
        per_frame: [B, F] scores; a NaN in a row makes that row's result NaN.
        how: ``mean`` of all frames, or ``top_fraction`` = mean of the best ``fraction``.
        fraction: share of the frames in (0, 1]; the report uses 0.3.
        rounding: how ``fraction * F`` becomes a number of frames.
        minimum: least number of frames averaged.

    Returns:
        [B], dtype of the input.
    """
    if per_frame.ndim != 2 or per_frame.shape[1] == 0:
        raise UserError(
            "frame scores have the wrong shape",
            received=tuple(per_frame.shape),
            expected="[B, F] with F >= 1",
        )
    if how == "mean":
        return per_frame.mean(1)
    if how != "top_fraction":
        raise UserError("aggregation is unknown", received=how, expected="mean or top_fraction")
    count = num_top_frames(per_frame.shape[1], fraction, rounding, minimum)
    top = per_frame.topk(count, dim=1).values.mean(1)
    # topk ranks NaN inconsistently between devices; a broken frame must not be left out silently.
    return top.masked_fill(per_frame.isnan().any(1), math.nan)


def _check_positive(what: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{what} must be positive", received=value, expected=">= 1")
