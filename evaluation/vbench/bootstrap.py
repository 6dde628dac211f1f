"""Bootstrap over prompts, for dimensions, categories and the total at once.

A prompt's videos are not independent, and one prompt of ten tests several dimensions with the same
videos. So a resample draws prompts, and a prompt that is drawn twice counts twice in every
dimension that it tests. Prompts are drawn within strata, one for each dimension, to which a prompt
belongs when none of its other dimensions has fewer prompts: so the ten prompts of Diversity stay
ten. (`evaluation.statistics` resamples one mean; a total needs all of its dimensions resampled
together.)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtake.evaluation.vbench.results import DimensionResults
from longtake.evaluation.vbench.suites import Suite
from longtake.evaluation.vbench.totals import all_scores, shares

FloatArray = NDArray[np.float64]

RESAMPLES = 10_000
_CHUNK = 500
_FEWEST = 0.95
"""Share of resamples in which a score must exist, for its interval to be given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Percentile interval of a score."""

    low: float
    high: float
    confidence: float


def prompt_of(video: str) -> str:
    """The part of a file name that stands for the prompt: `{prompt[:180]}-{index}.mp4`."""
    return video.rpartition("-")[0]


def resampled_scores(
    suite: Suite,
    models: Sequence[Mapping[str, DimensionResults]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, FloatArray]]:
    """Scores of models under the same resamples of prompts.

    Args:
        suite: with the formulas.
        models: for each model its results by dimension, with results of videos; dimensions without
            are left out.
        resamples: number of resamples R.
        seed: the same seed gives the same resamples.

    Returns:
        For each model, an array [R] by dimension, by category where it is complete, and for
        `Total`. NaN where a resample holds no video of a dimension, and throughout where a
        dimension has fewer than two prompts: their spread cannot be estimated.
    """
    prompts = sorted({prompt_of(n) for m in models for r in m.values() for n in r.applicable})
    tables = [_sums(model, prompts) for model in models]
    strata = _strata(tables, len(prompts))
    rng = np.random.default_rng(seed)
    means: list[list[FloatArray]] = [[] for _ in models]
    for start in range(0, resamples, _CHUNK):
        counts = _draw(strata, len(prompts), min(_CHUNK, resamples - start), rng)
        for index, (_, sums, weights) in enumerate(tables):
            with np.errstate(invalid="ignore", divide="ignore"):
                means[index].append((counts @ sums) / (counts @ weights))
    return [
        _with_categories(suite, model, names, np.concatenate(parts))
        for model, (names, _, _), parts in zip(models, tables, means, strict=True)
    ]


def _sums(
    model: Mapping[str, DimensionResults], prompts: Sequence[str]
) -> tuple[list[str], FloatArray, FloatArray]:
    """Names of dimensions [D], sums of values and of weights [P, D] in units of the score."""
    row = {prompt: number for number, prompt in enumerate(prompts)}
    names = [name for name, results in model.items() if results.applicable]
    sums = np.zeros((len(prompts), len(names)))
    weights = np.zeros_like(sums)
    for column, name in enumerate(names):
        results = model[name]
        for video, result in results.applicable.items():
            number = row[prompt_of(video)]
            sums[number, column] += result.value / results.dimension.unit * result.frames
            weights[number, column] += result.frames
    return names, sums, weights


def _strata(
    tables: Sequence[tuple[list[str], FloatArray, FloatArray]], num_prompts: int
) -> list[NDArray[np.int64]]:
    """Numbers of the prompts of each stratum."""
    present: dict[str, NDArray[np.bool_]] = {}
    for names, _, weights in tables:
        for column, name in enumerate(names):
            known = present.get(name, np.zeros(num_prompts, dtype=bool))
            present[name] = known | (weights[:, column] > 0)
    taken = np.zeros(num_prompts, dtype=bool)
    strata = []
    for name in sorted(present, key=lambda name: int(present[name].sum())):
        members = present[name] & ~taken
        taken |= members
        if members.any():
            strata.append(np.flatnonzero(members))
    return strata


def _draw(
    strata: Sequence[NDArray[np.int64]], num_prompts: int, rows: int, rng: np.random.Generator
) -> FloatArray:
    """How often each prompt is drawn, [rows, P]."""
    counts = np.zeros((rows, num_prompts))
    for members in strata:
        size = len(members)
        counts[:, members] = rng.multinomial(size, np.full(size, 1.0 / size), size=rows)
    return counts


def _with_categories(
    suite: Suite, model: Mapping[str, DimensionResults], names: Sequence[str], means: FloatArray
) -> dict[str, FloatArray]:
    scores = {name: means[:, column] for column, name in enumerate(names)}
    for name in names:
        if model[name].forced_to_zero:
            scores[name] = np.zeros(len(means))
        if len({prompt_of(video) for video in model[name].applicable}) < 2:
            scores[name] = np.full(len(means), np.nan)
    return scores | all_scores(suite, scores)


def spread(values: FloatArray, confidence: float = 0.95) -> Spread | None:
    """Percentile interval of resampled values; None when too many resamples have none."""
    finite = values[np.isfinite(values)]
    if len(finite) < _FEWEST * len(values):
        return None
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(finite, [tail, 1.0 - tail])
    return Spread(low=float(low), high=float(high), confidence=confidence)


def standard_error(
    suite: Suite, line: str, samples: Mapping[str, FloatArray], prompts: Mapping[str, int]
) -> tuple[float, float] | None:
    """Standard error of a line and its degrees of freedom, for intervals far out in the tails.

    Percentiles of resamples of ten prompts end where the prompts end, so they are too narrow for
    the levels that many comparisons at once need. The standard deviation of the resamples with the
    factor n / (n - 1) and Student's t are not; several dimensions share their degrees of freedom by
    the rule of Welch and Satterthwaite.

    Args:
        suite: with the formulas.
        line: a dimension, a category or `Total`.
        samples: resampled scores (or differences of two models) of all lines.
        prompts: number of prompts n by dimension.

    Returns:
        None when the line or one of its dimensions has no spread to estimate.
    """
    parts = shares(suite, line)
    if line not in samples or not np.isfinite(samples[line]).any():
        return None
    if any(prompts.get(name, 0) < 2 for name in parts):
        return None
    # Contribution of each dimension to the variance, before and after the small-sample factor.
    plain = {n: (share * float(np.nanstd(samples[n]))) ** 2 for n, share in parts.items()}
    corrected = {n: v * prompts[n] / (prompts[n] - 1) for n, v in plain.items()}
    whole = sum(plain.values())
    if not whole:
        return 0.0, math.inf
    # The resamples of the line itself also hold the covariances of its dimensions.
    variance = float(np.nanvar(samples[line])) * sum(corrected.values()) / whole
    spread_of_parts = sum(v**2 / (prompts[n] - 1) for n, v in corrected.items())
    return math.sqrt(variance), sum(corrected.values()) ** 2 / spread_of_parts
