"""How many prompts a study needs, or what a study of given size can see.

Normal approximations of one two-sided test, as used for planning: Holm's correction over several
models and dimensions needs more.
"""

import math

from pydantic import Field
from scipy.optimize import brentq
from scipy.stats import norm, t

from longtake.runtime.config import Config
from longtake.runtime.errors import UserError


class PowerSettings(Config):
    """What a study assumes and asks for."""

    sd: float = Field(default=0.8, gt=0)
    """Standard deviation of paired differences, points (mos)."""
    tie_rate: float = Field(default=0.0, ge=0, lt=1)
    """Share of pairs called the same (gsb)."""
    power: float = Field(default=0.8, gt=0.5, lt=1)
    """Chance to find the effect."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """1 - error rate of the test."""

    @property
    def quantiles(self) -> tuple[float, float]:
        """Of the standard normal: of the two-sided test, and of its power."""
        return float(norm.ppf(0.5 + self.confidence / 2)), float(norm.ppf(self.power))


USUAL = PowerSettings()


def prompts_for_difference(diff: float, settings: PowerSettings = USUAL) -> int:
    """Prompts for a paired difference of means, in points, to be found."""
    return math.ceil((sum(settings.quantiles) * settings.sd / diff) ** 2)


def detectable_difference(prompts: int, settings: PowerSettings = USUAL) -> float:
    """The smallest difference of means that ``prompts`` prompts find."""
    return sum(settings.quantiles) * settings.sd / math.sqrt(prompts)


def pairs_for_win_share(share: float, settings: PowerSettings = USUAL) -> int:
    """Non-tied pairs for a win share G / (G + B) in (0.5, 1) to be told from one half."""
    z, z_power = settings.quantiles
    return math.ceil(((z / 2 + z_power * math.sqrt(share * (1 - share))) / (share - 0.5)) ** 2)


def detectable_win_share(pairs: int, settings: PowerSettings = USUAL) -> float:
    """The smallest win share above one half that ``pairs`` non-tied pairs find; NaN if none."""
    z, z_power = settings.quantiles

    def excess(share: float) -> float:
        return math.sqrt(pairs) * (share - 0.5) - z / 2 - z_power * math.sqrt(share * (1 - share))

    return float(brentq(excess, 0.5, 1.0)) if excess(1.0) > 0 else math.nan


def half_width(n: int, settings: PowerSettings = USUAL) -> float:
    """Half of the t-interval of a mean of ``n`` independent values.

    With the three raters of one video and sd 0.7 it is 1.7 points, which is why no single video
    gets an interval; with 500 prompts and sd 0.8 it is 0.07.
    """
    return float(t.ppf(0.5 + settings.confidence / 2, n - 1)) * settings.sd / math.sqrt(n)


def correlation_interval(r: float, n: int, settings: PowerSettings = USUAL) -> tuple[float, float]:
    """Interval of a Pearson correlation of ``n`` independent pairs (Fisher's transformation)."""
    reach = settings.quantiles[0] / math.sqrt(n - 3)
    return math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)


def power_statement(
    kind: str,
    *,
    n: int | None = None,
    effect: float | None = None,
    settings: PowerSettings = USUAL,
) -> str:
    """The answer in one sentence, for exactly one of ``n`` and ``effect`` (correlation: both).

    ``n`` counts prompts (mos) or pairs; ``effect`` is a difference in points (mos), a win share
    (gsb) or a correlation.
    """
    # The formulas divide by these margins: from four pairs on Fisher's interval exists, and ten
    # pairs are the fewest that can show a preference at all.
    fewest = {"mos": 2, "gsb": 10, "correlation": 4}[kind]
    low, high = {"mos": (0.0, math.inf), "gsb": (0.5, 1.0), "correlation": (-1.0, 1.0)}[kind]
    given = (n is not None) + (effect is not None)
    asked = {"correlation": 2}.get(kind, 1)
    fits = (n is None or n >= fewest) and (effect is None or low < effect < high)
    if given != asked or not fits:
        raise UserError(
            f"{kind}: {'both' if asked == 2 else 'one'} of size and effect must be given",
            received=f"n {n}, effect {effect}",
            expected=f"n >= {fewest}, effect in ({low:g}, {high:g})",
        )
    sd, ties = settings.sd, settings.tie_rate
    chance = f"with {settings.power:.0%} power at {settings.confidence:.0%} confidence"
    if n is not None and effect is not None:
        low, high = correlation_interval(effect, n, settings)
        interval = f"{settings.confidence:.0%} interval [{low:.3f}, {high:.3f}]"
        return f"r = {effect:g} from {n} pairs: {interval}"
    if kind == "mos" and effect is not None:
        size = prompts_for_difference(effect, settings)
        return f"{size} prompts find a difference of {effect:g} points (SD {sd:g}) {chance}"
    if effect is not None:
        pairs = pairs_for_win_share(effect, settings)
        total = math.ceil(pairs / (1 - ties))
        return (
            f"{pairs} pairs with a preference ({total} in all at {ties:.0%} ties) tell a win "
            f"share of {effect:.1%} from one half {chance}"
        )
    assert n is not None
    if kind == "mos":
        width = half_width(n, settings)
        return (
            f"{n} prompts find a difference of {detectable_difference(n, settings):.3f} points "
            f"(SD {sd:g}) {chance}; the interval is +-{width:.3f}"
        )
    share = detectable_win_share(int(n * (1 - ties)), settings)
    return f"{n} pairs at {ties:.0%} ties tell a win share of {share:.1%} from one half {chance}"
