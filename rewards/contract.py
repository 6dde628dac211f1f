"""What a reward receives and returns.

The batch states its layout, pixel range and playback rate and is checked, never guessed: a clip
written at another frame rate is another motion to a time-aware reward. A sample that cannot be
scored carries NaN, ``valid=False`` and a reason. No constant ever stands in for a missing score,
because a constant would enter the group mean and the standard deviation of the advantages.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from longtake.runtime.errors import UserError

PIXEL_TOLERANCE = 1e-3
"""Overshoot of [0, 1] that is taken as rounding of a decoder, in pixel units."""


@dataclass(frozen=True, kw_only=True)
class VideoBatch:
    """A batch of clips with their captions and playback rates.

    Args:
        video: [B, T, 3, H, W], float in [0, 1] or uint8, on any device.
        prompts: B captions.
        fps: playback rate in frames per second, one number or a [B] tensor. There is no default.

    Raises:
        UserError: wrong rank, channel count, dtype, number of prompts or playback rate. Pixels
            that are not finite or out of range do not raise: see :meth:`bad_samples`.
    """

    video: Tensor
    prompts: Sequence[str]
    fps: float | Tensor

    def __post_init__(self) -> None:
        _check_video(self.video)
        _check_prompts(self.prompts, self.num_samples)
        _check_fps(self.fps, self.num_samples)

    @property
    def num_samples(self) -> int:
        """Number of clips B."""
        return int(self.video.shape[0])

    @property
    def num_frames(self) -> int:
        """Number of frames T of every clip."""
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

    def bad_samples(self) -> list[str | None]:
        """A reason for each sample with unusable pixels, None for the others.

        One broken clip must not cost the scores of its batch, so pixel values are reported per
        sample and not raised.
        """
        if self.video.dtype == torch.uint8:
            return [None] * self.num_samples
        flat = self.video.detach().reshape(self.num_samples, -1).to(torch.float32)
        bad_counts = (~flat.isfinite()).sum(1).tolist()
        # The sums of amin/amax would be NaN as well, so the range is read from repaired pixels.
        repaired = flat.nan_to_num(0.0, 0.0, 0.0)
        lows, highs = repaired.amin(1).tolist(), repaired.amax(1).tolist()
        reasons: list[str | None] = []
        for bad, low, high in zip(bad_counts, lows, highs, strict=True):
            if bad:
                reasons.append(f"{bad} of {flat.shape[1]} pixel values are not finite")
            elif low < -PIXEL_TOLERANCE or high > 1 + PIXEL_TOLERANCE:
                reasons.append(f"pixels span [{low:.4g}, {high:.4g}], expected [0, 1]")
            else:
                reasons.append(None)
        return reasons


@dataclass(frozen=True, kw_only=True)
class RewardOutput:
    """Scores of one reward for one batch.

    Args:
        score: [B] float32; NaN where not valid.
        valid: [B] bool.
        aux: named side results whose first axis is B (per-frame scores, terms).
        reasons: B entries, None where valid. May be left out when every sample is valid.

    Raises:
        UserError: the shapes do not agree.
    """

    score: Tensor
    valid: Tensor
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    reasons: Sequence[str | None] = ()

    def __post_init__(self) -> None:
        if self.score.ndim != 1 or self.valid.shape != self.score.shape:
            raise UserError(
                "scores and validity mask of a reward do not fit",
                received=f"score {tuple(self.score.shape)}, valid {tuple(self.valid.shape)}",
                expected="two tensors of the same shape [B]",
                remedy="return one score and one flag per clip",
            )
        if self.valid.dtype != torch.bool:
            raise UserError(
                "validity mask of a reward is not boolean",
                received=self.valid.dtype,
                expected="torch.bool",
            )
        num_samples = int(self.score.shape[0])
        reasons = list(self.reasons) or [None] * num_samples
        if len(reasons) != num_samples:
            raise UserError(
                "reasons of a reward do not fit its scores",
                received=f"{len(reasons)} reasons for {num_samples} scores",
                expected="one entry per clip, None where the clip is scored",
            )
        score = self.score.detach().to(torch.float32)
        object.__setattr__(self, "score", score.masked_fill(~self.valid, math.nan))
        object.__setattr__(self, "reasons", reasons)

    @classmethod
    def from_scores(cls, score: Tensor, aux: Mapping[str, Tensor] | None = None) -> "RewardOutput":
        """An output whose non-finite scores are unscored, with that as the reason."""
        valid = score.detach().isfinite()
        reasons = [
            None if ok else f"the score is {value}"
            for ok, value in zip(valid.tolist(), score.tolist(), strict=True)
        ]
        return cls(score=score, valid=valid, aux=aux or {}, reasons=reasons)


@runtime_checkable
class Reward(Protocol):
    """A scorer of clips. Higher is better; the scale is free."""

    @property
    def name(self) -> str:
        """Column name of the score."""
        ...

    @property
    def needs_prompt(self) -> bool:
        """Whether the score depends on the caption."""
        ...

    @property
    def needs_time(self) -> bool:
        """Whether the score depends on the order of the frames or on the playback rate."""
        ...

    def score(self, batch: VideoBatch) -> RewardOutput:
        """One score per clip; a clip's score must not depend on the rest of the batch."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move the parameters of the reward."""
        ...

    def fingerprint(self) -> dict[str, object]:
        """Everything that fixes the scores (version, parameters, digests); JSON types only."""
        ...


