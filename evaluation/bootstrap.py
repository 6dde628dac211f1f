"""Resampling of whole clusters (prompts): the engine behind every interval of the evaluation.

Samples of one prompt are not independent, so a resample draws prompts, not samples. Everything a
mean needs of a prompt is its sum and its count: a resample is then a row of draw counts, and all
means of all resamples are one matrix product.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from longtake.runtime.errors import UserError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CHUNK = 1_000_000
"""Drawn indices held in memory at once."""


def check_resampling(confidence: float, resamples: int) -> None:
    """Refuse a coverage outside (0, 1) and fewer than 100 resamples.

    Raises:
        UserError: a parameter is out of range.
    """
    if not 0.0 < confidence < 1.0:
        raise UserError("confidence cannot be used", received=confidence, expected="in (0, 1)")
    if resamples < 100:
        raise UserError("too few bootstrap resamples", received=resamples, expected=">= 100")


def cluster_sums(values: FloatArray, clusters: IntArray, num_clusters: int) -> FloatArray:
    """Sum of the rows of each cluster.

    Args:
        values: [n, K]; NaN counts as absent.
        clusters: [n], numbers below ``num_clusters``.
        num_clusters: C.

    Returns:
        [C, K].
    """
    columns = [
        np.bincount(clusters, weights=column, minlength=num_clusters)
        for column in np.nan_to_num(values).T
    ]
    return np.stack(columns, axis=1) if columns else np.zeros((num_clusters, 0))


def draw_counts(num_clusters: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each resample draws each cluster, in chunks [rows, C]; each row sums to C."""
    rng = np.random.default_rng(seed)
    per_chunk = max(1, CHUNK // num_clusters)
    for start in range(0, resamples, per_chunk):
        rows = min(per_chunk, resamples - start)
        draws = rng.integers(0, num_clusters, size=(rows, num_clusters))
        draws += np.arange(rows)[:, None] * num_clusters
        counts = np.bincount(draws.ravel(), minlength=rows * num_clusters)
        yield counts.reshape(rows, num_clusters).astype(np.float64)


def resampled_means(
    sums: FloatArray, counts: FloatArray, *, resamples: int, seed: int
) -> FloatArray:
    """Means of K columns in each of B resamples; all columns see the same draws.

    Sharing the draws keeps columns paired: the difference of two columns of the result is the
    resampled difference on the same prompts.

    Args:
        sums: [C, K], sum of a column's values in each cluster.
        counts: [C, K], number of these values.
        resamples: B.
        seed: the same seed gives the same draws.

    Returns:
        [B, K]; NaN where a resample drew no value of a column.
    """
    means = []
    for drawn in draw_counts(len(sums), resamples, seed):
        total = drawn @ counts
        means.append(np.where(total > 0, drawn @ sums, np.nan) / np.where(total > 0, total, 1.0))
    return np.concatenate(means)


def percentile_interval(draws: FloatArray, confidence: float) -> tuple[FloatArray, FloatArray]:
    """Percentile interval of each column.

    Args:
        draws: [B, K], resampled values; a column with NaN is summarised by its other values.
        confidence: coverage in (0, 1).

    Returns:
        Lower and upper ends [K]; NaN for a column without any value.
    """
    tail = (1.0 - confidence) / 2.0
    missing = np.isnan(draws)
    if not missing.any():
        low, high = np.quantile(draws, [tail, 1.0 - tail], axis=0)
        return low, high
    ends = np.full((2, draws.shape[1]), np.nan)
    for column in np.flatnonzero(~missing.all(axis=0)):
        values = draws[~missing[:, column], column]
        ends[:, column] = np.quantile(values, [tail, 1.0 - tail])
    return ends[0], ends[1]
