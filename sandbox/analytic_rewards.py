"""Four analytic rewards for sandbox clips, with the roles of the report's four columns.

They stand in for HPSv3-general, HPSv3-percentile, VideoAlign MQ (gray) and VideoAlign TA (report
section 3.3.2) where no learned head is available. Each is a weighted sum of cheap pixel terms plus
a frozen error. They are proxies on purpose: dense enough to train on, wrong in a documented
direction, and built without the held-out oracles. Scores have mean about 0 and standard deviation
about 1 over damaged sandbox clips, of which one in four has the caption of another clip.

The error: a learned reward model errs in a repeatable way, the same clip always gets the same wrong
score, and a policy can climb that error. Independent noise would average out over a group instead.
So the error is a sum of random cosines (a Gaussian random field with a squared-exponential kernel)
of the coarse pixels, with phases hashed from the caption.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.rewards.contract import Reward, Score, VideoBatch
from longtake.rewards.frames import top_fraction_mean
from longtake.rewards.frames import to_grayscale
from longtake.runtime.errors import UserError
from longtake.runtime.rng import derive_key, generator
from longtake.sandbox.analytic_terms import (
    ClipView,
    Terms,
    alignment_terms,
    caption_terms,
    motion_terms,
    quality_terms,
)
from longtake.sandbox.captions import parse_caption
from longtake.sandbox.facts import Facts

VERSION = 1
"""Raised with every change that moves a score."""
TOP_FRACTION = 0.3
"""Share of the frames that count for ``Percentile`` (report section 3.3.2)."""
POOLED = (4, 4, 4)
"""Coarse clip seen by the error: time, height, width."""
NUM_COSINES = 64
"""Terms of the error; its values are close to Gaussian from about 30 on."""
ERROR_LENGTH = 0.05
"""RMS pixel difference of the coarse clips at which two errors have decorrelated to exp(-1/2)."""


class AnalyticReward(Reward):
    """A weighted sum of pixel terms plus a frozen error.

    Args:
        noise_amplitude: standard deviation of the error, in units of the score; 0 turns it off.
        noise_seed: names the error function.
    """

    name: ClassVar[str]
    """Names the draw of the error."""
    terms: ClassVar[Callable[[ClipView, Facts, float], Terms]]
    weights: ClassVar[dict[str, float]]
    """Weight of each term before scaling."""
    centre: ClassVar[float]
    """Subtracted from the weighted sum."""
    spread: ClassVar[float]
    """Divides the weighted sum."""
    fraction: ClassVar[float] = 1.0
    """Share of the frames, the best ones, whose mean is the score of the clip."""
    gray: ClassVar[bool] = False
    """Whether the reward sees gray clips."""

    def __init__(self, noise_amplitude: float = 0.25, noise_seed: int = 0) -> None:
        self.noise_amplitude, self.noise_seed = noise_amplitude, noise_seed
        self._error = FrozenError(noise_seed, self.name)

    def score(self, batch: VideoBatch) -> Sequence[Score]:
        """Clip by clip: bitwise independent of the batch, and faster, since one fits the cache."""
        rates = batch.fps_per_sample().tolist()
        scores = []
        for video, caption, fps in zip(batch.float_video(), batch.prompts, rates, strict=True):
            try:
                facts = parse_caption(caption) if self.needs_prompt else Facts(sprites=())
            except UserError as error:
                scores.append(Score.unscored(error.what))
                continue
            clip = to_grayscale(video, "bt601") if self.gray else video
            scores.append(Score.of(float(self._score(ClipView(clip), facts, caption, fps))))
        return scores

    def _score(self, view: ClipView, facts: Facts, caption: str, fps: float) -> Tensor:
        terms = type(self).terms(view, facts, fps)
        total = sum((weight * terms[name] for name, weight in self.weights.items()), torch.zeros(1))
        per_frame = (total - self.centre) / self.spread  # [T] or [1]
        error = self._error(view.grid, caption if self.needs_prompt else "")
        return top_fraction_mean(per_frame, self.fraction) + self.noise_amplitude * error

    def fingerprint(self) -> dict[str, object]:
        """Version and every parameter."""
        return {
            "kind": "analytic",
            "name": self.name,
            "version": VERSION,
            "noise_amplitude": self.noise_amplitude,
            "noise_seed": self.noise_seed,
        }
