"""What a reward receives and what it returns: a batch of clips, one :class:`Score` per clip.

The batch states its layout, pixel range and playback rate and is checked, never guessed: a clip
shown at another frame rate is another motion to a reward that looks at time. A sample that cannot
be scored has a reason instead of a number. No constant ever stands in for a missing score, because
it would enter the group mean and the standard deviation of the advantages.
"""

import hashlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from longtake.runtime.errors import UserError

# Overshoot of [0, 1] that is taken as rounding of a decoder, in pixel units.
PIXEL_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Score:
    """One number for one sample and dimension, or no number and the reason why; never both."""

    value: float | None
    reason: str | None = None
    note: str = ""
    """What a reader of the number should know, for example that a caption was cut."""

    def __post_init__(self) -> None:
        assert (self.value is None) == bool(self.reason), "a number or a reason"
        assert self.value is None or math.isfinite(self.value), "see Score.of"

    @classmethod
    def of(cls, value: float, note: str = "") -> "Score":
        """A number; one that is not finite is unscored."""
        if math.isfinite(value):
            return cls(value, None, note)
        return cls.unscored(f"the score is {value}")

    @classmethod
    def unscored(cls, reason: str) -> "Score":
        """No number."""
        return cls(None, reason or "no reason was given")

    def __float__(self) -> float:
        """NaN when unscored: arrays of scores have no other mark for it."""
        return math.nan if self.value is None else self.value


def scores_of(values: Tensor) -> list[Score]:
    """One score per entry of [B]; entries that are not finite are unscored."""
    return [Score.of(value) for value in values.detach().to("cpu", torch.float32).tolist()]


@dataclass(frozen=True, kw_only=True)
class VideoBatch:
    """A batch of clips with their captions and playback rates.

    Pixels that are not finite or out of range do not raise: one broken clip must not cost the
    scores of its batch (:meth:`pixel_problems`).
    """

    video: Tensor
    """[B, T, 3, H, W], float in [0, 1] or uint8, on any device."""
    prompts: Sequence[str]
    """B captions."""
    fps: float | Tensor
    """Playback rate in frames per second, one number or [B]. There is no default."""

    def __post_init__(self) -> None:
        video, prompts, fps = self.video, self.prompts, self.fps
        is_tensor = isinstance(video, Tensor) and video.ndim == 5
        is_video = is_tensor and video.shape[2] == 3 and 0 not in video.shape
        is_video = is_video and (video.dtype == torch.uint8 or video.is_floating_point())
        # A bare string is a sequence too: its letters would pass as captions. bool is an int, and
        # True would silently mean 1 fps.
        has_prompts = isinstance(prompts, Sequence) and not isinstance(prompts, str)
        has_rate = isinstance(fps, int | float | Tensor) and not isinstance(fps, bool)
        rates = torch.as_tensor(fps if has_rate else math.nan, dtype=torch.float32)
        if (
            not (is_video and has_prompts)
            or [type(prompt) for prompt in prompts] != [str] * len(video)
            or rates.shape not in ((), (len(video),))
            or not (rates.isfinite() & (rates > 0)).all()
        ):
            shape = tuple(getattr(video, "shape", ()))
            raise UserError(
                "clips, captions and playback rate cannot be scored",
                received=f"video {shape} {getattr(video, 'dtype', '')}, {prompts!r}, fps {fps}",
                expected="video [B, T, 3, H, W] without an empty axis, uint8 or float in [0, 1]; B "
                'captions ("" for none); a positive rate, or one for each clip',
                remedy="permute VAE output [B, 3, T, H, W] with video.transpose(1, 2)",
            )

    @property
    def num_samples(self) -> int:
        """B."""
        return int(self.video.shape[0])

    @property
    def num_frames(self) -> int:
        """T."""
        return int(self.video.shape[1])

    def fps_per_sample(self) -> Tensor:
        """Playback rates as a float32 tensor [B] on the device of the clips."""
        fps = torch.as_tensor(self.fps, dtype=torch.float32, device=self.video.device)
        return fps.expand(self.num_samples)

    def float_video(self) -> Tensor:
        """The clips as float32 [B, T, 3, H, W] in [0, 1]; uint8 is divided by 255."""
        if self.video.dtype == torch.uint8:
            return self.video.to(torch.float32) / 255.0
        return self.video.to(torch.float32).clamp(0.0, 1.0)  # NaN stays NaN

    def select(self, indices: Sequence[int]) -> "VideoBatch":
        """The sub-batch of the given sample indices, in their order (at least one index)."""
        index = torch.as_tensor(list(indices), dtype=torch.long, device=self.video.device)
        fps = self.fps
        if isinstance(fps, Tensor) and fps.ndim == 1:
            fps = fps[index.to(fps.device)]
        prompts = [self.prompts[i] for i in indices]
        return VideoBatch(video=self.video[index], prompts=prompts, fps=fps)

    def pixel_problems(self) -> list[str | None]:
        """A reason for each sample with unusable pixels, None for the others."""
        if self.video.dtype == torch.uint8:
            return [None] * self.num_samples
        flat = self.video.detach().reshape(self.num_samples, -1).to(torch.float32)
        bad_counts = (~flat.isfinite()).sum(1).tolist()
        # amin and amax would be NaN as well, so the range is read from repaired pixels.
        repaired = flat.nan_to_num(0.0, 0.0, 0.0)
        lows, highs = repaired.amin(1).tolist(), repaired.amax(1).tolist()
        problems: list[str | None] = []
        for bad, low, high in zip(bad_counts, lows, highs, strict=True):
            if bad:
                problems.append(f"{bad} of {flat.shape[1]} pixel values are not finite")
            elif low < -PIXEL_TOLERANCE or high > 1 + PIXEL_TOLERANCE:
                problems.append(f"pixels span [{low:.4g}, {high:.4g}], expected [0, 1]")
            else:
                problems.append(None)
        return problems


@runtime_checkable
class Reward(Protocol):
    """A scorer of clips. Higher is better; the scale is free.

    A class of one's own derives from this one and defines the two flags and :meth:`score`; one with
    parameters on a device or with settings defines the other two methods as well.
    """

    needs_prompt: bool
    """Whether the score depends on the caption."""
    needs_time: bool
    """Whether the score depends on the order of the frames or on the playback rate."""

    def score(self, batch: VideoBatch) -> Sequence[Score]:
        """One score per clip; a clip's score must not depend on the rest of the batch.

        The pixels of all clips are usable: a suite keeps the others back.
        """
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move the parameters of the reward, if it has any."""
        return self

    def fingerprint(self) -> dict[str, object]:
        """Everything that fixes the scores, in JSON types; by default class and source file."""
        source = Path(inspect.getfile(type(self))).read_bytes()
        return {
            "class": type(self).__qualname__,
            "source_sha256": hashlib.sha256(source).hexdigest(),
        }


def fingerprint_digest(fingerprint: Mapping[str, object]) -> str:
    """SHA-256 of a fingerprint in canonical JSON."""
    text = json.dumps(fingerprint, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
