"""How raters differ: bias and inconsistency of each, and quality freed of both.

ITU-T P.910 (2023), annex E, alternating projection: a score is the quality of the video plus the
bias of the rater plus noise with the rater's own spread,

    u_ij = psi_j + Delta_i + nu_i X,   X ~ N(0, 1),   mean of Delta over the raters = 0.

Bias and inconsistency are diagnostics; the report's score of a video stays the plain mean.
"""

from dataclasses import dataclass

import numpy as np

from longtake.runtime.statistics import FloatArray, IntArray

_TOLERANCE = 1e-8
_FLOOR = 1e-8
"""Added to each variance: a rater who fits perfectly would get infinite weight."""


@dataclass(frozen=True, kw_only=True)
class SubjectBias:
    """The estimates. I raters, J samples."""

    quality: FloatArray
    """[J], psi: quality without the bias of the raters, weighted by their consistency."""
    bias: FloatArray
    """[I], Delta: how much a rater scores above the average rater, in scale points."""
    inconsistency: FloatArray
    """[I], nu: standard deviation of a rater's scores around quality plus bias."""
    iterations: int
    """Rounds used."""
    converged: bool
    """Whether the quality settled within the rounds allowed."""


def alternating_projection(
    scores: FloatArray, raters: IntArray, samples: IntArray, *, max_iterations: int = 1000
) -> SubjectBias:
    """Fit the model by alternating projection; every sample may have other raters.

    Args:
        scores: [n], one for each rating.
        raters: [n], numbers 0 .. I-1, each occurring.
        samples: [n], numbers 0 .. J-1, each occurring.
        max_iterations: rounds after which to stop.
    """
    per_rater = np.bincount(raters).astype(np.float64)
    per_sample = np.bincount(samples).astype(np.float64)

    def rater_mean(values: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(raters, weights=values) / per_rater)

    quality = np.bincount(samples, weights=scores) / per_sample
    deviation = scores - quality[samples]
    inconsistency = np.zeros(len(per_rater))
    converged, iteration = False, 0
    while not converged and iteration < max_iterations:
        iteration += 1
        mean = rater_mean(deviation)
        # Standard deviation with ddof 0; the mean deviation of a rater is taken out exactly.
        inconsistency = np.sqrt(rater_mean((deviation - mean[raters]) ** 2))
        weight = (1.0 / (inconsistency**2 + _FLOOR))[raters]
        unbiased = scores - (mean - mean.mean())[raters]
        before, quality = (
            quality,
            np.bincount(samples, weights=weight * unbiased) / np.bincount(samples, weights=weight),
        )
        deviation = scores - quality[samples]
        converged = bool(np.linalg.norm(quality - before) < _TOLERANCE)
    mean = rater_mean(deviation)
    bias = mean - mean.mean()
    return SubjectBias(
        quality=quality,
        bias=bias,
        inconsistency=inconsistency,
        iterations=iteration,
        converged=converged,
    )
