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
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.rewards.contract import Reward, Score, VideoBatch
from longtake.rewards.frames import clip_score, to_grayscale
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
    terms: ClassVar["staticmethod[[ClipView, Facts, float], Terms]"]
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
            facts = _facts(caption) if self.needs_prompt else Facts(sprites=())
            clip = to_grayscale(video, "bt601") if self.gray else video
            scores.append(Score.of(float(self._score(ClipView(clip), facts, caption, fps))))
        return scores

    def _score(self, view: ClipView, facts: Facts, caption: str, fps: float) -> Tensor:
        terms = type(self).terms(view, facts, fps)
        zero = view.video.new_zeros(1)
        total = sum((weight * terms[name] for name, weight in self.weights.items()), zero)
        per_frame = (total - self.centre) / self.spread  # [T] or [1]
        error = self._error(view.grid, caption if self.needs_prompt else "")
        return clip_score(per_frame, self.fraction) + self.noise_amplitude * error

    def fingerprint(self) -> dict[str, object]:
        """Version and every parameter."""
        return {
            "kind": "analytic",
            "name": self.name,
            "version": VERSION,
            "noise_amplitude": self.noise_amplitude,
            "noise_seed": self.noise_seed,
        }


class General(AnalyticReward):
    """Frame quality without a caption, mean over all frames (role of HPSv3-general).

    Likes sharp edges, firm and saturated palette colours and a flat background.
    Known hack: large, flat, over-saturated sprites; nothing asks whether a sprite should be there,
    be that size, or move.
    """

    name, needs_prompt, needs_time = "general", False, False
    terms = staticmethod(quality_terms)
    weights: ClassVar[dict[str, float]] = {
        "sharp": 1.5,
        "firm": 1.0,
        "palette": 1.5,
        "chroma": 0.3,
        "quiet": 0.8,
        "full": 0.4,
    }
    centre, spread = 3.49, 0.80


class Percentile(AnalyticReward):
    """Frame-by-frame caption match, mean of the best 30 % of frames (role of HPSv3-percentile).

    Known hack: 30 % of the frames suffice, so a clip may show its sprite for five frames of 17 and
    lose it in the others; and colour mass counts wherever it lies, in one piece or in crumbs.
    """

    name, needs_prompt, needs_time = "percentile", True, False
    terms = staticmethod(caption_terms)
    weights: ClassVar[dict[str, float]] = {
        "colours": 1.0,
        "area": 0.5,
        "count": 0.4,
        "outline": 0.7,
        "background": 0.5,
        "palette": 0.4,
    }
    centre, spread = 2.24, 0.87
    fraction = TOP_FRACTION


class MotionQuality(AnalyticReward):
    """Smooth, steady, lasting motion on gray clips, without a caption (role of VideoAlign MQ).

    Known hack: any smooth change of brightness counts as motion, a drifting background as well as a
    moving sprite; and sprites that should stand still score higher when they move. Sprites whose
    luma is close to the background's (red, purple or blue on grey) are nearly invisible to it.
    """

    name, needs_prompt, needs_time = "motion_quality", False, True
    terms = staticmethod(motion_terms)
    weights: ClassVar[dict[str, float]] = {
        "smooth": 1.0,
        "steady": 0.8,
        "kept": 0.8,
        "even": 0.8,
        "moving": 0.8,
    }
    centre, spread = 3.11, 0.82
    gray = True


class TextAlignment(AnalyticReward):
    """Colours, motion, speed and size of the caption on colour clips (role of VideoAlign TA).

    Known hack: only the centre of mass of a colour is followed, so a colour that fades out at one
    place and in at another has moved; shape does not count at all.
    """

    name, needs_prompt, needs_time = "text_alignment", True, True
    terms = staticmethod(alignment_terms)
    weights: ClassVar[dict[str, float]] = {
        "present": 0.7,
        "pure": 0.6,
        "motion": 1.0,
        "pace": 0.4,
        "size": 0.4,
        "background": 0.4,
        "lasting": 0.4,
    }
    centre, spread = 2.47, 1.14


def _facts(caption: str) -> Facts:
    """What the caption states: nothing if it is outside of the grammar, and terms are neutral."""
    try:
        return parse_caption(caption)
    except UserError:
        return Facts(sprites=())


class FrozenError:
    """A function of clips and captions with mean about 0 and variance about 1.

    Args:
        seed: names the function.
        name: separates the functions of several rewards with one seed.
    """

    def __init__(self, seed: int, name: str) -> None:
        self._seed, self._name = seed, name
        size = 3 * math.prod(POOLED)
        directions = torch.randn(NUM_COSINES, size, generator=generator(seed, name, "directions"))
        self._directions = directions / (ERROR_LENGTH * math.sqrt(size))

    def __call__(self, video: Tensor, caption: str) -> Tensor:
        """The error [] of a clip [T, 3, H, W] in [0, 1]."""
        coarse = F.adaptive_avg_pool3d(video.transpose(0, 1)[None], POOLED).flatten(1)
        key = derive_key(self._seed, self._name, "caption", caption)
        phases = torch.rand(NUM_COSINES, generator=generator(key)) * (2 * math.pi)
        waves = F.linear(coarse, self._directions.to(video.device)) + phases.to(video.device)
        return waves.cos().sum() * math.sqrt(2 / NUM_COSINES)
