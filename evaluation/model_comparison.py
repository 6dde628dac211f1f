"""Means of models with intervals, and which of them differ: for any score of a video.

All models have videos of the same prompts. So a mean gets an interval by drawing prompts, and a
difference is taken prompt by prompt, tested by flipping signs of prompts, and corrected by Holm
over all pairs of models and all dimensions that were looked at.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from longtake.runtime.statistics import (
    FloatArray,
    IntArray,
    check_resampling,
    cluster_sums,
    holm,
    percentile_interval,
    resampled_means,
    sign_flip_test,
)

_BLOCK = 500
"""Columns whose resampled means are held at once: 40 MB at 10,000 resamples."""


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
    grid = _Grid(scores, dimensions, list(dict.fromkeys(scores["model"])))
    means, differences = grid.compare(settings)
    p_holm = holm([item.p for item in differences])
    alpha = 1.0 - settings.confidence
    corrected = tuple(
        dataclasses.replace(item, p_holm=float(p), different=bool(p < alpha))
        for item, p in zip(differences, p_holm, strict=True)
    )
    return ModelComparison(
        means=means,
        differences=corrected,
        tie_groups={name: _groups(name, means, corrected) for name in dimensions},
        settings=settings,
    )


def mean_draws(
    scores: pd.DataFrame, models: Sequence[str], settings: ComparisonSettings, *, seed: int
) -> FloatArray:
    """Resampled means [B, M] of the models in the only dimension of ``scores``; NaN where none."""
    names = list(dict.fromkeys(scores["dimension"]))
    sums, counts = _Grid(scores, names[:1], models).totals()
    return resampled_means(sums, counts, resamples=settings.resamples, seed=seed)


class _Grid:
    """Scores as sums over clusters and over prompts; a column is a dimension and model."""

    def __init__(
        self, scores: pd.DataFrame, dimensions: Sequence[str], models: Sequence[str]
    ) -> None:
        self.columns = [(dimension, model) for dimension in dimensions for model in models]
        self.models = models
        rows = scores[scores["dimension"].isin(dimensions)]
        self.score = rows["score"].to_numpy(dtype=np.float64)
        row = {dimension: d * len(models) for d, dimension in enumerate(dimensions)}
        position = {model: m for m, model in enumerate(models)}
        code = rows["dimension"].map(row) + rows["model"].map(position)
        self.column = code.to_numpy(dtype=np.int64)
        self.cluster, clusters = pd.factorize(rows["cluster"])
        self.num_clusters = len(clusters)
        self.prompt, prompts = pd.factorize(rows["prompt"])
        self.num_prompts = len(prompts)
        self.prompt_cluster = np.zeros(self.num_prompts, dtype=np.int64)
        self.prompt_cluster[self.prompt] = self.cluster

    def totals(self) -> tuple[FloatArray, FloatArray]:
        """Sums and counts [C, K] of the videos of each cluster and column."""
        return self._by(self.cluster, self.num_clusters)

    def _by(self, group: IntArray, size: int) -> tuple[FloatArray, FloatArray]:
        shape = (size, len(self.columns))
        cell = group * shape[1] + self.column
        length = shape[0] * shape[1]
        sums = np.bincount(cell, weights=self.score, minlength=length).astype(np.float64)
        counts = np.bincount(cell, minlength=length).astype(np.float64)
        return sums.reshape(shape), counts.reshape(shape)

    def compare(
        self, settings: ComparisonSettings
    ) -> tuple[tuple[ModelMean, ...], tuple[ModelDifference, ...]]:
        """Means of all columns, and differences of every two models of a dimension."""
        sums, counts = self.totals()
        pairs, diff_sums, diff_counts = self._paired()
        low, high = _intervals(
            np.hstack([sums, diff_sums]), np.hstack([counts, diff_counts]), settings
        )
        cut = len(self.columns)
        p = np.full(len(pairs), np.nan)
        enough = (diff_counts > 0).sum(axis=0) >= 2
        p[enough] = sign_flip_test(
            diff_sums[:, enough], flips=settings.resamples, seed=settings.seed
        )
        return (
            tuple(self._means(counts, low[:cut], high[:cut])),
            tuple(self._differences(pairs, diff_sums, diff_counts, low[cut:], high[cut:], p)),
        )

    def _paired(self) -> tuple[list[tuple[int, int]], FloatArray, FloatArray]:
        """Pairs of columns, the better one first, with sums and counts [C, Q] of differences."""
        sums, counts = self._by(self.prompt, self.num_prompts)
        by_prompt = np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)  # [P, K]
        size = counts.sum(axis=0)
        mean = sums.sum(axis=0) / np.maximum(size, 1.0)
        pairs = [
            pair
            for start in range(0, len(self.columns), len(self.models))
            for block in [range(start, start + len(self.models))]
            for pair in combinations(
                sorted((k for k in block if size[k]), key=lambda k: -mean[k]), 2
            )
        ]
        first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        diff = by_prompt[:, first] - by_prompt[:, second]  # [P, Q], NaN where one is absent
        # On the prompts that two models share, their order can be another than over all.
        swapped = np.nansum(diff, axis=0) < 0
        diff[:, swapped] *= -1.0
        pairs = [(b, a) if swap else (a, b) for (a, b), swap in zip(pairs, swapped, strict=True)]
        shared = (~np.isnan(diff)).astype(np.float64)
        return (
            pairs,
            cluster_sums(diff, self.prompt_cluster, self.num_clusters),
            cluster_sums(shared, self.prompt_cluster, self.num_clusters),
        )

    def _means(self, counts: FloatArray, low: FloatArray, high: FloatArray) -> list[ModelMean]:
        n_prompts = (self._by(self.prompt, self.num_prompts)[1] > 0).sum(axis=0)
        return [
            ModelMean(
                dimension=dimension,
                model=model,
                mean=float(own.mean()) if len(own) else math.nan,
                ci_low=float(low[m]),
                ci_high=float(high[m]),
                sd=float(own.std(ddof=1)) if len(own) > 1 else math.nan,
                n_samples=len(own),
                n_prompts=int(n_prompts[m]),
                n_clusters=int((counts[:, m] > 0).sum()),
            )
            for m, (dimension, model) in enumerate(self.columns)
            for own in [self.score[self.column == m]]
        ]

    def _differences(
        self,
        pairs: Sequence[tuple[int, int]],
        sums: FloatArray,
        counts: FloatArray,
        low: FloatArray,
        high: FloatArray,
        p: FloatArray,
    ) -> list[ModelDifference]:
        n_prompts = counts.sum(axis=0)
        return [
            ModelDifference(
                dimension=self.columns[a][0],
                better=self.columns[a][1],
                worse=self.columns[b][1],
                diff=float(sums[:, q].sum() / n_prompts[q]) if n_prompts[q] else math.nan,
                ci_low=float(low[q]),
                ci_high=float(high[q]),
                n_prompts=int(n_prompts[q]),
                n_clusters=int((counts[:, q] > 0).sum()),
                p=float(p[q]),
                p_holm=math.nan,
                different=False,
            )
            for q, (a, b) in enumerate(pairs)
        ]


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


def tie_groups(
    ranked: Sequence[str], different: Collection[frozenset[str]]
) -> tuple[tuple[str, ...], ...]:
    """The largest sets of models of which no two were told apart.

    A model can be in several groups: A ~ B and B ~ C with A different from C gives (A, B), (B, C).

    Args:
        ranked: the models, best first.
        different: pairs that were told apart.

    Returns:
        Groups in the order of their best members, each in the order of ``ranked``.
    """
    apart = set(different)
    groups: list[frozenset[str]] = [frozenset()]
    # Invariant: `groups` are the maximal compatible sets of the models seen so far.
    for model in ranked:
        extended = [
            frozenset({other for other in group if frozenset((model, other)) not in apart})
            | {model}
            for group in groups
        ]
        candidates = {*groups, *extended}
        groups = [g for g in candidates if not any(g < other for other in candidates)]
    position = {model: index for index, model in enumerate(ranked)}
    rows = [tuple(sorted(group, key=position.__getitem__)) for group in groups if group]
    return tuple(sorted(rows, key=lambda row: [position[model] for model in row]))
