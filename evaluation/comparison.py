"""Means of models with intervals, and which of them differ: for any score of a video.

All models have videos of the same prompts. So a mean gets an interval by drawing prompts, and a
difference is taken prompt by prompt, tested by flipping signs of prompts, and corrected by Holm
over all pairs of models and all dimensions that were looked at.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from pydantic import Field

from longtake.runtime.config import Config
from longtake.runtime.statistics import (
    FloatArray,
    IntArray,
    cluster_sums,
    holm,
    percentile_interval,
    resampled_means,
    sign_flip_test,
)

_BLOCK = 500
"""Columns whose resampled means are held at once: 40 MB at 10,000 resamples."""


class ComparisonSettings(Config):
    """How certain, and how finely resampled."""

    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of the intervals; 1 - confidence is the error rate of the tests."""
    resamples: int = Field(default=10_000, ge=100)
    """Bootstrap resamples and random sign patterns."""
    seed: int = 0


def compare_models(
    scores: pd.DataFrame, dimensions: Sequence[str], settings: ComparisonSettings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means of all models and paired differences of every two, in each dimension.

    ``scores`` has one row for each video and dimension: columns ``model``, ``dimension``,
    ``prompt``, ``cluster`` (one for each prompt) and ``score`` (finite).

    Means: dimension, model, mean, ci_low, ci_high, sd (over videos, ddof 1), n_samples, n_prompts,
    n_clusters. Differences, the better model (on the shared prompts) first: dimension, better,
    worse, diff, ci_low, ci_high, n_prompts, n_clusters, p (sign flips of clusters), p_holm,
    different (p_holm below 1 - confidence). NaN where there is nothing to average, and for
    intervals and p where there are fewer than two clusters.
    """
    models = list(dict.fromkeys(scores["model"]))
    columns = [(dimension, model) for dimension in dimensions for model in models]
    cells = _Cells(scores[scores["dimension"].isin(dimensions)], columns)
    sums, counts = cells.by(cells.cluster, cells.num_clusters)
    prompt_sums, prompt_counts = cells.by(cells.prompt, len(cells.prompt_cluster))
    pairs, diff = _paired(columns, prompt_sums, prompt_counts)
    shared = (~np.isnan(diff)).astype(np.float64)
    diff_sums = cluster_sums(diff, cells.prompt_cluster, cells.num_clusters)
    diff_counts = cluster_sums(shared, cells.prompt_cluster, cells.num_clusters)
    # Means and differences in one call: the same draws for all, so they agree with each other.
    low, high = _intervals(np.hstack([sums, diff_sums]), np.hstack([counts, diff_counts]), settings)
    cut = len(columns)
    means = pd.DataFrame(columns, columns=["dimension", "model"])
    own = [cells.score[cells.column == k] for k in range(cut)]
    means["mean"] = [x.mean() if len(x) else np.nan for x in own]
    means["ci_low"], means["ci_high"] = low[:cut], high[:cut]
    means["sd"] = [x.std(ddof=1) if len(x) > 1 else np.nan for x in own]
    means["n_samples"] = [len(x) for x in own]
    means["n_prompts"] = (prompt_counts > 0).sum(axis=0)
    means["n_clusters"] = (counts > 0).sum(axis=0)

    n_prompts = shared.sum(axis=0).astype(int)
    n_clusters = (diff_counts > 0).sum(axis=0)
    p = np.full(len(pairs), np.nan)
    enough = n_clusters >= 2
    p[enough] = sign_flip_test(diff_sums[:, enough], flips=settings.resamples, seed=settings.seed)
    differences = pd.DataFrame(
        {
            "dimension": [columns[a][0] for a, _ in pairs],
            "better": [columns[a][1] for a, _ in pairs],
            "worse": [columns[b][1] for _, b in pairs],
            "diff": np.where(n_prompts, diff_sums.sum(axis=0) / np.maximum(n_prompts, 1), np.nan),
            "ci_low": low[cut:],
            "ci_high": high[cut:],
            "n_prompts": n_prompts,
            "n_clusters": n_clusters,
            "p": p,
            "p_holm": holm(p),
        }
    )
    differences["different"] = differences["p_holm"] < 1.0 - settings.confidence
    return means, differences


def mean_draws(
    scores: pd.DataFrame, models: Sequence[str], settings: ComparisonSettings, *, seed: int
) -> FloatArray:
    """Resampled means [B, M] of the models in the only dimension of ``scores``; NaN where none."""
    cells = _Cells(scores, [(name, m) for name in scores["dimension"].unique() for m in models])
    sums, counts = cells.by(cells.cluster, cells.num_clusters)
    return resampled_means(sums, counts, resamples=settings.resamples, seed=seed)


class _Cells:
    """Scores with the numbers of their column (dimension, model), prompt and cluster."""

    def __init__(self, rows: pd.DataFrame, columns: Sequence[tuple[str, str]]) -> None:
        self.score: FloatArray = rows["score"].to_numpy(dtype=np.float64)
        index = pd.MultiIndex.from_tuples(columns, names=["dimension", "model"])
        named = pd.MultiIndex.from_frame(rows[["dimension", "model"]])
        self.column: IntArray = index.get_indexer(named)
        self.num_columns = len(columns)
        self.cluster, clusters = pd.factorize(rows["cluster"])
        self.num_clusters = len(clusters)
        self.prompt, prompts = pd.factorize(rows["prompt"])
        self.prompt_cluster: IntArray = np.zeros(len(prompts), dtype=np.int64)
        self.prompt_cluster[self.prompt] = self.cluster

    def by(self, group: IntArray, size: int) -> tuple[FloatArray, FloatArray]:
        """Sums and counts [size, K] of the scores of each group and column."""
        cell, cells = group * self.num_columns + self.column, size * self.num_columns
        sums = np.bincount(cell, weights=self.score, minlength=cells).astype(np.float64)
        counts = np.bincount(cell, minlength=cells).astype(np.float64)
        return sums.reshape(size, -1), counts.reshape(size, -1)


def _paired(
    columns: Sequence[tuple[str, str]], sums: FloatArray, counts: FloatArray
) -> tuple[list[tuple[int, int]], FloatArray]:
    """Pairs of columns of a dimension, the better one first, and differences [P, Q] by prompt."""
    # Videos of a prompt are averaged first: a model with more of them must not weigh more.
    by_prompt = np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)  # [P, K]
    size = counts.sum(axis=0)
    mean = sums.sum(axis=0) / np.maximum(size, 1.0)
    ranked: dict[str, list[int]] = {}
    for k in sorted(np.flatnonzero(size).tolist(), key=lambda k: -mean[k]):
        ranked.setdefault(columns[k][0], []).append(k)
    names = dict.fromkeys(dimension for dimension, _ in columns)
    pairs = [pair for name in names for pair in combinations(ranked.get(name, []), 2)]
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    diff = by_prompt[:, first] - by_prompt[:, second]  # NaN where one is absent
    # On the prompts that two models share, their order can be another than over all.
    swapped = np.nansum(diff, axis=0) < 0
    diff[:, swapped] *= -1.0
    return [(b, a) if s else (a, b) for (a, b), s in zip(pairs, swapped, strict=True)], diff


def _intervals(
    sums: FloatArray, counts: FloatArray, settings: ComparisonSettings
) -> tuple[FloatArray, FloatArray]:
    """Bootstrap intervals of the columns; NaN for those with fewer than two clusters."""
    low, high = np.full((2, sums.shape[1]), np.nan)
    enough = np.flatnonzero((counts > 0).sum(axis=0) >= 2)
    for start in range(0, len(enough), _BLOCK):
        block = enough[start : start + _BLOCK]
        draws = resampled_means(
            sums[:, block], counts[:, block], resamples=settings.resamples, seed=settings.seed
        )
        low[block], high[block] = percentile_interval(draws, settings.confidence)
    return low, high
