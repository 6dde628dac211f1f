"""What only the report of a run needs: its rules of style, and numbers as readers write them."""

import math

STYLE = """
:root { --width: 60rem; } main { padding-top: 2.5rem; } p { max-width: 46rem; }
.verdict.rise { border-color: var(--rise); } .verdict.fall { border-color: var(--fall); }
.rise b, b.rise { color: var(--rise); } .fall b, b.fall { color: var(--fall); }
table { width: 100%; } td:first-child { white-space: normal; }
figcaption { margin-top: .3rem; } summary { font-weight: 600; }
"""


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A number with a true minus sign; a dash when it is missing."""
    if value is None or not math.isfinite(value):
        return "&ndash;"
    shown = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    return shown.replace("-", "&minus;")


def span(low: float, high: float) -> str:
    """An interval."""
    return f"[{number(low, signed=True)}, {number(high, signed=True)}]"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 42 s, 8 min 20 s, 3 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
