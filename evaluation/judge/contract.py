"""What a judge model is to the rest: clips and captions in, one score per dimension out.

A backbone (another VLM, a text judge that prints its scores) joins with a class of this protocol
and an entry in ``judge_directory.BACKBONES``; training, calibration, controls and the report card
do not change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class JudgeClip:
    """One clip to judge."""

    frames: Tensor
    """uint8 [T, 3, H, W]."""
    fps: float
    """Frames per second of playback."""
    caption: str
    """What it should show."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judge's answer to one clip."""

    scores: tuple[float | None, ...]
    """In the order of the model's dimensions; None where there is no score."""
    reason: str = ""
    """Why scores are missing: a clip that cannot be shown, an answer that cannot be parsed."""


class JudgeModel(Protocol):
    """A model that judges clips."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of its scores."""

    def judge(self, clips: Sequence[JudgeClip]) -> list[Verdict]:
        """Verdicts of clips, each independent of the others."""

    def to(self, device: torch.device) -> "JudgeModel":
        """Move the weights."""
