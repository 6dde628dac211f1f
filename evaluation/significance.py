"""Tests of differences: sign flips of whole clusters, Holm's correction, groups of ties."""

from collections.abc import Collection, Sequence

import numpy as np

from longtake.evaluation.bootstrap import CHUNK, FloatArray

_EXACT_UP_TO = 12
"""Clusters for which all sign patterns are enumerated (2,048 up to the overall sign)."""
_ROUNDING = 1e-9
"""Sums that differ by less than this share of the largest one are the same number."""


def sign_flip_test(sums: FloatArray, *, flips: int = 10_000, seed: int = 0) -> FloatArray:
    """Two-sided p-values of "no difference", one for each column of paired differences.

    If two models are equal, swapping them within a prompt changes nothing: the sign of a prompt's
    difference is a coin toss. The p-value is the share of sign patterns whose absolute sum is at
    least the observed one; it holds at any number of prompts. Up to 12 clusters all patterns are
    enumerated, else ``flips`` are drawn and p = (1 + hits) / (1 + flips), so p is never 0.

    Args:
        sums: [C, Q], sum of the differences of each cluster; 0 where a cluster has none.
        flips: drawn sign patterns, shared by all columns.
        seed: of the drawing.

    Returns:
        [Q].
    """
    num_clusters = len(sums)
    observed = np.abs(sums.sum(axis=0))
    limit = observed - _ROUNDING * np.abs(sums).sum(axis=0)
    if num_clusters <= _EXACT_UP_TO:
        patterns = np.arange(2 ** max(num_clusters - 1, 0))
        bits = (patterns[:, None] >> np.arange(num_clusters)) & 1
        hits = (np.abs((1.0 - 2.0 * bits) @ sums) >= limit).sum(axis=0)
        return np.asarray(hits / len(patterns), dtype=np.float64)
    rng = np.random.default_rng(seed)
    hits = np.zeros(sums.shape[1], dtype=np.int64)
    per_chunk = max(1, CHUNK // num_clusters)
    for start in range(0, flips, per_chunk):
        rows = min(per_chunk, flips - start)
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(rows, num_clusters), dtype=np.int8)
        hits += (np.abs(signs @ sums) >= limit).sum(axis=0)
    return np.asarray((1 + hits) / (1 + flips), dtype=np.float64)


def holm(p_values: Sequence[float] | FloatArray) -> FloatArray:
    """P-values adjusted for being looked at together (Holm 1979), in the given order.

    The k-th smallest of m is multiplied by m - k + 1, kept monotone and at most 1. Calling those
    below alpha different makes the chance of any false call at most alpha, whatever the
    dependence. NaN stays NaN and is not counted.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full_like(p, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


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
