"""From dimensions to categories to the total: the two suites' formulas, on numbers or arrays."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from longtake.evaluation.vbench.suites import Category, Suite

Score = TypeVar("Score", float, NDArray[np.float64])


def category_score(category: Category, scores: Mapping[str, Score]) -> Score:
    """Weighted mean of normalised dimensions: sum w (x - low) / (high - low) / sum w.

    VBench 2.0 has weights 1 and limits 0 and 1: the plain mean.

    Args:
        category: with all of its dimensions in ``scores``.
        scores: in [0, 1], numbers or arrays of resamples.

    Raises:
        KeyError: a dimension is missing; a missing dimension is never 0.
    """
    weight = sum(d.weight for d in category.dimensions)
    terms = [d.weight * (scores[d.name] - d.low) / (d.high - d.low) for d in category.dimensions]
    return sum(terms[1:], start=terms[0]) / weight


def total_score(suite: Suite, categories: Mapping[str, Score]) -> Score:
    """Weighted mean of all categories: VBench 2.0 (1, 1, 1, 1, 1) / 5, VBench 1.0 (4, 1) / 5.

    Raises:
        KeyError: a category is missing.
    """
    weight = sum(c.weight for c in suite.categories)
    terms = [c.weight * categories[c.name] for c in suite.categories]
    return sum(terms[1:], start=terms[0]) / weight


def all_scores(suite: Suite, scores: Mapping[str, Score]) -> dict[str, Score]:
    """Every category whose dimensions are all there, and `Total` when every category is."""
    known = {
        c.name: category_score(c, scores)
        for c in suite.categories
        if all(d.name in scores for d in c.dimensions)
    }
    if len(known) == len(suite.categories):
        known["Total"] = total_score(suite, known)
    return known


def shares(suite: Suite, line: str) -> dict[str, float]:
    """How much a line moves per unit of each dimension: all formulas are linear.

    Args:
        suite: with the formulas.
        line: a dimension, a category or `Total`.

    Returns:
        d line / d dimension, for the dimensions that the line depends on.
    """
    if line in suite.dimensions:
        return {line: 1.0}
    total = sum(c.weight for c in suite.categories)
    found = {}
    for category in suite.categories:
        outer = category.weight / total if line == "Total" else float(line == category.name)
        weight = sum(d.weight for d in category.dimensions)
        for d in category.dimensions:
            found[d.name] = outer * d.weight / weight / (d.high - d.low)
    return {name: share for name, share in found.items() if share}
