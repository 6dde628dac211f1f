"""How far raters agree: Krippendorff's alpha, and each rater against the others."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from longtake.runtime.statistics import FloatArray, IntArray, percentile_interval, resampled

Level = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Krippendorff's alpha: 1 = full agreement, 0 = as good as chance."""

    alpha: float
    """NaN where undefined."""
    ci_low: float
    """Lower end of the bootstrap interval, clustered by prompt; NaN with fewer than two."""
    ci_high: float
    """Upper end."""
    n_samples: int
    """Samples with at least two ratings."""
    n_ratings: int
    """Their ratings."""
    reason: str = ""
    """Why alpha is undefined; empty otherwise."""


def krippendorff_alpha(
    scores: FloatArray,
    samples: IntArray,
    clusters: IntArray | None = None,
    *,
    level: Level = "ordinal",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Agreement of any number of raters with any missing ratings.

    Alpha = 1 - observed / expected disagreement, from the table of coincidences: how often two
    raters of one sample gave the values c and k, where a sample with m ratings weighs 1 / (m - 1)
    (Krippendorff 2011). Coincidences of samples add up, so a resample of prompts is a sum too. The
    usual bootstrap of single pairs of ratings is not used: it weighs samples with many ratings too
    high, and the protocol gives more ratings just where raters disagree.

    Args:
        scores: [n], finite.
        samples: [n], number of the sample of each rating.
        clusters: [n], number of the cluster of each rating, one for each sample; None: the sample.
        level: distance between scores; ordinal for the 5-point scale.
        confidence: coverage of the interval in (0, 1).
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    counts = np.bincount(samples)
    paired = counts[samples] > 1
    n_samples, n_ratings = int((counts > 1).sum()), int(paired.sum())
    values, codes = np.unique(scores[paired], return_inverse=True)
    reason = ""
    if n_samples == 0:
        reason = "no sample has two ratings"
    elif len(values) == 1:
        reason = "all ratings are the same"
    if reason:
        nan = math.nan
        return Agreement(
            alpha=nan,
            ci_low=nan,
            ci_high=nan,
            n_samples=n_samples,
            n_ratings=n_ratings,
            reason=reason,
        )
    groups = samples if clusters is None else clusters
    tables = _coincidences(codes, samples[paired], groups[paired], len(values))
    low, high = math.nan, math.nan
    if len(tables) >= 2:
        flat = tables.reshape(len(tables), -1)
        drawn_alpha = resampled(
            lambda counts: _alpha((counts @ flat).reshape(-1, *tables.shape[1:]), values, level),
            len(tables),
            resamples=resamples,
            seed=seed,
        )
        (low,), (high,) = percentile_interval(drawn_alpha[:, None], confidence)
    return Agreement(
        alpha=float(_alpha(tables.sum(axis=0, keepdims=True), values, level)[0]),
        ci_low=float(low),
        ci_high=float(high),
        n_samples=n_samples,
        n_ratings=n_ratings,
    )


def _coincidences(
    codes: IntArray, samples: IntArray, clusters: IntArray, num_values: int
) -> FloatArray:
    """Table of coincidences of each cluster, [C, K, K]."""
    units, unit = np.unique(samples, return_inverse=True)
    given = np.bincount(unit * num_values + codes, minlength=len(units) * num_values)
    count = given.reshape(len(units), num_values).astype(np.float64)  # [U, K]
    weight = 1.0 / (count.sum(axis=1) - 1.0)
    pairs = count[:, :, None] * count[:, None, :]
    diagonal = np.arange(num_values)
    pairs[:, diagonal, diagonal] -= count  # a rating is no pair with itself
    pairs *= weight[:, None, None]
    cluster_of_unit = np.empty(len(units), dtype=np.int64)
    cluster_of_unit[unit] = clusters
    present, cluster = np.unique(cluster_of_unit, return_inverse=True)
    tables = np.zeros((len(present), num_values, num_values))
    np.add.at(tables, cluster, pairs)
    return tables


def _alpha(tables: FloatArray, values: FloatArray, level: Level) -> FloatArray:
    """Alpha of each table of coincidences: [B, K, K] -> [B]; NaN where only one value occurs."""
    margin = tables.sum(axis=2)  # [B, K]
    total = margin.sum(axis=1)
    if level == "ordinal":
        position = np.cumsum(margin, axis=1) - margin / 2.0
    else:
        position = np.broadcast_to(values, margin.shape)
    distance = (position[:, :, None] - position[:, None, :]) ** 2
    if level == "nominal":
        distance = (distance > 0).astype(np.float64)
    observed = (tables * distance).sum(axis=(1, 2))
    # The distance of a value to itself is 0, so the diagonal of the expected table is not needed.
    expected = np.einsum("bc,bk,bck->b", margin, margin, distance) / (total - 1.0)
    return np.where(expected > 0, 1.0 - observed / np.where(expected > 0, expected, 1.0), np.nan)


def rest_correlations(scores: FloatArray, raters: IntArray, samples: IntArray) -> FloatArray:
    """Pearson correlation of each rater with the mean of the other raters of the same samples.

    Their mean over raters is the human ceiling of a judge.

    Args:
        scores: [n].
        raters: [n], numbers 0 .. I-1.
        samples: [n], numbers 0 .. J-1.

    Returns:
        [I]; NaN for a rater with fewer than three shared samples or without any variation.
    """
    totals, counts = np.bincount(samples, weights=scores), np.bincount(samples)
    others = counts[samples] - 1
    shared = others > 0
    rest = (totals[samples][shared] - scores[shared]) / others[shared]
    own, who = scores[shared], raters[shared]
    num_raters = int(raters.max()) + 1
    n = np.bincount(who, minlength=num_raters)

    def centred(values: FloatArray) -> FloatArray:
        means = np.bincount(who, weights=values, minlength=num_raters) / np.maximum(n, 1)
        return np.asarray(values - means[who])

    def total(values: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(who, weights=values, minlength=num_raters), dtype=np.float64)

    a, b = centred(own), centred(rest)
    spread = np.sqrt(total(a * a) * total(b * b))
    usable = (n >= 3) & (spread > 1e-12)
    return np.where(usable, total(a * b) / np.where(usable, spread, 1.0), np.nan)
