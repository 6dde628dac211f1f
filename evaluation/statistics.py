"""Paired differences with bootstrap intervals, clustered by prompt.

Samples of one prompt are not independent: they share the caption and often the initial noise. So
the bootstrap resamples whole prompts. Failed samples are NaN; a pair with a NaN on either side is
dropped and counted, never filled in.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from longtake.evaluation.bootstrap import (
    FloatArray,
    IntArray,
    check_resampling,
    cluster_sums,
    percentile_interval,
    resampled_means,
)
from longtake.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """Means before and after, and a percentile bootstrap interval of the paired difference."""

    before: float
    """Mean before, over the pairs used."""
    after: float
    """Mean after, over the pairs used."""
    diff: float
    """Mean of after - before."""
    ci_low: float
    """Lower end of the interval of ``diff``."""
    ci_high: float
    """Upper end of the interval of ``diff``."""
    n: int
    """Pairs used."""
    n_clusters: int
    """Clusters with at least one pair used."""
    dropped: int
    """Pairs dropped because a score was missing."""
    confidence: float
    """Coverage the interval aims at."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.ci_low > 0 or self.ci_high < 0

    def as_record(self) -> dict[str, float | int | list[float]]:
        """The fields of summary.json: before, after, diff, ci95 (or ci90, ...), n, ..."""
        return {
            "before": self.before,
            "after": self.after,
            "diff": self.diff,
            f"ci{self.confidence * 100:g}": [self.ci_low, self.ci_high],
            "n": self.n,
            "n_clusters": self.n_clusters,
            "dropped": self.dropped,
        }


def paired_bootstrap(
    before: Sequence[float] | FloatArray,
    after: Sequence[float] | FloatArray,
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean of ``after - before``.

    Each resample draws as many clusters as there are, with replacement, and takes the mean over
    all pairs of the drawn clusters (so large clusters weigh more, as they do in the plain mean).

    Args:
        before: n scores; NaN = missing.
        after: n scores of the same items in the same order; NaN = missing.
        clusters: n labels, one per pair, for example the prompts. None: each pair alone.
        confidence: coverage in (0, 1).
        resamples: bootstrap resamples, >= 100.
        seed: seed of the resampling; the same seed gives the same interval.

    Raises:
        UserError: lengths differ, a score is infinite, no pair or only one cluster is left, or a
            parameter is out of range.
    """
    check_resampling(confidence, resamples)
    first, second, labels = _clean_inputs(before, after, clusters)
    kept = ~(np.isnan(first) | np.isnan(second))
    n = int(kept.sum())
    if n == 0:
        raise UserError(
            "no complete pair to compare",
            received=f"{len(first)} pairs, all with a missing score",
            expected="at least two complete pairs",
            remedy="look at the reasons of the unscored samples",
        )
    first, second = first[kept], second[kept]
    diff = second - first
    _, dense = np.unique(labels[kept], return_inverse=True)
    num_clusters = int(dense.max()) + 1
    if num_clusters < 2:
        raise UserError(
            "only one cluster is left, its spread cannot be estimated",
            received=f"{n} pairs in 1 cluster",
            expected="at least 2 clusters",
            remedy="evaluate on more prompts; more samples of one prompt do not help",
        )
    totals = cluster_sums(np.stack([diff, np.ones_like(diff)], axis=1), dense, num_clusters)
    means = resampled_means(totals[:, :1], totals[:, 1:], resamples=resamples, seed=seed)
    (low,), (high,) = percentile_interval(means, confidence)
    return Interval(
        before=float(first.mean()),
        after=float(second.mean()),
        diff=float(diff.mean()),
        ci_low=float(low),
        ci_high=float(high),
        n=n,
        n_clusters=num_clusters,
        dropped=int((~kept).sum()),
        confidence=confidence,
    )


def _clean_inputs(
    before: Sequence[float] | FloatArray,
    after: Sequence[float] | FloatArray,
    clusters: Sequence[Hashable] | None,
) -> tuple[FloatArray, FloatArray, IntArray]:
    first = np.asarray(before, dtype=np.float64)
    second = np.asarray(after, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise UserError(
            "scores before and after do not pair up",
            received=f"{first.shape}, {second.shape}",
            expected="two one-dimensional sequences of the same length",
        )
    if np.isinf(first).any() or np.isinf(second).any():
        raise UserError("a score is infinite", expected="finite scores, NaN for a missing one")
    keys: Sequence[Hashable] = range(len(first)) if clusters is None else clusters
    if len(keys) != len(first):
        raise UserError(
            "cluster labels do not fit the scores",
            received=f"{len(keys)} labels for {len(first)} pairs",
            expected="one label per pair",
        )
    numbers: dict[Hashable, int] = {}
    labels = [numbers.setdefault(key, len(numbers)) for key in keys]
    return first, second, np.asarray(labels, dtype=np.int64)
