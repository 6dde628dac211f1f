"""Frames of clips: which ones count, in which colours, and how their scores become one score.

HPSv3-general is the mean over all frames, HPSv3-percentile the mean of the best 30 % of all frames
(report section 3.3.2). VideoAlign takes two frames per second of playback, an even number, evenly
spread: number and spacing depend on the playback rate, so a clip at another rate is another clip.
The motion reward must not like a colour, so it sees gray clips, in training and in scoring (report
Figure 20).
"""

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from longtake.core.video import to_uint8
from longtake.runtime.errors import UserError

Rounding = Literal["floor", "ceil", "nearest"]
GrayMode = Literal["bt601", "bt601_trunc", "mean"]
GRAY_MODES: tuple[GrayMode, ...] = get_args(GrayMode)

FRAME_PAIR = 2
"""Frames per vision patch of Qwen2-VL."""
BT601_MILLI = (299, 587, 114)
"""BT.601 luma weights in thousandths."""


def even_frames(num_frames: int, num_samples: int) -> Tensor:
    """``num_samples`` indices spread evenly from the first to the last frame.

    One sample is the middle frame. More samples than frames give every frame once, never twice:
    a repeated frame would count double in a mean.
    """
    if num_samples >= num_frames:
        return torch.arange(num_frames)
    if num_samples == 1:
        return torch.tensor([(num_frames - 1) // 2])
    steps = torch.arange(num_samples, dtype=torch.float64)
    return (steps * (num_frames - 1) / (num_samples - 1)).round().long()


def num_best_frames(num_frames: int, fraction: float, rounding: Rounding = "floor") -> int:
    """How many frames the best ``fraction`` of them is, at least one.

    The report does not say how 30 % is rounded; ``nearest`` rounds half to even.
    """
    # 0.3 * 10 is 2.9999999999999996: the share is rounded to 1e-9 before floor and ceil see it.
    share = round(fraction * num_frames, 9)
    rounded: dict[Rounding, int] = {
        "floor": math.floor(share),
        "ceil": math.ceil(share),
        "nearest": round(share),
    }
    return min(max(rounded[rounding], 1), num_frames)


def clip_score(per_frame: Tensor, fraction: float = 1.0, rounding: Rounding = "floor") -> Tensor:
    """Mean of the best ``fraction`` of the frame scores, [..., F] -> [...]; a NaN makes it NaN."""
    if fraction == 1:
        return per_frame.mean(-1)
    count = num_best_frames(per_frame.shape[-1], fraction, rounding)
    best = per_frame.topk(count, dim=-1).values.mean(-1)
    # topk ranks NaN inconsistently between devices; a broken frame must not be left out silently.
    return best.masked_fill(per_frame.isnan().any(-1), math.nan)


@dataclass(frozen=True, kw_only=True)
class FrameSampler:
    """VideoAlign's sampler; part of a reward's ``reward.json``."""

    target_fps: float = 2.0
    """Frames taken per second of playback (published value 2)."""
    min_frames: int = 4
    """Even bounds of their number, as far as the clip has them."""
    max_frames: int = 768
    num_frames: int | None = None
    """A fixed number of frames instead, whatever the playback rate."""

    def __post_init__(self) -> None:
        low, high, fixed = self.min_frames, self.max_frames, self.num_frames
        usable = self.target_fps > 0 and math.isfinite(self.target_fps)
        usable &= 2 <= low <= high and low % 2 == high % 2 == 0
        if not usable or (fixed is not None and fixed < FRAME_PAIR):
            raise UserError(
                "frame sampler cannot be used",
                received=str(self),
                expected="a positive rate, even limits 2 <= min_frames <= max_frames, and a fixed "
                "number of at least 2 or none",
            )

    def count(self, total_frames: int, fps: float) -> int:
        """How many frames of a clip are taken: an even number, at least 2.

        ``total_frames / fps * target_fps`` is held within the limits and rounded to an even number.
        It is at most the even number below ``total_frames``: the public sampler keeps an odd one
        and then fails to pair the frames.
        """
        if total_frames < FRAME_PAIR:
            raise UserError(
                "the clip is too short for a video reward",
                received=f"{total_frames} frame(s)",
                expected=f">= {FRAME_PAIR}",
            )
        count = total_frames / fps * self.target_fps
        count = min(max(count, self.min_frames), self.max_frames)
        if self.num_frames is not None:
            count = self.num_frames
        all_pairs = total_frames // FRAME_PAIR * FRAME_PAIR
        return min(round(count / FRAME_PAIR) * FRAME_PAIR, all_pairs)

    def indices(self, total_frames: int, fps: float) -> Tensor:
        """Indices of the frames taken, int64 [count], from the first frame to the last.

        float32 steps rounded half to even, as in the public sampler: positions halfway between two
        frames fall to the same side.
        """
        count = self.count(total_frames, fps)
        return torch.linspace(0, total_frames - 1, count).round().long()


def to_grayscale(video: Tensor, mode: GrayMode = "bt601") -> Tensor:
    """Gray clips on three equal channels, [..., 3, H, W], uint8 or float in [0, 1].

    ``bt601`` rounds the luma to the nearest of the 256 levels (half up), ``bt601_trunc`` truncates
    it, ``mean`` rounds the channel mean: the report does not give the formula. Float results lie on
    the levels k/255, so a uint8 clip and its float copy give the same gray.
    """
    scale = 1.0 if video.dtype == torch.uint8 else 255.0
    weights = (1, 1, 1) if mode == "mean" else BT601_MILLI
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


@dataclass(frozen=True)
class UniqueFrames:
    """The different frames of some clips: a still clip costs one frame.

    ``slots`` [B, F] int64 says which of them stands where; each has the clip and frame index of its
    first appearance, and its sha256.
    """

    slots: Tensor
    origins: tuple[tuple[int, int], ...]
    digests: tuple[bytes, ...]


def unique_frames(video: Tensor, frame_idx: Tensor) -> UniqueFrames:
    """Equal frames within and across clips [B, T, 3, H, W] with finite pixels.

    Frames are compared by digest after the quantisation to 8 bits, the first step of every
    published image preprocessing: a float clip and its 8-bit copy hold the same frames.
    """
    slots = torch.empty(len(video), len(frame_idx), dtype=torch.long)
    numbers: dict[bytes, int] = {}
    origins: list[tuple[int, int]] = []
    for clip, frames in enumerate(video):
        digests = _digests(to_uint8(frames[frame_idx.to(video.device)]))
        for position, (frame, digest) in enumerate(zip(frame_idx.tolist(), digests, strict=True)):
            if digest not in numbers:
                numbers[digest] = len(numbers)
                origins.append((clip, frame))
            slots[clip, position] = numbers[digest]
    return UniqueFrames(slots, tuple(origins), tuple(numbers))


def _digests(frames: Tensor) -> Sequence[bytes]:
    rows = frames.cpu().contiguous().flatten(1).numpy()
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return list(pool.map(lambda row: hashlib.sha256(row).digest(), rows))
