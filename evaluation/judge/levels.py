"""Agreement of a judge with the raters at three levels: videos, videos of a prompt, models.

A correlation without its level is no claim: over videos the difficulty of prompts enters, within a
prompt only the models differ, and over the means of a few models nearly every judge looks good.
Every interval is a bootstrap over prompts (clusters).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from longtake.evaluation.judge.coefficients import COEFFICIENTS, random_points_interval
from longtake.evaluation.judge.pair_agreement import accuracies, choose_pairs, label_pairs
from longtake.runtime.statistics import (
    FloatArray,
    IntArray,
    cluster_sums,
    percentile_interval,
)

LEVELS = ("sample", "prompt", "model")
"""Over all videos; within prompts, averaged; over the means of models."""
MEASURES = (*COEFFICIENTS, "accuracy", "accuracy_ties")
"""Correlations, RMSE, and pair accuracy without and with calibrated ties."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelSettings:
    """How pairs are made and intervals are drawn."""

    tie_margin: float = 0.25
    """Mean ratings of two videos that differ by at most this are equal, points. Means of three
    raters lie on thirds, of five on fifths: 0.25 joins neighbours that one answer makes."""
    model_tie_margin: float = 0.05
    """The same for the means of two models, points."""
    max_pairs: int = 10_000
    """Pairs of videos at sample level; more are drawn at random."""
    confidence: float = 0.95
    """Coverage of the intervals, in (0, 1)."""
    resamples: int = 1000
    """Bootstrap resamples, >= 100."""
    seed: int = 0
    """Of the resampling and of the pairs."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Videos of one dimension that have both ratings and a score of the judge."""

    human: FloatArray
    """[n] mean ratings."""
    judge: FloatArray
    """[n] scores."""
    prompts: IntArray
    """[n] number of the prompt."""
    models: IntArray
    """[n] number of the model."""
    clusters: IntArray
    """[n] number of the cluster; all videos of a prompt are in one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One measure of one dimension at one level."""

    dimension: str
    """What was judged."""
    level: str
    """sample | prompt | model."""
    measure: str
    """One of :data:`MEASURES`."""
    value: float
    """NaN where undefined."""
    ci_low: float
    """Lower end of the bootstrap interval over prompts; NaN where undefined."""
    ci_high: float
    """Upper end."""
    n: int
    """Videos, prompts, models, or pairs of them, that the value is computed from."""
    models_low: float = math.nan
    """Model level: lower end if the models are a sample of all models (Fisher's z)."""
    models_high: float = math.nan
    """Upper end."""
    reason: str = ""
    """Why the value is undefined; empty otherwise."""


_Columns = dict[str, tuple[FloatArray, int]]
"""Measure -> values [1 + B], first without resampling, and n."""


def measure_levels(
    dimension: str, data: Judged, counts: FloatArray, settings: LevelSettings
) -> list[Measurement]:
    """Every measure at every level.

    Args:
        dimension: name for the result.
        data: n videos.
        counts: [B, C], how often each resample draws each cluster.
        settings: pairs and confidence.
    """
    whole = np.concatenate([np.ones((1, counts.shape[1])), counts])
    found: list[Measurement] = []
    measure: dict[str, Callable[[Judged, FloatArray, LevelSettings], _Columns]] = {
        "sample": _samples,
        "prompt": _within_prompts,
        "model": _models,
    }
    for level in LEVELS:
        columns = measure[level](data, whole, settings)
        for name in MEASURES:
            values, n = columns[name]
            enough = len(np.unique(data.clusters)) > 1
            low, high = percentile_interval(values[1:, None], settings.confidence)
            wide = (math.nan, math.nan)
            if level == "model":
                wide = random_points_interval(name, float(values[0]), n, settings.confidence)
            found.append(
                Measurement(
                    dimension=dimension,
                    level=level,
                    measure=name,
                    value=float(values[0]),
                    ci_low=float(low[0]) if enough else math.nan,
                    ci_high=float(high[0]) if enough else math.nan,
                    n=n,
                    models_low=wide[0],
                    models_high=wide[1],
                    reason=_reason(data, level, n) if math.isnan(values[0]) else "",
                )
            )
    return found


def _reason(data: Judged, level: str, n: int) -> str:
    if len(data.judge) < 2 or n == 0:
        return "too few videos, or none that the raters tell apart"
    if np.ptp(data.judge) == 0:
        return "the judge gives every video the same score"
    if np.ptp(data.human) == 0:
        return "the raters give every video the same score"
    return f"no variation at {level} level"


def _coefficient_rows(human: FloatArray, judge: FloatArray) -> list[float]:
    return [function(judge, human) for function in COEFFICIENTS.values()]