def _check_video(video: object) -> None:
    if not isinstance(video, Tensor):
        raise UserError(
            "clips are not a tensor",
            received=type(video).__name__,
            expected="a torch tensor [B, T, 3, H, W]",
        )
    if video.ndim != 5 or video.shape[2] != 3 or 0 in video.shape:
        raise UserError(
            "clips have the wrong shape",
            received=tuple(video.shape),
            expected="[B, T, 3, H, W] without an empty axis",
            remedy="permute VAE output [B, 3, T, H, W] with video.transpose(1, 2)",
        )
    if video.dtype != torch.uint8 and not video.dtype.is_floating_point:
        raise UserError(
            "clips have the wrong dtype",
            received=video.dtype,
            expected="a float dtype with values in [0, 1], or torch.uint8",
        )


def _check_prompts(prompts: object, num_samples: int) -> None:
    # A bare string is a sequence too: its letters would pass as captions.
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise UserError(
            "captions are not a list of strings",
            received=type(prompts).__name__,
            expected="a sequence with one string per clip",
        )
    if len(prompts) != num_samples:
        raise UserError(
            "number of captions differs from the number of clips",
            received=f"{len(prompts)} captions for {num_samples} clips",
            expected="one caption per clip",
            remedy="repeat the caption of a group once per member",
        )
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise UserError(
                f"caption {index} is not a string",
                received=prompt,
                expected="str",
                remedy='use "" for a clip without a caption',
            )


def _check_fps(fps: object, num_samples: int) -> None:
    expected = "a positive number, or a tensor [B] of positive numbers"
    remedy = "pass the rate at which the clips are meant to be played"
    # bool is an int; True would silently mean 1 fps.
    if isinstance(fps, bool) or not isinstance(fps, int | float | Tensor):
        raise UserError("playback rate is missing", received=fps, expected=expected, remedy=remedy)
    values = torch.as_tensor(fps, dtype=torch.float32)
    if values.ndim > 1 or (values.ndim == 1 and values.shape[0] != num_samples):
        raise UserError(
            "playback rates do not fit the clips",
            received=tuple(values.shape),
            expected=f"a scalar or shape [{num_samples}]",
            remedy=remedy,
        )
    if not bool((values.isfinite() & (values > 0)).all()):
        raise UserError(
            "playback rate is not positive",
            received=values.tolist(),
            expected=expected,
            remedy=remedy,
        )
