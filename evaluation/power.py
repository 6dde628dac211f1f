"""How many prompts a study needs, or what a study of given size can see.

Normal approximations of the two-sided test, as used for planning.
"""

import math

from scipy.optimize import brentq
from scipy.stats import norm, t

from longtake.runtime.errors import UserError


def _quantiles(power: float, confidence: float) -> tuple[float, float]:
    if not (0.5 < power < 1 and 0 < confidence < 1):
        raise UserError(
            "power or confidence cannot be used",
            received=f"power {power:g}, confidence {confidence:g}",
            expected="power in (0.5, 1), confidence in (0, 1)",
        )
    return float(norm.ppf(0.5 + confidence / 2)), float(norm.ppf(power))


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{name} cannot be used", received=value, expected="a number > 0")
    return value


def prompts_for_difference(
    diff: float, sd: float, *, power: float = 0.8, confidence: float = 0.95
) -> int:
    """Prompts for a paired difference of means to be found.

    Args:
        diff: true difference of two models, points.
        sd: standard deviation over prompts of the difference of two videos, points.
        power: chance to find it, in (0.5, 1).
        confidence: 1 - error rate of the test, in (0, 1).

    Raises:
        UserError: a value out of range.
    """
    z, z_power = _quantiles(power, confidence)
    return math.ceil(((z + z_power) * _positive("sd", sd) / _positive("difference", diff)) ** 2)


def detectable_difference(
    prompts: int, sd: float, *, power: float = 0.8, confidence: float = 0.95
) -> float:
    """The smallest difference of means that ``prompts`` prompts find with the given power.

    Raises:
        UserError: a value out of range.
    """
    z, z_power = _quantiles(power, confidence)
    return (z + z_power) * _positive("sd", sd) / math.sqrt(_positive("prompts", prompts))


def pairs_for_win_share(share: float, *, power: float = 0.8, confidence: float = 0.95) -> int:
    """Non-tied pairs for a win share G / (G + B) to be told from one half.

    Raises:
        UserError: a share outside (0.5, 1), or another value out of range.
    """
    z, z_power = _quantiles(power, confidence)
    if not 0.5 < share < 1:
        raise UserError("win share cannot be used", received=share, expected="in (0.5, 1)")
    return math.ceil(((z / 2 + z_power * math.sqrt(share * (1 - share))) / (share - 0.5)) ** 2)


def detectable_win_share(pairs: int, *, power: float = 0.8, confidence: float = 0.95) -> float:
    """The smallest win share above one half that ``pairs`` non-tied pairs find.

    Raises:
        UserError: fewer than 10 pairs, or a value out of range.
    """
    z, z_power = _quantiles(power, confidence)
    if pairs < 10:
        raise UserError("too few pairs", received=pairs, expected=">= 10")

    def excess(share: float) -> float:
        return math.sqrt(pairs) * (share - 0.5) - z / 2 - z_power * math.sqrt(share * (1 - share))

    return float(brentq(excess, 0.5, 1.0)) if excess(1.0) > 0 else math.nan


def half_width(n: int, sd: float, *, confidence: float = 0.95) -> float:
    """Half of the t-interval of a mean of ``n`` independent values.

    With the three raters of one video and sd 0.7 it is 1.7 points, which is why no single video
    gets an interval; with 500 prompts and sd 0.8 it is 0.07.

    Raises:
        UserError: fewer than two values, or a value out of range.
    """
    if n < 2:
        raise UserError("an interval needs two values", received=n, expected=">= 2")
    quantile = float(t.ppf(0.5 + confidence / 2, n - 1))
    return quantile * _positive("sd", sd) / math.sqrt(n)


def correlation_interval(r: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a Pearson correlation of ``n`` independent pairs (Fisher's transformation).

    Raises:
        UserError: fewer than four pairs, or a correlation outside (-1, 1).
    """
    if n < 4 or not -1 < r < 1:
        raise UserError(
            "no interval for this correlation",
            received=f"r = {r:g}, n = {n}",
            expected="-1 < r < 1 and at least 4 pairs",
        )
    reach = float(norm.ppf(0.5 + confidence / 2)) / math.sqrt(n - 3)
    return math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)


def power_statement(
    kind: str,
    *,
    n: int | None = None,
    effect: float | None = None,
    sd: float = 0.8,
    tie_rate: float = 0.0,
    power: float = 0.8,
    confidence: float = 0.95,
) -> str:
    """The answer in one sentence, for exactly one of ``n`` and ``effect`` (correlation: both).

    Args:
        kind: ``mos``, ``gsb`` or ``correlation``.
        n: prompts (mos) or pairs (gsb, correlation).
        effect: difference in points (mos), win share (gsb), correlation.
        sd: standard deviation of paired differences (mos).
        tie_rate: share of pairs called the same (gsb), in [0, 1).
        power: chance to find the effect.
        confidence: 1 - error rate of the test.

    Raises:
        UserError: an unknown kind, the wrong number of values, or a value out of range.
    """
    wanted = 2 if kind == "correlation" else 1
    if kind not in ("mos", "gsb", "correlation") or (n is None) + (effect is None) != 2 - wanted:
        raise UserError(
            f"{kind}: {'both' if wanted == 2 else 'one'} of size and effect must be given",
            received=f"n {n}, effect {effect}",
            expected="mos or gsb with -n or --effect, or correlation with both",
        )
    if not 0 <= tie_rate < 1:
        raise UserError("tie rate cannot be used", received=tie_rate, expected="in [0, 1)")
    chance = f"with {power:.0%} power at {confidence:.0%} confidence"
    if kind == "correlation":
        assert n is not None and effect is not None
        low, high = correlation_interval(effect, n, confidence=confidence)
        return f"r = {effect:g} from {n} pairs: {confidence:.0%} interval [{low:.3f}, {high:.3f}]"
    if kind == "mos":
        if effect is not None:
            size = prompts_for_difference(effect, sd, power=power, confidence=confidence)
            return f"{size} prompts find a difference of {effect:g} points (SD {sd:g}) {chance}"
        assert n is not None
        found = detectable_difference(n, sd, power=power, confidence=confidence)
        width = half_width(n, sd, confidence=confidence)
        return (
            f"{n} prompts find a difference of {found:.3f} points (SD {sd:g}) {chance}; "
            f"the interval is +-{width:.3f}"
        )
    if effect is not None:
        pairs = pairs_for_win_share(effect, power=power, confidence=confidence)
        total = math.ceil(pairs / (1 - tie_rate))
        return (
            f"{pairs} pairs with a preference ({total} in all at {tie_rate:.0%} ties) tell a win "
            f"share of {effect:.1%} from one half {chance}"
        )
    assert n is not None
    share = detectable_win_share(int(n * (1 - tie_rate)), power=power, confidence=confidence)
    return (
        f"{n} pairs at {tie_rate:.0%} ties tell a win share of {share:.1%} from one half {chance}"
    )
