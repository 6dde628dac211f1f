"""Means of models with intervals, and which of them differ: for any score of a video.

All models have videos of the same prompts. So a mean gets an interval by drawing prompts, and a
difference is taken prompt by prompt, tested by flipping signs of prompts, and corrected by Holm
over all pairs of models and all dimensions that were looked at.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from longtake.evaluation.bootstrap import (
    FloatArray,
    IntArray,
    check_resampling,
    cluster_sums,
    percentile_interval,
    resampled_means,
)
from longtake.evaluation.significance import holm, sign_flip_test, tie_groups


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonSettings:
    """How certain, and how finely resampled."""

    confidence: float = 0.95
    """Coverage of the intervals; 1 - confidence is the error rate of the tests. In (0, 1)."""
    resamples: int = 10_000
    """Bootstrap resamples and random sign patterns, >= 100."""
    seed: int = 0
    """Of the resampling; the same seed gives the same numbers."""

    def __post_init__(self) -> None:
        check_resampling(self.confidence, self.resamples)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelMean:
    """One model in one dimension."""

    dimension: str
    """What was scored."""
    model: str
    """Which model."""
    mean: float
    """Mean over its videos; NaN without any."""
    ci_low: float
    """Lower end of the clustered bootstrap interval; NaN with fewer than two clusters."""
    ci_high: float
    """Upper end."""
    sd: float
    """Standard deviation over its videos (ddof 1)."""
    n_samples: int
    """Videos."""
    n_prompts: int
    """Prompts."""
    n_clusters: int
    """Clusters that the bootstrap draws (prompts, or images)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDifference:
    """Two models in one dimension, paired by prompt."""

    dimension: str
    """What was scored."""
    better: str
    """The model with the higher mean over the shared prompts."""
    worse: str
    """The other one."""
    diff: float
    """Mean over the shared prompts of better - worse."""
    ci_low: float
    """Lower end of the clustered bootstrap interval; NaN with fewer than two clusters."""
    ci_high: float
    """Upper end."""
    n_prompts: int
    """Prompts with videos of both."""
    n_clusters: int
    """Their clusters."""
    p: float
    """Two-sided, sign flips of clusters; NaN with fewer than two clusters."""
    p_holm: float
    """Corrected for all pairs and dimensions of this comparison."""
    different: bool
    """Whether p_holm is below 1 - confidence."""


@dataclass(frozen=True, kw_only=True)
class ModelComparison:
    """All models in all dimensions."""

    means: tuple[ModelMean, ...]
    """By dimension, then by model."""
    differences: tuple[ModelDifference, ...]
    """By dimension, then by pair; the best models first."""
    tie_groups: Mapping[str, tuple[tuple[str, ...], ...]]
    """By dimension: largest sets of models that were not told apart, best first."""
    settings: ComparisonSettings
    """How it was computed."""

    def mean_of(self, dimension: str, model: str) -> ModelMean:
        """One cell.

        Raises:
            KeyError: no such dimension or model.
        """
        for cell in self.means:
            if (cell.dimension, cell.model) == (dimension, model):
                return cell
        raise KeyError((dimension, model))


def compare_models(
    scores: pd.DataFrame, dimensions: Sequence[str], settings: ComparisonSettings
) -> ModelComparison:
    """Means, differences and groups of ties.

    Args:
        scores: one row for each video and dimension: columns ``model``, ``dimension``, ``prompt``,
            ``cluster`` (one for each prompt) and ``score`` (finite).
        dimensions: in the order of the result.
        settings: confidence and resampling.
    """
    models = list(dict.fromkeys(scores["model"]))
    means: list[ModelMean] = []
    differences: list[ModelDifference] = []
    for dimension in dimensions:
        part = _Dimension(scores[scores["dimension"] == dimension], dimension, models)
        means += part.means(settings)
        differences += part.differences(settings)
    p_holm = holm([item.p for item in differences])
    alpha = 1.0 - settings.confidence
    corrected = tuple(
        _with_holm(item, float(p), alpha) for item, p in zip(differences, p_holm, strict=True)
    )
    return ModelComparison(
        means=tuple(means),
        differences=corrected,
        tie_groups={name: _groups(name, means, corrected) for name in dimensions},
        settings=settings,
    )


def mean_draws(
    scores: pd.DataFrame, models: Sequence[str], settings: ComparisonSettings, *, seed: int
) -> FloatArray:
    """Resampled means [B, M] of the models in the only dimension of ``scores``; NaN where none."""
    sums, counts = _Dimension(scores, "", models).totals()
    return resampled_means(sums, counts, resamples=settings.resamples, seed=seed)