def _samples(data: Judged, counts: FloatArray, settings: LevelSettings) -> _Columns:
    n, index = len(data.human), np.arange(len(data.human))
    rows = []
    for drawn in counts:
        chosen = np.repeat(index, drawn[data.clusters].astype(np.int64))
        rows.append(_coefficient_rows(data.human[chosen], data.judge[chosen]))
    columns = _named(rows, n)
    first, second = choose_pairs(n, settings.max_pairs, np.random.default_rng(settings.seed))
    pairs = label_pairs(data.human, data.judge, first, second, settings.tie_margin)
    a, b = data.clusters[first], data.clusters[second]
    weights = np.where(a == b, counts[:, a], counts[:, a] * counts[:, b])
    plain, ties = accuracies(pairs, weights)
    return {**columns, "accuracy": (plain, pairs.decided), "accuracy_ties": (ties, len(first))}


def _within_prompts(data: Judged, counts: FloatArray, settings: LevelSettings) -> _Columns:
    """Mean over prompts of the coefficients within each.

    A prompt whose videos the raters do not tell apart has no answer and is left out; one where the
    judge alone gives a single score counts as 0, or silence would be rewarded.
    """
    groups = [np.flatnonzero(data.prompts == p) for p in np.unique(data.prompts)]
    groups = [group for group in groups if len(group) > 1]
    cluster = np.array([data.clusters[group[0]] for group in groups], dtype=np.int64)
    table = np.full((len(groups), 3), np.nan)
    squares, sizes = np.zeros(len(groups)), np.zeros(len(groups))
    for row, group in enumerate(groups):
        human, judge = data.human[group], data.judge[group]
        if np.ptp(human) > 0:
            table[row] = _coefficient_rows(human, judge)[:3] if np.ptp(judge) > 0 else 0.0
        error = (judge - judge.mean()) - (human - human.mean())
        squares[row], sizes[row] = float(error @ error), len(group)
    weights = counts[:, cluster]
    total = weights @ np.isfinite(table)
    mean = np.where(total > 0, weights @ np.nan_to_num(table) / np.maximum(total, 1), np.nan)
    videos = weights @ sizes
    error = np.where(videos > 0, np.sqrt(weights @ squares / np.maximum(videos, 1)), np.nan)
    defined = np.isfinite(table).sum(axis=0)
    columns: _Columns = {
        name: (mean[:, k], int(defined[k])) for k, name in enumerate(("plcc", "srcc", "krcc"))
    }
    columns["rmse"] = (error, len(groups))
    ends = [_all_pairs(group) for group in groups] or [np.zeros((2, 0), dtype=np.int64)]
    first, second = np.concatenate(ends, axis=1)
    pairs = label_pairs(data.human, data.judge, first, second, settings.tie_margin)
    plain, ties = accuracies(pairs, counts[:, data.clusters[first]])
    return {**columns, "accuracy": (plain, pairs.decided), "accuracy_ties": (ties, len(first))}


def _all_pairs(group: IntArray) -> IntArray:
    """[2, k (k - 1) / 2] of k indices."""
    first, second = np.triu_indices(len(group), 1)
    return np.stack([group[first], group[second]])


def _models(data: Judged, counts: FloatArray, settings: LevelSettings) -> _Columns:
    num_models, num_clusters = int(data.models.max()) + 1, counts.shape[1]
    cell = data.clusters * num_models + data.models
    size = num_clusters * num_models
    sums = cluster_sums(np.stack([data.human, data.judge, np.ones(len(cell))], 1), cell, size)
    human, judge, videos = (counts @ column.reshape(num_clusters, num_models) for column in sums.T)
    first, second = _all_pairs(np.arange(num_models))
    one = np.ones((1, len(first)))
    rows, shares = [], []
    for h, j, v in zip(human, judge, videos, strict=True):
        if (v == 0).any():  # a resample without any video of a model
            rows.append([math.nan] * 4)
            shares.append([math.nan] * 2)
            continue
        rows.append(_coefficient_rows(h / v, j / v))
        pairs = label_pairs(h / v, j / v, first, second, settings.model_tie_margin)
        shares.append([float(values[0]) for values in accuracies(pairs, one)])
    start = human[0] / videos[0]
    decided = label_pairs(start, start, first, second, settings.model_tie_margin).decided
    share = np.array(shares)
    return {
        **_named(rows, num_models),
        "accuracy": (share[:, 0], decided),
        "accuracy_ties": (share[:, 1], len(first)),
    }


def _named(rows: Sequence[Sequence[float]], n: int) -> _Columns:
    table = np.array(rows, dtype=np.float64)
    return {name: (table[:, k], n) for k, name in enumerate(COEFFICIENTS)}
