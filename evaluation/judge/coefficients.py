"""How well one list of scores follows another: PLCC, SRCC, KRCC (tau-b) and RMSE.

A coefficient of fewer than two points, or of a list without variation, is undefined: NaN.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import kendalltau, norm

from longtake.runtime.statistics import FloatArray

_FEW = 200  # below, all pairs at once are faster than scipy, whose call alone takes a millisecond


def pearson(x: FloatArray, y: FloatArray) -> float:
    """Linear correlation (PLCC) of x [n] and y [n]."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    a, b = x - x.mean(), y - y.mean()
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / spread if spread > 0 else math.nan


def spearman(x: FloatArray, y: FloatArray) -> float:
    """Rank correlation (SRCC); tied values share their mean rank."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(x: FloatArray) -> FloatArray:
    """Mean ranks, as scipy's ``rankdata``, which takes ten times as long for few values."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2.0)[place], dtype=np.float64)


def kendall(x: FloatArray, y: FloatArray) -> float:
    """Kendall's tau-b (KRCC), which corrects for ties on both sides."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    if len(x) > _FEW:
        return float(kendalltau(x, y, method="asymptotic").statistic)
    a, b = (np.sign(v[:, None] - v[None, :]).ravel() for v in (x, y))
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def rmse(x: FloatArray, y: FloatArray) -> float:
    """Root mean square difference of x [n] and y [n], in their unit."""
    return math.sqrt(float(np.mean((x - y) ** 2))) if len(x) else math.nan


COEFFICIENTS: dict[str, Callable[[FloatArray, FloatArray], float]] = {
    "plcc": pearson,
    "srcc": spearman,
    "krcc": kendall,
    "rmse": rmse,
}
"""Name -> function of two lists, in the order of the report card."""


def random_points_interval(
    name: str, value: float, n: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of a correlation whose points themselves are a sample, by Fisher's z.

    The bootstrap over prompts keeps the models; this one asks what other models would give, and
    with four models it spans nearly everything. Variance of z: 1 / (n - 3) for Pearson,
    (1 + r^2 / 2) / (n - 3) for Spearman (Bonett & Wright 2000), 0.437 / (n - 4) for Kendall
    (Fieller et al. 1957).

    Args:
        name: ``plcc``, ``srcc`` or ``krcc``; others have no such interval.
        value: the coefficient.
        n: number of points.
        confidence: coverage in (0, 1).

    Returns:
        Both ends; NaN where there are too few points or the coefficient is undefined.
    """
    spare = n - (4 if name == "krcc" else 3)
    variance = {"plcc": 1.0, "srcc": 1.0 + value * value / 2.0, "krcc": 0.437}.get(name)
    if variance is None or spare < 1 or not abs(value) <= 1:
        return math.nan, math.nan
    z = math.atanh(max(min(value, 1 - 1e-12), -1 + 1e-12))
    reach = float(norm.ppf(0.5 + confidence / 2.0)) * math.sqrt(variance / spare)
    return math.tanh(z - reach), math.tanh(z + reach)
