"""Raters whose bias and noise are known: studies in which the right answer is known too.

A video of model m for prompt p has the latent quality

    q = quality[m, dimension] + a_p + b_v,   a_p ~ N(0, prompt_sd),   b_v ~ N(0, video_sd),

where a_p is shared by all models of a prompt. A rater sees q + bias + noise N(0, 1) and rounds it
into 1..5; in a pair the rater compares two such impressions, prefers the left one by ``left_bias``
points, and says "same" up to a difference of ``tie_threshold``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from longtake.evaluation.dimensions import SCALE
from longtake.evaluation.gsb_plan import Pair
from longtake.evaluation.mos_protocol import ProtocolConfig, assess, assign
from longtake.evaluation.records import Rating
from longtake.evaluation.samples import Sample
from longtake.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedRater:
    """How one rater errs."""

    name: str
    """Id."""
    bias: float = 0.0
    """Points added to every impression."""
    noise: float = 0.6
    """Standard deviation of an impression, points."""
    left_bias: float = 0.0
    """Points that the left video of a pair gains."""
    tie_threshold: float = 0.4
    """Differences of impressions up to this size are "same", points."""
    constant: int | None = None
    """The only score this rater gives; None rates honestly."""


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
    values = q.reshape(len(names), -1).tolist()
    return {
        (name, dimension): value
        for name, row in zip(names, values, strict=True)
        for dimension, value in zip(study.dimensions, row, strict=True)
    }


def simulate_ratings(
    study: SimulatedStudy, protocol: ProtocolConfig | None = None, *, seed: int = 0
) -> list[Rating]:
    """All ratings of a study, in the order in which the protocol asks for them.

    Raises:
        UserError: the pool is smaller than the protocol needs.
    """
    rule = protocol or ProtocolConfig()
    quality = latent_quality(study, seed)
    samples = {item.sample: item for item in simulated_samples(study)}
    pool = {rater.name: rater for rater in study.raters}
    rng = np.random.default_rng([seed, 3])
    ratings: list[Rating] = []
    given: list[tuple[str, str, str, float]] = []
    for round_number in range(2):  # the first raters, then the extra ones
        units = assess(given, study.dimensions, rule, samples)
        made, short = assign(units, list(pool), seed=seed * 2 + round_number)
        if short:
            raise UserError(
                "too few simulated raters",
                received=len(pool),
                expected=f">= {rule.first_raters + rule.extra_raters}",
            )
        draws = iter(rng.normal(size=sum(len(item.dimensions) for item in made)).tolist())
        for item in made:
            for dimension in item.dimensions:
                latent = quality[item.sample, dimension]
                score = _score(pool[item.rater], latent, next(draws))
                given.append((item.sample, item.rater, dimension, score))
                ratings.append(
                    Rating(
                        sample=item.sample,
                        dimension=dimension,
                        rater=item.rater,
                        score=score,
                        model=samples[item.sample].model,
                        prompt=samples[item.sample].prompt,
                    )
                )
    return ratings


def _score(rater: SimulatedRater, quality: float, draw: float) -> float:
    if rater.constant is not None:
        return float(rater.constant)
    return float(np.clip(round(quality + rater.bias + rater.noise * draw), *SCALE))


def simulate_answers(
    study: SimulatedStudy, pairs: Sequence[Pair], *, raters_per_pair: int = 1, seed: int = 0
) -> list[Rating]:
    """Answers to a plan of pairs: 1 left, 0 same, -1 right, as :mod:`longtake.evaluation.gsb`."""
    quality = latent_quality(study, seed)
    rng = np.random.default_rng([seed, 4])
    ratings = []
    for pair in pairs:
        for index in rng.permutation(len(study.raters))[:raters_per_pair]:
            rater = study.raters[index]
            for dimension in study.dimensions:
                left, right = quality[pair.left, dimension], quality[pair.right, dimension]
                seen = left - right + rater.left_bias
                seen += rater.noise * float(rng.normal()) * np.sqrt(2.0)
                answer = 0.0 if abs(seen) <= rater.tie_threshold else float(np.sign(seen))
                ratings.append(
                    Rating(sample=pair.pair, dimension=dimension, rater=rater.name, score=answer)
                )
    return ratings
