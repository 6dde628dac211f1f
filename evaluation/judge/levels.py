"""Agreement of a judge with the raters at three levels: videos, videos of a prompt, models.

A correlation without its level is no claim: over videos the difficulty of prompts enters, within a
prompt only the models differ, and over the means of a few models nearly every judge looks good.
Every interval is a bootstrap over prompts (clusters); the models are taken as given.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from scipy import stats

from longtake.runtime.config import Config
from longtake.runtime.statistics import (
    FloatArray,
    IntArray,
    cluster_sums,
    percentile_interval,
    resampled,
)

MEASURES = ("plcc", "srcc", "krcc", "rmse", "accuracy")
"""Pearson's, Spearman's and Kendall's (tau-b) correlation, root mean square error in points, and
the share of pairs that are ordered as by the raters."""


class LevelSettings(Config):
    """How pairs are made and intervals are drawn."""

    tie_margin: float = 0.25
    """Mean ratings of two videos that differ by at most this are equal, points. Means of three
    raters lie on thirds, of five on fifths: 0.25 joins neighbours that one answer makes."""
    model_tie_margin: float = 0.05
    """The same for the means of two models, points."""
    max_pairs: int = 10_000
    """Pairs of videos at sample level; more are drawn at random."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    resamples: int = Field(default=1000, ge=100)
    seed: int = 0
    """Of the resampling and of the pairs."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """n videos of one dimension that have both ratings and a score of the judge; arrays [n]."""

    human: FloatArray
    judge: FloatArray
    prompts: IntArray
    models: IntArray
    """Numbers without gaps."""
    clusters: IntArray
    """All videos of a prompt are in one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One measure of one dimension at one level."""

    dimension: str
    level: str
    """sample: over all videos; prompt: within prompts, averaged; model: over means of models."""
    measure: str
    value: float
    """NaN where undefined."""
    ci_low: float
    ci_high: float
    n: int
    """Videos, prompts, models, or pairs of them, that the value is computed from."""
    reason: str = ""
    """Why the value is undefined; empty otherwise."""


Statistic = Callable[[IntArray], FloatArray]
"""How often each cluster is drawn [C] -> values [K]."""


def measure_levels(
    dimension: str, data: Judged, num_clusters: int, settings: LevelSettings
) -> list[Measurement]:
    """Every measure at every level; ``num_clusters`` C counts clusters without a score too."""
    measurements = []
    # One cluster says nothing about others.
    known = 1.0 if len(np.unique(data.clusters)) > 1 else math.nan
    levels = {"sample": _samples, "prompt": _within_prompts, "model": _models}
    for level, of_level in levels.items():
        sizes, statistic = of_level(data, settings)
        columns = zip(*with_interval(statistic, num_clusters, settings), strict=True)
        for name, n, (value, low, high) in zip(MEASURES, sizes, columns, strict=True):
            measurements.append(
                Measurement(
                    dimension=dimension,
                    level=level,
                    measure=name,
                    value=value,
                    ci_low=low * known,
                    ci_high=high * known,
                    n=n,
                    reason=_reason(data, level, n) if math.isnan(value) else "",
                )
            )
    return measurements


def with_interval(
    statistic: Statistic, num_clusters: int, settings: LevelSettings
) -> tuple[list[float], list[float], list[float]]:
    """K values, and the lower and upper ends of their intervals."""
    draws = resampled(
        lambda counts: np.stack([statistic(row) for row in counts.astype(np.int64)]),
        num_clusters,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    low, high = percentile_interval(draws, settings.confidence)
    return statistic(np.ones(num_clusters, dtype=np.int64)).tolist(), low.tolist(), high.tolist()


def _reason(data: Judged, level: str, n: int) -> str:
    if len(data.judge) < 2 or n == 0:
        return "too few videos, or none that the raters tell apart"
    for who, values in (("judge gives", data.judge), ("raters give", data.human)):
        if np.ptp(values) == 0:
            return f"the {who} every video the same score"
    return f"no variation at {level} level"


def _samples(data: Judged, settings: LevelSettings) -> tuple[list[int], Statistic]:
    n = len(data.human)
    pairs = choose_pairs(n, settings.max_pairs, np.random.default_rng(settings.seed))
    right, decided = _ordered(data.human, data.judge, pairs, settings.tie_margin)
    a, b = data.clusters[pairs]

    def statistic(counts: IntArray) -> FloatArray:
        drawn = np.repeat(np.arange(n), counts[data.clusters])
        # Two videos of one cluster are drawn together, of two clusters each with each.
        weights = np.where(a == b, counts[a], counts[a] * counts[b])
        accuracy = share(weights @ right, weights @ decided)
        return np.array([*coefficients(data.human[drawn], data.judge[drawn]), accuracy])

    return [n, n, n, n, int(decided.sum())], statistic


def _within_prompts(data: Judged, settings: LevelSettings) -> tuple[list[int], Statistic]:
    """Mean over prompts of the coefficients within each.

    A prompt whose videos the raters do not tell apart has no answer and is left out; one where the
    judge alone gives a single score counts as 0, or silence would be rewarded.
    """
    groups = [np.flatnonzero(data.prompts == p) for p in np.unique(data.prompts)]
    groups = [group for group in groups if len(group) > 1]
    # Every measure is a quotient of sums over prompts.
    part, whole = np.zeros((2, len(groups), len(MEASURES)))
    for row, group in enumerate(groups):
        human, judge = data.human[group], data.judge[group]
        if np.ptp(human) > 0:
            own = coefficients(human, judge)[:3] if np.ptp(judge) > 0 else np.zeros(3)
            part[row, :3], whole[row, :3] = np.nan_to_num(own), np.isfinite(own)
        # The prompt's mean is taken out of both.
        part[row, 3], whole[row, 3] = len(group) * np.var(judge - human), len(group)
        pairs = np.stack(np.triu_indices(len(group), 1))
        right, decided = _ordered(human, judge, pairs, settings.tie_margin)
        part[row, 4], whole[row, 4] = right.sum(), decided.sum()
    cluster = data.clusters[np.array([group[0] for group in groups], dtype=np.int64)]

    def statistic(counts: IntArray) -> FloatArray:
        means = share(counts[cluster] @ part, counts[cluster] @ whole)
        means[3] = np.sqrt(means[3])
        return means

    sizes = [*whole[:, :3].sum(axis=0), len(groups), whole[:, 4].sum()]
    return [int(size) for size in sizes], statistic


def _models(data: Judged, settings: LevelSettings) -> tuple[list[int], Statistic]:
    num_models, num_clusters = int(data.models.max()) + 1, int(data.clusters.max()) + 1
    columns = np.stack([data.human, data.judge, np.ones(len(data.human))], axis=1)
    cell = data.clusters * num_models + data.models
    sums = cluster_sums(columns, cell, num_clusters * num_models).reshape(num_clusters, -1)
    pairs = np.stack(np.triu_indices(num_models, 1))

    def means(counts: IntArray) -> FloatArray:
        drawn = counts[:num_clusters] @ sums  # the last clusters may have no score
        human, judge, videos = drawn.reshape(num_models, 3).T
        return share(np.stack([human, judge]), videos)

    def statistic(counts: IntArray) -> FloatArray:
        human, judge = means(counts)
        # A resample without any video of a model says nothing about that model.
        if np.isnan(human).any():
            return np.full(len(MEASURES), np.nan)
        right, decided = _ordered(human, judge, pairs, settings.model_tie_margin)
        return np.array([*coefficients(human, judge), share(right.sum(), decided.sum())])

    human, judge = means(np.ones(num_clusters, dtype=np.int64))
    decided = _ordered(human, judge, pairs, settings.model_tie_margin)[1].sum()
    return [*[num_models] * 4, int(decided)], statistic


def pearson(x: FloatArray, y: FloatArray) -> float:
    """Correlation of two lists; NaN where undefined."""
    # Of equal values rounding leaves a spread of some 1e-16.
    if len(x) < 2 or min(np.std(x), np.std(y)) <= 1e-12:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def coefficients(human: FloatArray, judge: FloatArray) -> FloatArray:
    """PLCC, SRCC, KRCC and RMSE [4] of n points; NaN where undefined."""
    plcc, srcc, krcc = pearson(human, judge), math.nan, math.nan
    if not math.isnan(plcc):
        srcc = pearson(stats.rankdata(human), stats.rankdata(judge))
        krcc = float(stats.kendalltau(human, judge).statistic)
    error = np.sqrt(share(((human - judge) ** 2).sum(), len(human)))
    return np.array([plcc, srcc, krcc, error])


def _ordered(
    human: FloatArray, judge: FloatArray, pairs: IntArray, margin: float
) -> tuple[FloatArray, FloatArray]:
    """Of ``pairs`` [2, P] of points: which the judge orders as the raters, which they decide."""
    difference = human[pairs[0]] - human[pairs[1]]
    decided = np.abs(difference) > margin + 1e-9  # thirds and fifths are not exact in binary
    same = np.sign(judge[pairs[0]] - judge[pairs[1]]) == np.sign(difference)
    return (same & decided).astype(np.float64), decided.astype(np.float64)


def choose_pairs(n: int, max_pairs: int, rng: np.random.Generator) -> IntArray:
    """All pairs [2, P] of n points, or ``max_pairs`` different ones drawn at random."""
    total = n * (n - 1) // 2
    if total <= max_pairs:
        return np.stack(np.triu_indices(n, 1)).astype(np.int64)
    codes = np.sort(rng.choice(total, size=max_pairs, replace=False))
    # Pair (i, j), i < j, has the code j (j - 1) / 2 + i.
    second = ((1.0 + np.sqrt(1.0 + 8.0 * codes)) / 2.0).astype(np.int64)
    second -= second * (second - 1) // 2 > codes  # the root may be one too high by rounding
    return np.stack([codes - second * (second - 1) // 2, second])


def share(part: FloatArray | float, whole: FloatArray | float) -> FloatArray:
    """Quotient; NaN where the whole is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)
