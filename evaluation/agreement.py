"""How far raters agree: Krippendorff's alpha, and each rater against the others."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from longtake.evaluation.bootstrap import FloatArray, IntArray
from longtake.evaluation.evalica_extra import load_evalica

Level = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Krippendorff's alpha: 1 = full agreement, 0 = as good as chance."""

    alpha: float
    """NaN where undefined."""
    ci_low: float
    """Lower end of the bootstrap interval, which resamples pairs of ratings (Krippendorff 2006)."""
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
    *,
    level: Level = "ordinal",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Agreement of any number of raters with any missing ratings.

    Alpha does not depend on who gave which rating of a sample, so the ratings are packed into as
    many rows as the most-rated sample has.

    Args:
        scores: [n], finite.
        samples: [n], number of the sample of each rating.
        level: distance between scores; ordinal for the 5-point scale.
        confidence: coverage of the interval in (0, 1).
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: evalica is not installed.
    """
    evalica = load_evalica()
    counts = np.bincount(samples)
    paired = counts[samples] > 1
    values, units = scores[paired], samples[paired]
    n_samples, n_ratings = int((counts > 1).sum()), len(values)
    reason = ""
    if n_samples == 0:
        reason = "no sample has two ratings"
    elif (values == values[0]).all():
        reason = "all ratings are the same"
    if reason:
        nan = math.nan
        return Agreement(
            alpha=nan, ci_low=nan, ci_high=nan, n_samples=n_samples, n_ratings=n_ratings,
            reason=reason,
        )  # fmt: skip
    order = np.argsort(units, kind="stable")
    _, column, size = np.unique(units[order], return_inverse=True, return_counts=True)
    row = np.arange(n_ratings) - np.repeat(np.cumsum(size) - size, size)
    packed = np.full((int(size.max()), n_samples), np.nan)
    packed[row, column] = values[order]
    found = evalica.alpha_bootstrap(
        pd.DataFrame(packed),
        distance=level,
        n_resamples=resamples,
        confidence_level=confidence,
        random_state=seed,
    )
    return Agreement(
        alpha=float(found.alpha),
        ci_low=float(found.low),
        ci_high=float(found.high),
        n_samples=n_samples,
        n_ratings=n_ratings,
    )


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
