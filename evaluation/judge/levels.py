"""Agreement of a judge with the raters at three levels: videos, videos of a prompt, models.

A correlation without its level is no claim: over videos the difficulty of prompts enters, within a
prompt only the models differ, and over the means of a few models nearly every judge looks good.
Every interval is a bootstrap over prompts (clusters). A resample is a row of weights, how often it
has each video, so that all resamples are a few matrix products; scipy, which takes one list at a
time, would need a minute for a report card of three dimensions.
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

LEVELS = ("sample", "prompt", "model")
"""Over all videos; within prompts, averaged; over the means of models."""
COEFFICIENTS = ("plcc", "srcc", "krcc", "rmse")
MEASURES = (*COEFFICIENTS, "accuracy", "accuracy_ties")
"""Pearson's, Spearman's and Kendall's (tau-b) correlation, root mean square error in points, and
pair accuracy without and with calibrated ties."""
_VALUES_AT_ONCE = 2_000_000  # signs or weights of pairs held in memory


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
    """n videos of one dimension that have both ratings and a score of the judge."""

    human: FloatArray
    """[n] mean ratings."""
    judge: FloatArray
    """[n] scores."""
    prompts: IntArray
    """[n] number of the prompt."""
    models: IntArray
    """[n] number of the model, without gaps."""
    clusters: IntArray
    """[n] number of the cluster; all videos of a prompt are in one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One measure of one dimension at one level."""

    dimension: str
    level: str
    measure: str
    value: float
    """NaN where undefined."""
    ci_low: float
    """Lower end of the bootstrap interval over prompts; NaN where undefined."""
    ci_high: float
    n: int
    """Videos, prompts, models, or pairs of them, that the value is computed from."""
    models_low: float = math.nan
    """Model level: lower end if the models are a sample of all models (Fisher's z)."""
    models_high: float = math.nan
    reason: str = ""
    """Why the value is undefined; empty otherwise."""


Statistic = Callable[[FloatArray], FloatArray]
"""Draw counts [b, C] -> the measures [b, 6] of each resample, in the order of MEASURES."""
_LEVELS: "dict[str, Callable[[Judged, LevelSettings], tuple[list[int], Statistic]]]"


def measure_levels(
    dimension: str, data: Judged, num_clusters: int, settings: LevelSettings
) -> list[Measurement]:
    """Every measure at every level; ``num_clusters`` C counts clusters without a score too."""
    measurements = []
    several = len(np.unique(data.clusters)) > 1
    for level, of_level in _LEVELS.items():
        counts, statistic = of_level(data, settings)
        values = statistic(np.ones((1, num_clusters)))[0]
        draws = resampled(statistic, num_clusters, resamples=settings.resamples, seed=settings.seed)
        low, high = percentile_interval(draws, settings.confidence)
        for k, (name, n) in enumerate(zip(MEASURES, counts, strict=True)):
            value, ends = float(values[k]), (math.nan, math.nan)
            if level == "model":
                ends = random_points_interval(name, value, n, settings.confidence)
            measurements.append(
                Measurement(
                    dimension=dimension,
                    level=level,
                    measure=name,
                    value=value,
                    ci_low=float(low[k]) if several else math.nan,
                    ci_high=float(high[k]) if several else math.nan,
                    n=n,
                    models_low=ends[0],
                    models_high=ends[1],
                    reason=_reason(data, level, n) if math.isnan(value) else "",
                )
            )
    return measurements


def _reason(data: Judged, level: str, n: int) -> str:
    if len(data.judge) < 2 or n == 0:
        return "too few videos, or none that the raters tell apart"
    if np.ptp(data.judge) == 0:
        return "the judge gives every video the same score"
    if np.ptp(data.human) == 0:
        return "the raters give every video the same score"
    return f"no variation at {level} level"


def _samples(data: Judged, settings: LevelSettings) -> tuple[list[int], Statistic]:
    n = len(data.human)
    pairs = choose_pairs(n, settings.max_pairs, np.random.default_rng(settings.seed))
    labels = pair_labels(data.human, pairs, settings.tie_margin)
    margins = data.judge[pairs[0]] - data.judge[pairs[1]]
    a, b = data.clusters[pairs]

    def statistic(counts: FloatArray) -> FloatArray:
        weights = np.where(a == b, counts[:, a], counts[:, a] * counts[:, b])
        rows = coefficients(data.human, data.judge, counts[:, data.clusters])
        return np.concatenate([rows, accuracies(margins, labels, weights)], axis=1)

    return [n, n, n, n, int(np.count_nonzero(labels)), len(labels)], statistic


def _within_prompts(data: Judged, settings: LevelSettings) -> tuple[list[int], Statistic]:
    """Mean over prompts of the coefficients within each.

    A prompt whose videos the raters do not tell apart has no answer and is left out; one where the
    judge alone gives a single score counts as 0, or silence would be rewarded.
    """
    groups = [np.flatnonzero(data.prompts == p) for p in np.unique(data.prompts)]
    groups = [group for group in groups if len(group) > 1]
    table, squares = np.full((len(groups), 3), np.nan), np.zeros(len(groups))
    for row, group in enumerate(groups):
        human, judge = data.human[group], data.judge[group]
        if np.ptp(human) > 0:
            ones = np.ones((1, len(group)))
            table[row] = coefficients(human, judge, ones)[0, :3] if np.ptp(judge) > 0 else 0.0
        squares[row] = len(group) * np.var(judge - human)  # the prompt's mean is taken out of both
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    ends = [group[np.stack(np.triu_indices(len(group), 1))] for group in groups]
    pairs = np.concatenate([np.zeros((2, 0), dtype=np.int64), *ends], axis=1)
    labels = pair_labels(data.human, pairs, settings.tie_margin)
    margins = data.judge[pairs[0]] - data.judge[pairs[1]]
    cluster = data.clusters[np.array([group[0] for group in groups], dtype=np.int64)]

    def statistic(counts: FloatArray) -> FloatArray:
        weights = counts[:, cluster]
        means = share(weights @ np.nan_to_num(table), weights @ np.isfinite(table))
        error = np.sqrt(share(weights @ squares, weights @ sizes))
        shares = accuracies(margins, labels, counts[:, data.clusters[pairs[0]]])
        return np.concatenate([means, error[:, None], shares], axis=1)

    defined = np.isfinite(table).sum(axis=0).tolist()
    return [*defined, len(groups), int(np.count_nonzero(labels)), len(labels)], statistic


def _models(data: Judged, settings: LevelSettings) -> tuple[list[int], Statistic]:
    num_models, num_clusters = int(data.models.max()) + 1, int(data.clusters.max()) + 1
    cell = data.clusters * num_models + data.models
    columns = np.stack([data.human, data.judge, np.ones(len(cell))], axis=1)
    sums = cluster_sums(columns, cell, num_clusters * num_models)
    pairs = np.stack(np.triu_indices(num_models, 1))
    ones = np.ones((1, pairs.shape[1]))

    def statistic(counts: FloatArray) -> FloatArray:
        drawn = counts[:, :num_clusters]  # the last clusters may have no score
        human, judge, videos = (drawn @ c.reshape(num_clusters, num_models) for c in sums.T)
        rows = np.full((len(counts), len(MEASURES)), np.nan)
        # A resample without any video of a model says nothing about that model.
        whole = (videos > 0).all(axis=1)
        human, judge = human[whole] / videos[whole], judge[whole] / videos[whole]
        rows[whole, :4] = coefficients(human, judge, np.ones(human.shape))
        for row, h, j in zip(np.flatnonzero(whole), human, judge, strict=True):
            labels = pair_labels(h, pairs, settings.model_tie_margin)
            rows[row, 4:] = accuracies(j[pairs[0]] - j[pairs[1]], labels, ones)[0]
        return rows

    human = np.bincount(data.models, weights=data.human) / np.bincount(data.models)
    decided = int(np.count_nonzero(pair_labels(human, pairs, settings.model_tie_margin)))
    return [*[num_models] * 4, decided, pairs.shape[1]], statistic


_LEVELS = {"sample": _samples, "prompt": _within_prompts, "model": _models}


def pearson(x: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """Correlation [b] of x and y, each [n] or [b, n], under weights [b, n]; NaN where undefined."""
    total = np.maximum(weights.sum(axis=1), 1e-300)[:, None]
    x, y = (v - (weights * v).sum(axis=1, keepdims=True) / total for v in (x, y))
    covariance, *variances = ((weights * p).sum(axis=1) for p in (x * y, x * x, y * y))
    # Of equal values rounding leaves a spread of some 1e-16.
    defined = np.min(variances, axis=0) > 1e-24 * total[:, 0]
    return share(np.where(defined, covariance, 0.0), np.sqrt(np.prod(variances, axis=0)) * defined)


def coefficients(human: FloatArray, judge: FloatArray, weights: FloatArray) -> FloatArray:
    """PLCC, SRCC, KRCC and RMSE [b, 4] of n points under weights [b, n].

    ``human`` and ``judge`` are [n], or [b, n]. With s_ij the sign of x_i - x_j, the mean rank of
    point i is, up to a constant, sum_j w_j s_ij / 2, and tau-b is

        sum_ij w_i w_j s_ij t_ij / sqrt(sum_ij w_i w_j s_ij^2  sum_ij w_i w_j t_ij^2).
    """

    def over_points(signs: FloatArray) -> FloatArray:  # [k, n] or [b, k, n] -> [b, k]
        return weights @ signs.T if signs.ndim == 2 else (signs @ weights[..., None])[..., 0]

    n = weights.shape[1]
    ranks_human, ranks_judge = np.empty_like(weights), np.empty_like(weights)
    sums = np.zeros((3, len(weights)))
    step = max(1, _VALUES_AT_ONCE // max(1, human.size))
    for start in range(0, n, step):
        part = slice(start, start + step)
        s, t = (np.sign(x[..., part, None] - x[..., None, :]) for x in (human, judge))
        ranks_human[:, part], ranks_judge[:, part] = over_points(s), over_points(t)
        for row, product in enumerate((s * t, s * s, t * t)):
            sums[row] += (weights[:, part] * over_points(product)).sum(axis=1)
    error = share((weights * (human - judge) ** 2).sum(axis=1), weights.sum(axis=1))
    columns = (
        pearson(human, judge, weights),
        pearson(ranks_human, ranks_judge, weights),
        share(sums[0], np.sqrt(sums[1] * sums[2])),
        np.sqrt(error),
    )
    return np.stack(columns, axis=1)


def random_points_interval(
    name: str, value: float, n: int, confidence: float
) -> tuple[float, float]:
    """Interval of a correlation whose n points themselves are a sample, by Fisher's z.

    The bootstrap over prompts keeps the models; this one asks what other models would give, and
    with four models it spans nearly everything. Variance of z: 1 / (n - 3) for Pearson,
    (1 + r^2 / 2) / (n - 3) for Spearman (Bonett & Wright 2000), 0.437 / (n - 4) for Kendall
    (Fieller et al. 1957). NaN for other measures and where there are too few points.
    """
    spare = n - (4 if name == "krcc" else 3)
    variance = {"plcc": 1.0, "srcc": 1.0 + value * value / 2.0, "krcc": 0.437}.get(name)
    if variance is None or spare < 1 or not abs(value) <= 1:
        return math.nan, math.nan
    z = math.atanh(max(min(value, 1 - 1e-12), -1 + 1e-12))
    reach = float(stats.norm.ppf(0.5 + confidence / 2.0)) * math.sqrt(variance / spare)
    return math.tanh(z - reach), math.tanh(z + reach)


def pair_labels(human: FloatArray, pairs: IntArray, tie_margin: float) -> FloatArray:
    """What the raters say of ``pairs`` [2, P] of points [n]: 1 the first is better, -1, or 0."""
    difference = human[pairs[0]] - human[pairs[1]]
    equal = np.abs(difference) <= tie_margin + 1e-9  # thirds and fifths are not exact in binary
    return np.where(equal, 0.0, np.sign(difference))


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


def accuracies(margins: FloatArray, labels: FloatArray, weights: FloatArray) -> FloatArray:
    """Accuracy [b, 2] without ties, and with calibrated ties, under weights [b, P] >= 0.

    ``margins`` [P] are scores of the judge, first minus second, ``labels`` those of the raters.

    Without ties: share of decided pairs whose margin has the sign of the label. With ties: margins
    up to a threshold count as predicted ties, and each row of weights takes the threshold that
    serves it best (Deutsch et al. 2023, arXiv 2305.14324). With weights of one, the numbers are
    those of the validation of a reward. NaN where no pair has weight.
    """
    order = np.argsort(np.abs(margins), kind="stable")
    margins, labels = margins[order], labels[order]
    size, tied = np.abs(margins), labels == 0
    right = (np.sign(margins) == labels) & ~tied
    # Margins of one size become ties together: only where the size changes, and the ends.
    ends = np.unique([0, *np.flatnonzero(np.diff(size)) + 1, len(size)])
    rows = []
    for w in np.array_split(weights, 1 + weights.size // _VALUES_AT_ONCE):
        w = w[:, order]
        correct = w[:, right].sum(axis=1)
        # gain[:, i]: the i smallest margins are predicted ties, the others by their sign.
        gain = np.cumsum(w * (tied * 1.0 - right), axis=1)
        best = correct + np.pad(gain, ((0, 0), (1, 0)))[:, ends].max(axis=1)
        rows.append([share(correct, w[:, ~tied].sum(axis=1)), share(best, w.sum(axis=1))])
    return np.concatenate(rows, axis=1).T


def share(part: FloatArray, whole: FloatArray) -> FloatArray:
    """Quotient; NaN where the whole is 0."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)
