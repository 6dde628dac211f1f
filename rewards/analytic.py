"""Four analytic rewards for sandbox clips, with the roles of the report's four columns.

They stand in for HPSv3-general, HPSv3-percentile, VideoAlign MQ (gray) and VideoAlign TA (report
section 3.3.2) where no learned head is available. Each is a weighted sum of cheap pixel terms plus
a frozen error function (:mod:`longtake.rewards.random_feature`). They are proxies on purpose: dense
enough to train on, wrong in a documented direction, and built without the held-out oracles.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from longtake.rewards.analytic_temporal import alignment_terms, motion_terms
from longtake.rewards.analytic_visual import caption_terms, quality_terms
from longtake.rewards.caption_words import CaptionWords, read_caption
from longtake.rewards.contract import RewardOutput, VideoBatch
from longtake.rewards.frames import Aggregation, Rounding, aggregate
from longtake.rewards.grayscale import GrayMode, to_grayscale
from longtake.rewards.random_feature import RandomFeature
from longtake.rewards.sprite_features import ClipView

VERSION = 1
"""Raised with every change that moves a score."""

NOISE_AMPLITUDE = 0.25
"""Default standard deviation of the frozen error, in units of the scaled score."""

Terms = Callable[[ClipView, Tensor, Sequence[CaptionWords]], dict[str, Tensor]]
"""(clips, fps [B], words of B captions) -> terms [B, F]; F = 1 for clip terms."""


@dataclass(frozen=True, kw_only=True)
class AnalyticConfig:
    """Parameters of one analytic reward; all of them enter the fingerprint."""

    weights: Mapping[str, float]
    """Weight of each term before scaling; the terms lie roughly in [0, 1]."""
    centre: float = 0.0
    """Subtracted from the weighted sum: its mean over damaged sandbox clips, of which one in four
    has the caption of another clip."""
    spread: float = 1.0
    """Divides the weighted sum: its standard deviation over the same clips."""
    noise_amplitude: float = NOISE_AMPLITUDE
    """Standard deviation of the frozen error, in units of the scaled score; 0 turns it off."""
    noise_seed: int = 0
    """Names the frozen error function."""
    how: Aggregation = "mean"
    """How frame scores become a clip score."""
    fraction: float = 0.3
    """Share of the frames for ``top_fraction`` (report section 3.3.2)."""
    rounding: Rounding = "floor"
    """How the share becomes a number of frames."""
    gray_mode: GrayMode | None = None
    """Grayscale formula applied to the clips first; None keeps the colours."""
    clips_per_pass: int = 1
    """Clips per tensor operation. 1 keeps scores bitwise independent of the batch, and is faster
    on the CPU, where one clip fits the cache."""


class AnalyticReward:
    """A weighted sum of pixel terms plus a frozen error; implements the Reward protocol.

    Args:
        name: column name.
        terms: computes the terms.
        config: weights, scale, error and aggregation.
        needs_prompt: whether the caption enters the terms and the error.
        needs_time: whether the order of the frames matters.
    """

    def __init__(
        self,
        name: str,
        terms: Terms,
        config: AnalyticConfig,
        *,
        needs_prompt: bool,
        needs_time: bool,
    ) -> None:
        self.name = name
        self.config = config
        self.needs_prompt = needs_prompt
        self.needs_time = needs_time
        self._terms = terms
        self._error = RandomFeature(config.noise_seed, name)

    def score(self, batch: VideoBatch) -> RewardOutput:
        """Scores with mean about 0 and standard deviation about 1 over damaged sandbox clips.

        The side results are ``per_frame`` [B, F], ``error`` [B] and one ``term.*`` column [B] for
        each term.
        """
        parts = []
        fps = batch.fps_per_sample()
        for start in range(0, batch.num_samples, self.config.clips_per_pass):
            rows = slice(start, start + self.config.clips_per_pass)
            video = VideoBatch(video=batch.video[rows], prompts=batch.prompts[rows], fps=1.0)
            parts.append(self._score_pass(video.float_video(), fps[rows], batch.prompts[rows]))
        joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        return RewardOutput.from_scores(joined.pop("score"), joined)

    def _score_pass(self, video: Tensor, fps: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        config = self.config
        if config.gray_mode is not None:
            video = to_grayscale(video, config.gray_mode)
        captions = list(prompts) if self.needs_prompt else [""] * len(prompts)
        view = ClipView(video)
        terms = self._terms(view, fps, [read_caption(caption) for caption in captions])
        per_frame = sum(
            (config.weights[key] * term for key, term in terms.items()),
            start=video.new_zeros(video.shape[0], 1),
        )
        per_frame = (per_frame - config.centre) / config.spread  # [B, F]
        clip = aggregate(per_frame, config.how, fraction=config.fraction, rounding=config.rounding)
        error = config.noise_amplitude * self._error(view.grid, captions)
        columns = {f"term.{key}": term.mean(1) for key, term in terms.items()}
        return {"score": clip + error, "per_frame": per_frame, "error": error, **columns}

    def to(self, device: torch.device | str) -> "AnalyticReward":
        """Move the frozen error function; the terms follow the device of the clips."""
        self._error.to(device)
        return self

    def fingerprint(self) -> dict[str, object]:
        """Version and every parameter."""
        config = asdict(replace(self.config, weights=dict(self.config.weights)))
        return {"kind": "analytic", "name": self.name, "version": VERSION, **config}


def general(noise_amplitude: float = NOISE_AMPLITUDE, noise_seed: int = 0) -> AnalyticReward:
    """Frame quality without a caption, mean over all frames (role of HPSv3-general).

    Likes sharp edges, firm and saturated palette colours and a flat background.
    Known hack: large, flat, over-saturated sprites; nothing asks whether a sprite should be there,
    be that size, or move.
    """
    config = AnalyticConfig(
        weights={
            "sharp": 1.5,
            "firm": 1.0,
            "palette": 1.5,
            "chroma": 0.3,
            "quiet": 0.8,
            "full": 0.4,
        },
        centre=3.49,
        spread=0.80,
        noise_amplitude=noise_amplitude,
        noise_seed=noise_seed,
    )
    return AnalyticReward("general", quality_terms, config, needs_prompt=False, needs_time=False)


def percentile(noise_amplitude: float = NOISE_AMPLITUDE, noise_seed: int = 0) -> AnalyticReward:
    """Frame-by-frame caption match, mean of the best 30 % of frames (role of HPSv3-percentile).

    Known hack: 30 % of the frames suffice, so a clip may show its sprite for five frames of 17 and
    lose it in the others; and colour mass counts wherever it lies, in one piece or in crumbs.
    """
    config = AnalyticConfig(
        weights={
            "colours": 1.0,
            "area": 0.5,
            "count": 0.4,
            "outline": 0.7,
            "background": 0.5,
            "palette": 0.4,
        },
        how="top_fraction",
        centre=2.24,
        spread=0.87,
        noise_amplitude=noise_amplitude,
        noise_seed=noise_seed,
    )
    return AnalyticReward("percentile", caption_terms, config, needs_prompt=True, needs_time=False)


def motion_quality(noise_amplitude: float = NOISE_AMPLITUDE, noise_seed: int = 0) -> AnalyticReward:
    """Smooth, steady, lasting motion on grayscale clips, without a caption (role of MQ).

    Known hack: any smooth change of brightness counts as motion, a drifting background as well as a
    moving sprite; and sprites that should stand still score higher when they move. Sprites whose
    luma is close to the background's (red, purple or blue on grey) are nearly invisible to it.
    """
    config = AnalyticConfig(
        weights={"smooth": 1.0, "steady": 0.8, "kept": 0.8, "even": 0.8, "moving": 0.8},
        gray_mode="bt601",
        centre=3.11,
        spread=0.82,
        noise_amplitude=noise_amplitude,
        noise_seed=noise_seed,
    )
    return AnalyticReward(
        "motion_quality", motion_terms, config, needs_prompt=False, needs_time=True
    )


def text_alignment(noise_amplitude: float = NOISE_AMPLITUDE, noise_seed: int = 0) -> AnalyticReward:
    """Colours, motion, speed and size of the caption on colour clips (role of TA).

    Known hack: only the centre of mass of a colour is followed, so a colour that fades out at one
    place and in at another has moved; shape does not count at all.
    """
    config = AnalyticConfig(
        weights={
            "present": 0.7,
            "pure": 0.6,
            "motion": 1.0,
            "pace": 0.4,
            "size": 0.4,
            "background": 0.4,
            "lasting": 0.4,
        },
        centre=2.47,
        spread=1.14,
        noise_amplitude=noise_amplitude,
        noise_seed=noise_seed,
    )
    return AnalyticReward(
        "text_alignment", alignment_terms, config, needs_prompt=True, needs_time=True
    )
