"""How many prompts a study needs, or what a study of given size can see.

Normal approximations of one two-sided test, as used for planning: Holm's correction over several
models and dimensions needs more.
"""

import math

from scipy.optimize import brentq
from scipy.stats import norm, t

from longtake.runtime.errors import UserError


def _quantiles(power: float, confidence: float) -> tuple[float, float]:
    return float(norm.ppf(0.5 + confidence / 2)), float(norm.ppf(power))


def prompts_for_difference(
    diff: float, sd: float, *, power: float = 0.8, confidence: float = 0.95
) -> int:
    """Prompts for a paired difference of means to be found with the chance ``power``.

    ``sd`` is the standard deviation over prompts of the difference of two videos; both in points.
    """
    return math.ceil((sum(_quantiles(power, confidence)) * sd / diff) ** 2)


def detectable_difference(
    prompts: int, sd: float, *, power: float = 0.8, confidence: float = 0.95
) -> float:
    """The smallest difference of means that ``prompts`` prompts find with the given power."""
    return sum(_quantiles(power, confidence)) * sd / math.sqrt(prompts)


def pairs_for_win_share(share: float, *, power: float = 0.8, confidence: float = 0.95) -> int:
    """Non-tied pairs for a win share G / (G + B) in (0.5, 1) to be told from one half."""
    z, z_power = _quantiles(power, confidence)
    return math.ceil(((z / 2 + z_power * math.sqrt(share * (1 - share))) / (share - 0.5)) ** 2)


def detectable_win_share(pairs: int, *, power: float = 0.8, confidence: float = 0.95) -> float:
    """The smallest win share above one half that ``pairs`` non-tied pairs find; NaN if none."""
    z, z_power = _quantiles(power, confidence)

    def excess(share: float) -> float:
        return math.sqrt(pairs) * (share - 0.5) - z / 2 - z_power * math.sqrt(share * (1 - share))

    return float(brentq(excess, 0.5, 1.0)) if excess(1.0) > 0 else math.nan


def half_width(n: int, sd: float, *, confidence: float = 0.95) -> float:
    """Half of the t-interval of a mean of ``n`` independent values.

    With the three raters of one video and sd 0.7 it is 1.7 points, which is why no single video
    gets an interval; with 500 prompts and sd 0.8 it is 0.07.
    """
    return float(t.ppf(0.5 + confidence / 2, n - 1)) * sd / math.sqrt(n)


def correlation_interval(r: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a Pearson correlation of ``n`` independent pairs (Fisher's transformation)."""
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
        tie_rate: share of pairs called the same (gsb).
        power: chance to find the effect.
        confidence: 1 - error rate of the test.
    """
    fewest = {"mos": 2, "gsb": 10, "correlation": 4}[kind]
    low, high = {"mos": (0.0, math.inf), "gsb": (0.5, 1.0), "correlation": (-1.0, 1.0)}[kind]
    both = kind == "correlation"
    if (n is None) + (effect is None) != (0 if both else 1):
        raise UserError(
            f"{kind}: {'both' if both else 'one'} of size and effect must be given",
            received=f"n {n}, effect {effect}",
            expected="mos or gsb with -n or --effect, or correlation with both",
        )
    for name, value, fits, expected in (
        ("-n", n, n is None or n >= fewest, f">= {fewest}"),
        ("--effect", effect, effect is None or low < effect < high, f"in ({low:g}, {high:g})"),
        ("--sd", sd, 0 < sd < math.inf, "> 0"),
        ("--tie-rate", tie_rate, 0 <= tie_rate < 1, "in [0, 1)"),
        ("--power", power, 0.5 < power < 1, "in (0.5, 1)"),
        ("--confidence", confidence, 0 < confidence < 1, "in (0, 1)"),
    ):
        if not fits:
            raise UserError(f"{name} cannot be used", received=value, expected=expected)
    # Questions are checked above, once, so that the formulas need no checks of their own.
    level = {"power": power, "confidence": confidence}
    chance = f"with {power:.0%} power at {confidence:.0%} confidence"
    if kind == "correlation":
        assert n is not None and effect is not None
        low, high = correlation_interval(effect, n, confidence=confidence)
        return f"r = {effect:g} from {n} pairs: {confidence:.0%} interval [{low:.3f}, {high:.3f}]"
    if kind == "mos" and effect is not None:
        size = prompts_for_difference(effect, sd, **level)
        return f"{size} prompts find a difference of {effect:g} points (SD {sd:g}) {chance}"
    if kind == "mos":
        assert n is not None
        return (
            f"{n} prompts find a difference of {detectable_difference(n, sd, **level):.3f} points "
            f"(SD {sd:g}) {chance}; the interval is "
            f"+-{half_width(n, sd, confidence=confidence):.3f}"
        )
    if effect is not None:
        pairs = pairs_for_win_share(effect, **level)
        total = math.ceil(pairs / (1 - tie_rate))
        return (
            f"{pairs} pairs with a preference ({total} in all at {tie_rate:.0%} ties) tell a win "
            f"share of {effect:.1%} from one half {chance}"
        )
    assert n is not None
    share = detectable_win_share(int(n * (1 - tie_rate)), **level)
    return (
        f"{n} pairs at {tie_rate:.0%} ties tell a win share of {share:.1%} from one half {chance}"
    )
