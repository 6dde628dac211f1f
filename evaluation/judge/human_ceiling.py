"""How well one rater predicts the other raters of the same videos: the ceiling beside a judge.

A judge that follows the mean of the raters better than a rater follows the others has reached what
these ratings can show. The two are not quite alike: the judge is compared with the mean of all
raters, a rater with the mean of one fewer, so a judge may pass the ceiling.
"""

import math
from dataclasses import dataclass

import numpy as np

from longtake.evaluation.agreement import rest_correlations
from longtake.runtime.statistics import FloatArray, IntArray, percentile_interval


@dataclass(frozen=True, kw_only=True, slots=True)
class HumanCeiling:
    """Mean over raters of the Pearson correlation of a rater with the mean of the others."""

    dimension: str
    """What was rated."""
    value: float
    """NaN where no rater has three shared videos."""
    ci_low: float
    """Lower end of the bootstrap interval over prompts."""
    ci_high: float
    """Upper end."""
    n_raters: int
    """Raters in the mean."""
    n_ratings: int
    """Ratings of videos with at least two raters."""


def human_ceiling(
    dimension: str,
    scores: FloatArray,
    raters: IntArray,
    samples: IntArray,
    clusters: IntArray,
    counts: FloatArray,
    confidence: float,
) -> HumanCeiling:
    """The ceiling of one dimension.

    Args:
        dimension: its name.
        scores: [n] ratings.
        raters: [n] numbers 0 .. I-1.
        samples: [n] numbers 0 .. J-1.
        clusters: [n] number of the cluster of each rating.
        counts: [B, C], how often each resample draws each cluster.
        confidence: coverage of the interval.
    """
    value = rest_correlations(scores, raters, samples)
    usable = np.isfinite(value)
    totals, given = np.bincount(samples, weights=scores), np.bincount(samples)
    shared = given[samples] > 1
    low = high = math.nan
    if usable.any():
        own, who, sample = scores[shared], raters[shared], samples[shared]
        rest = (totals[sample] - own) / (given[sample] - 1)
        cluster = clusters[shared]
        draws = np.stack(
            [
                # A video drawn twice counts twice.
                _weighted_pearson(own[mine], rest[mine], counts[:, cluster[mine]])
                for mine in (who == i for i in np.flatnonzero(usable))
            ]
        )
        known = np.isfinite(draws)
        means = np.where(
            known.any(axis=0),
            np.where(known, draws, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1),
            np.nan,
        )
        (low,), (high,) = percentile_interval(means[:, None], confidence)
    return HumanCeiling(
        dimension=dimension,
        value=float(value[usable].mean()) if usable.any() else math.nan,
        ci_low=float(low),
        ci_high=float(high),
        n_raters=int(usable.sum()),
        n_ratings=int(shared.sum()),
    )


def _weighted_pearson(x: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """Correlation of x [n] and y [n] under each row of weights [B, n]; NaN where undefined."""
    x, y = x - x.mean(), y - y.mean()  # against cancellation
    total = np.maximum(weights.sum(axis=1), 1e-300)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    cov = weights @ (x * y) / total - mean_x * mean_y
    var_x, var_y = weights @ (x * x) / total - mean_x**2, weights @ (y * y) / total - mean_y**2
    good = (var_x > 1e-12) & (var_y > 1e-12)
    return np.where(good, cov / np.sqrt(np.where(good, var_x * var_y, 1.0)), np.nan)