class _Dimension:
    """The scores of one dimension as sums over clusters and means over prompts."""

    def __init__(self, rows: pd.DataFrame, dimension: str, models: Sequence[str]) -> None:
        self.dimension, self.models = dimension, list(models)
        self.score = rows["score"].to_numpy(dtype=np.float64)
        position = {model: index for index, model in enumerate(self.models)}
        self.model = rows["model"].map(position).to_numpy(dtype=np.int64)
        self.cluster, self.cluster_names = pd.factorize(rows["cluster"])
        self.prompt, prompts = pd.factorize(rows["prompt"])
        self.num_prompts = len(prompts)
        self.prompt_cluster = np.zeros(self.num_prompts, dtype=np.int64)
        self.prompt_cluster[self.prompt] = self.cluster

    def totals(self) -> tuple[FloatArray, FloatArray]:
        """Sums and counts [C, M] of the videos of each cluster and model."""
        return self._by(self.cluster, len(self.cluster_names))

    def _by(self, group: IntArray, size: int) -> tuple[FloatArray, FloatArray]:
        shape = (size, len(self.models))
        cell = group * shape[1] + self.model
        length = shape[0] * shape[1]
        sums = np.bincount(cell, weights=self.score, minlength=length).astype(np.float64)
        counts = np.bincount(cell, minlength=length).astype(np.float64)
        return sums.reshape(shape), counts.reshape(shape)

    def means(self, settings: ComparisonSettings) -> list[ModelMean]:
        sums, counts = self.totals()
        n_samples = counts.sum(axis=0)
        n_clusters = (counts > 0).sum(axis=0)
        n_prompts = (self._by(self.prompt, self.num_prompts)[1] > 0).sum(axis=0)
        low, high = np.full((2, len(self.models)), np.nan)
        usable = n_clusters >= 2
        if usable.any():
            draws = resampled_means(
                sums[:, usable], counts[:, usable], resamples=settings.resamples,
                seed=settings.seed,
            )  # fmt: skip
            low[usable], high[usable] = percentile_interval(draws, settings.confidence)
        return [
            ModelMean(
                dimension=self.dimension,
                model=model,
                mean=float(own.mean()) if len(own) else math.nan,
                ci_low=float(low[m]),
                ci_high=float(high[m]),
                sd=float(own.std(ddof=1)) if len(own) > 1 else math.nan,
                n_samples=int(n_samples[m]),
                n_prompts=int(n_prompts[m]),
                n_clusters=int(n_clusters[m]),
            )
            for m, model in enumerate(self.models)
            for own in [self.score[self.model == m]]
        ]

    def differences(self, settings: ComparisonSettings) -> list[ModelDifference]:
        sums, counts = self._by(self.prompt, self.num_prompts)
        present = np.flatnonzero(counts.sum(axis=0) > 0)
        means = sums.sum(axis=0)[present] / counts.sum(axis=0)[present]
        pairs = list(combinations(present[np.argsort(-means, kind="stable")].tolist(), 2))
        if not pairs:
            return []
        by_prompt = np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)  # [P, M]
        first, second = np.array(pairs).T
        diff = by_prompt[:, first] - by_prompt[:, second]  # [P, Q], NaN where one is absent
        # On the prompts that two models share, their order can be another than over all.
        swapped = np.nansum(diff, axis=0) < 0
        diff[:, swapped] *= -1.0
        pairs = [(b, a) if swap else (a, b) for (a, b), swap in zip(pairs, swapped, strict=True)]
        num_clusters = len(self.cluster_names)
        shared = (~np.isnan(diff)).astype(np.float64)
        diff_sums = cluster_sums(diff, self.prompt_cluster, num_clusters)
        diff_counts = cluster_sums(shared, self.prompt_cluster, num_clusters)
        n_clusters = (diff_counts > 0).sum(axis=0)
        low, high, p = np.full((3, len(pairs)), np.nan)
        usable = n_clusters >= 2
        if usable.any():
            draws = resampled_means(
                diff_sums[:, usable], diff_counts[:, usable], resamples=settings.resamples,
                seed=settings.seed,
            )  # fmt: skip
            low[usable], high[usable] = percentile_interval(draws, settings.confidence)
            p[usable] = sign_flip_test(
                diff_sums[:, usable], flips=settings.resamples, seed=settings.seed
            )
        n_prompts = shared.sum(axis=0)
        return [
            ModelDifference(
                dimension=self.dimension,
                better=self.models[a],
                worse=self.models[b],
                diff=float(diff_sums[:, q].sum() / n_prompts[q]) if n_prompts[q] else math.nan,
                ci_low=float(low[q]),
                ci_high=float(high[q]),
                n_prompts=int(n_prompts[q]),
                n_clusters=int(n_clusters[q]),
                p=float(p[q]),
                p_holm=math.nan,
                different=False,
            )
            for q, (a, b) in enumerate(pairs)
        ]


def _with_holm(item: ModelDifference, p_holm: float, alpha: float) -> ModelDifference:
    return dataclasses.replace(item, p_holm=p_holm, different=p_holm < alpha)


def _groups(
    dimension: str, means: Sequence[ModelMean], differences: Sequence[ModelDifference]
) -> tuple[tuple[str, ...], ...]:
    cells = [c for c in means if c.dimension == dimension and not math.isnan(c.mean)]
    ranked = [cell.model for cell in sorted(cells, key=lambda cell: -cell.mean)]
    apart = [
        frozenset((item.better, item.worse))
        for item in differences
        if item.dimension == dimension and item.different
    ]
    return tie_groups(ranked, apart)
