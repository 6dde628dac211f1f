"""How raters agree and differ: Krippendorff's alpha, each against the rest, bias and noise.

All of it is diagnostic: the score of a video stays the plain mean of its ratings.
"""

import math
from dataclasses import dataclass

import numpy as np

from longtake.runtime.statistics import FloatArray, IntArray, percentile_interval, resampled

_TOLERANCE = 1e-8
_VARIANCE_FLOOR = 1e-8
"""Added to each variance: a rater who fits perfectly would get infinite weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Krippendorff's alpha: 1 = full agreement, 0 = as good as chance."""

    alpha: float
    """NaN where undefined; ``reason`` says why."""
    ci_low: float
    """NaN with fewer than two prompts."""
    ci_high: float
    n_samples: int
    """Samples with at least two ratings; ``n_ratings`` are theirs."""
    n_ratings: int
    reason: str = ""


def krippendorff_alpha(
    scores: FloatArray,
    samples: IntArray,
    clusters: IntArray | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Agreement on an ordinal scale of any number of raters with any missing ratings.

    Alpha = 1 - observed / expected disagreement, from the table of coincidences: how often two
    raters of one sample gave the values c and k, where a sample with m ratings weighs 1 / (m - 1)
    (Krippendorff 2011). Coincidences of samples add up, so a resample of prompts is a sum too.
    evalica has the same alpha, but its interval draws single pairs of ratings: that weighs samples
    with many ratings too high, and the protocol gives more ratings just where raters disagree.

    ``scores`` (finite), and the numbers of the sample and the cluster of each rating, are [n]; a
    sample lies in one cluster, without ``clusters`` in its own.
    """
    counts = np.bincount(samples)
    paired = counts[samples] > 1
    values, codes = np.unique(scores[paired], return_inverse=True)
    alpha = low = high = math.nan
    reason = {0: "no sample has two ratings", 1: "all ratings are the same"}.get(len(values), "")
    if not reason:
        groups = samples if clusters is None else clusters
        tables = _coincidences(codes, samples[paired], groups[paired], len(values))
        alpha = float(_alpha(tables.sum(axis=0, keepdims=True))[0])
        if len(tables) >= 2:
            flat = tables.reshape(len(tables), -1)
            draws = resampled(
                lambda drawn: _alpha((drawn @ flat).reshape(-1, *tables.shape[1:])),
                len(tables),
                resamples=resamples,
                seed=seed,
            )
            (low,), (high,) = percentile_interval(draws[:, None], confidence)
    return Agreement(
        alpha=alpha,
        ci_low=float(low),
        ci_high=float(high),
        n_samples=int((counts > 1).sum()),
        n_ratings=int(paired.sum()),
        reason=reason,
    )


def _coincidences(
    codes: IntArray, samples: IntArray, clusters: IntArray, num_values: int
) -> FloatArray:
    """Table of coincidences of each cluster, [C, K, K]."""
    units, unit = np.unique(samples, return_inverse=True)
    given = np.bincount(unit * num_values + codes, minlength=len(units) * num_values)
    count = given.reshape(len(units), num_values).astype(np.float64)  # [U, K]
    pairs = count[:, :, None] * count[:, None, :]
    diagonal = np.arange(num_values)
    pairs[:, diagonal, diagonal] -= count  # a rating is no pair with itself
    pairs /= (count.sum(axis=1) - 1.0)[:, None, None]
    cluster_of_unit = np.empty(len(units), dtype=np.int64)
    cluster_of_unit[unit] = clusters
    present, cluster = np.unique(cluster_of_unit, return_inverse=True)
    tables = np.zeros((len(present), num_values, num_values))
    np.add.at(tables, cluster, pairs)
    return tables


def _alpha(tables: FloatArray) -> FloatArray:
    """Alpha of each table of coincidences: [B, K, K] -> [B]; NaN where only one value occurs."""
    margin = tables.sum(axis=2)  # [B, K]
    total = margin.sum(axis=1)
    # Ordinal: the distance of two scores is how many ratings lie between them.
    position = np.cumsum(margin, axis=1) - margin / 2.0
    distance = (position[:, :, None] - position[:, None, :]) ** 2
    observed = (tables * distance).sum(axis=(1, 2))
    # The distance of a value to itself is 0, so the diagonal of the expected table is not needed.
    expected = np.einsum("bc,bk,bck->b", margin, margin, distance) / (total - 1.0)
    return np.where(expected > 0, 1.0 - observed / np.where(expected > 0, expected, 1.0), np.nan)


def rest_correlations(scores: FloatArray, raters: IntArray, samples: IntArray) -> FloatArray:
    """Pearson correlation [I] of each rater with the mean of the others on the same samples.

    Its mean over raters is the human ceiling of a judge. NaN for a rater with fewer than three
    shared samples or without any variation. ``scores``, ``raters`` (0 .. I-1) and ``samples``
    are [n], one entry for each rating.
    """
    totals, counts = np.bincount(samples, weights=scores), np.bincount(samples)
    others = counts[samples] - 1
    shared = others > 0
    rest = (totals[samples][shared] - scores[shared]) / others[shared]
    own, rater = scores[shared], raters[shared]
    num_raters = int(raters.max()) + 1
    n = np.bincount(rater, minlength=num_raters)

    def total(values: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(rater, weights=values, minlength=num_raters), np.float64)

    a, b = (x - (total(x) / np.maximum(n, 1))[rater] for x in (own, rest))
    spread = np.sqrt(total(a * a) * total(b * b))
    # Two points always lie on a line, and a rater of one answer has no correlation.
    usable = (n >= 3) & (spread > 1e-12)
    return np.where(usable, total(a * b) / np.where(usable, spread, 1.0), np.nan)


@dataclass(frozen=True, kw_only=True)
class SubjectBias:
    """What :func:`alternating_projection` estimates; I raters, J samples."""

    quality: FloatArray
    """[J], psi: quality without the bias of the raters, weighted by their consistency."""
    bias: FloatArray
    """[I], Delta: how much a rater scores above the average rater, in scale points."""
    inconsistency: FloatArray
    """[I], nu: standard deviation of a rater's scores around quality plus bias."""
    converged: bool


def alternating_projection(
    scores: FloatArray, raters: IntArray, samples: IntArray, *, max_iterations: int = 1000
) -> SubjectBias:
    """Bias and noise of each rater (ITU-T P.910 2023, annex E); every sample may have other raters.

    A score is the quality of the video plus the bias of the rater plus noise with the rater's own
    spread,

        u_ij = psi_j + Delta_i + nu_i X,   X ~ N(0, 1),   mean of Delta over the raters = 0.

    ``scores``, ``raters`` (0 .. I-1, each occurring) and ``samples`` (0 .. J-1, too) are [n], one
    entry for each rating.
    """
    # Sums over sparse (rater, sample) pairs: the protocol gives each video other raters, so a full
    # table of raters and videos would be mostly empty.
    per_rater = np.bincount(raters).astype(np.float64)

    def rater_mean(values: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(raters, weights=values) / per_rater)

    quality = np.bincount(samples, weights=scores) / np.bincount(samples)
    deviation = scores - quality[samples]
    inconsistency = np.zeros(len(per_rater))
    converged = False
    for _ in range(max_iterations):
        mean = rater_mean(deviation)
        # Standard deviation with ddof 0; the mean deviation of a rater is taken out exactly.
        inconsistency = np.sqrt(rater_mean((deviation - mean[raters]) ** 2))
        weight = (1.0 / (inconsistency**2 + _VARIANCE_FLOOR))[raters]
        unbiased = scores - (mean - mean.mean())[raters]
        before = quality
        weighted = np.bincount(samples, weights=weight * unbiased)
        quality = np.asarray(weighted / np.bincount(samples, weights=weight), dtype=np.float64)
        deviation = scores - quality[samples]
        converged = bool(np.linalg.norm(quality - before) < _TOLERANCE)
        if converged:
            break
    mean = rater_mean(deviation)
    bias = mean - mean.mean()
    return SubjectBias(quality=quality, bias=bias, inconsistency=inconsistency, converged=converged)
