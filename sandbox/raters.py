"""Raters whose bias and noise are known: studies in which the right answer is known too.

A video of model m for prompt p has the latent quality

    q = quality[m, dimension] + a_p + b_v,   a_p ~ N(0, prompt_sd),   b_v ~ N(0, video_sd),

where a_p is shared by all models of a prompt. A rater sees q + bias + noise N(0, 1) and rounds it
into 1..5; in a pair the rater compares two such impressions, prefers the left one by ``left_bias``
points, and says "same" up to a difference of ``tie_threshold``.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longtake.evaluation.dimensions import SCALE
from longtake.evaluation.gsb_plan import Pair
from longtake.evaluation.protocol import ProtocolConfig, assess, assign
from longtake.evaluation.ratings import Rating, Sample, append_ratings, write_samples
from longtake.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedRater:
    """How one rater errs."""

    name: str
    bias: float = 0.0
    """Points added to every impression."""
    noise: float = 0.6
    """Standard deviation of an impression, points."""
    left_bias: float = 0.0
    """Points that the left video of a pair gains."""
    tie_threshold: float = 0.4
    """Differences of impressions up to this size are "same", points."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedStudy:
    """The truth of a study."""

    quality: Mapping[str, Mapping[str, float]]
    """Model -> dimension -> mean latent quality on the 1-5 scale."""
    raters: tuple[SimulatedRater, ...]
    """The pool; at least as many as the protocol may ask for one video."""
    num_prompts: int = 60
    """Prompts; one video of each model for each."""
    prompt_sd: float = 0.5
    """How much prompts differ in difficulty, points."""
    video_sd: float = 0.6
    """How much videos of one model and prompt differ, points."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the dimensions, those of the first model."""
        return tuple(next(iter(self.quality.values())))


def rater_pool(count: int, seed: int = 0, bias_sd: float = 0.3) -> tuple[SimulatedRater, ...]:
    """Raters with different biases and noise levels."""
    rng = np.random.default_rng([seed, 1])
    return tuple(
        SimulatedRater(
            name=f"rater{i + 1}",
            bias=float(rng.normal(0.0, bias_sd)),
            noise=float(rng.uniform(0.4, 0.8)),
        )
        for i in range(count)
    )


def simulated_samples(study: SimulatedStudy) -> list[Sample]:
    """The list of samples: ids do not name the model."""
    return [
        Sample(sample=f"s{p * len(study.quality) + m + 1:05d}", model=model, prompt=f"p{p + 1:04d}")
        for p in range(study.num_prompts)
        for m, model in enumerate(study.quality)
    ]


def latent_quality(study: SimulatedStudy, seed: int) -> dict[tuple[str, str], float]:
    """(sample, dimension) -> q, drawn once for a study."""
    rng = np.random.default_rng([seed, 2])
    shape = (study.num_prompts, len(study.quality), len(study.dimensions))
    prompt = rng.normal(0.0, study.prompt_sd, size=(study.num_prompts, 1, 1))
    true = np.array([[given[d] for d in study.dimensions] for given in study.quality.values()])
    q = true + prompt + rng.normal(0.0, study.video_sd, size=shape)
    names = [item.sample for item in simulated_samples(study)]
    return {
        (name, dimension): value
        for name, row in zip(names, q.reshape(len(names), -1).tolist(), strict=True)
        for dimension, value in zip(study.dimensions, row, strict=True)
    }


def simulate_ratings(
    study: SimulatedStudy, protocol: ProtocolConfig | None = None, *, seed: int = 0
) -> list[Rating]:
    """All ratings of a study, in the order in which the protocol asks for them."""
    rule = protocol or ProtocolConfig()
    quality = latent_quality(study, seed)
    samples = {item.sample: item for item in simulated_samples(study)}
    pool = {rater.name: rater for rater in study.raters}
    rng = np.random.default_rng([seed, 3])
    ratings: list[Rating] = []
    for round_number in range(2):  # the first raters, then the extra ones
        given = [(r.sample, r.rater, r.dimension, r.score or 0.0) for r in ratings]
        units = assess(given, study.dimensions, rule, samples)
        assignments, short = assign(units, list(pool), seed=seed * 2 + round_number)
        if short:
            raise UserError(
                "too few simulated raters",
                received=len(pool),
                expected=f">= {rule.first_raters + rule.extra_raters}",
            )
        draws = iter(rng.normal(size=sum(len(a.dimensions) for a in assignments)).tolist())
        ratings += [
            Rating(
                sample=item.sample,
                dimension=dimension,
                rater=item.rater,
                score=_score(pool[item.rater], quality[item.sample, dimension], next(draws)),
                model=samples[item.sample].model,
                prompt=samples[item.sample].prompt,
            )
            for item in assignments
            for dimension in item.dimensions
        ]
    return ratings


def _score(rater: SimulatedRater, quality: float, draw: float) -> float:
    low, high = SCALE
    return float(min(max(round(quality + rater.bias + rater.noise * draw), low), high))


def simulate_answers(
    study: SimulatedStudy, pairs: Sequence[Pair], *, raters_per_pair: int = 1, seed: int = 0
) -> list[Rating]:
    """Answers to a plan of pairs: 1 left, 0 same, -1 right, as :mod:`longtake.evaluation.gsb`."""
    quality = latent_quality(study, seed)
    rng = np.random.default_rng([seed, 4])
    teams = np.argsort(rng.random((len(pairs), len(study.raters))), axis=1)[:, :raters_per_pair]
    # Two impressions are compared, each with the rater's noise.
    noise = np.sqrt(2.0) * rng.normal(size=(*teams.shape, len(study.dimensions)))
    ratings = []
    for pair, team, pair_noise in zip(pairs, teams.tolist(), noise.tolist(), strict=True):
        for index, draws in zip(team, pair_noise, strict=True):
            rater = study.raters[index]
            for dimension, draw in zip(study.dimensions, draws, strict=True):
                seen = quality[pair.left, dimension] - quality[pair.right, dimension]
                seen += rater.left_bias + rater.noise * draw
                answer = 0.0 if abs(seen) <= rater.tie_threshold else math.copysign(1.0, seen)
                ratings.append(
                    Rating(sample=pair.pair, dimension=dimension, rater=rater.name, score=answer)
                )
    return ratings


def parse_qualities(texts: Sequence[str], dimensions: Sequence[str]) -> dict[str, dict[str, float]]:
    """``NAME=QUALITY`` entries as the truth of a study, the same in all dimensions."""
    truth: dict[str, dict[str, float]] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            quality = float(value)
        except ValueError:
            quality = math.nan
        if not name or not SCALE[0] <= quality <= SCALE[1]:
            raise UserError(
                "a simulated model cannot be read",
                received=text,
                expected=f"NAME=QUALITY with a quality from {SCALE[0]} to {SCALE[1]}",
            )
        truth[name] = dict.fromkeys(dimensions, quality)
    if len(truth) < 2:
        raise UserError(
            "a study compares models", received=", ".join(texts), expected="two different names"
        )
    return truth


def write_study(study: SimulatedStudy, folder: Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Write ``samples.csv`` and ``ratings.jsonl`` of a simulated study."""
    log = folder / "ratings.jsonl"
    if log.exists():
        raise UserError(
            "the folder holds ratings", received=str(log), remedy="choose another --output-dir"
        )
    listed = write_samples(folder / "samples.csv", simulated_samples(study))
    ratings = simulate_ratings(study, seed=seed)
    # Blind, as the log of real raters is: only the list knows the models.
    append_ratings(log, (dataclasses.replace(item, model="", prompt="") for item in ratings))
    return listed, log
