"""The figure of a GSB study: as report Figure 15, with the net preference and its interval."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from longtake.evaluation.chart_style import FAINT, INK, headings, new_figure, save_png, swatch
from longtake.evaluation.dimensions import title_of
from longtake.evaluation.gsb import GsbCount, GsbResult

_GOOD, _SAME, _BAD = "#2a6fb0", "#d5d9de", "#c4602a"


def write_gsb_figure(result: GsbResult, path: Path, title: str = "GSB") -> Path:
    """One stacked bar for each rival and dimension: good, same, bad, and the net with its interval.

    Raises:
        UserError: the picture cannot be written.
    """
    blocks: dict[tuple[str, str], list[GsbCount]] = {}
    for item in result.counts:
        blocks.setdefault((item.reference, item.rival), []).append(item)
    lines = sum(len(block) for block in blocks.values())
    height = 1.25 + 0.34 * lines + 0.42 * len(blocks)
    width = 8.6
    figure = new_figure(width, height)
    left, right = 1.5 / width, 2.75 / width
    axes = figure.add_axes((left, 0.55 / height, 1 - left - right, 1 - 1.15 / height))
    axes.axis("off")
    axes.set_xlim(0, 1)
    y = 0.0
    side = axes.get_yaxis_transform()
    for (reference, rival), block in blocks.items():
        axes.text(
            0, y, f"{reference}  vs  {rival}", fontsize=9.5, fontweight="bold", color=INK,
            va="center",
        )  # fmt: skip
        y += 0.95
        for item in block:
            _gsb_line(axes, y, item)
            axes.text(-0.02, y, title_of(item.dimension), transform=side, ha="right", va="center",
                      fontsize=8.5, color=INK)  # fmt: skip
            y += 1.0
        y += 0.3
    axes.set_ylim(y - 0.6, -0.6)
    _gsb_legend(figure, width, height, left)
    note = (
        f"Right: net (G-B)/(G+S+B) with its {100 * result.settings.confidence:g} % interval "
        "(prompts drawn). Grey: not told apart after Holm's correction."
    )
    headings(figure, title, note)
    return save_png(figure, path)


def _gsb_line(axes: Axes, y: float, item: GsbCount) -> None:
    total = item.good + item.same + item.bad
    start = 0.0
    for count, colour, ink in (
        (item.good, _GOOD, "white"),
        (item.same, _SAME, INK),
        (item.bad, _BAD, "white"),
    ):
        share = count / total
        axes.barh(y, share, left=start, height=0.72, color=colour)
        if share > 0.05:
            axes.text(start + share / 2, y, str(count), ha="center", va="center", fontsize=8,
                      color=ink)  # fmt: skip
        start += share
    colour = FAINT
    if item.different:
        colour = _GOOD if item.net > 0 else _BAD
    interval = "no interval"
    if not math.isnan(item.net_low):
        interval = f"[{item.net_low:+.1%}, {item.net_high:+.1%}]"
    axes.text(
        1.02,
        y,
        f"{item.net:+.1%}  {interval}  n={total}",
        transform=axes.get_yaxis_transform(),
        ha="left",
        va="center",
        fontsize=8,
        color=colour,
    )


def _gsb_legend(figure: Figure, width: float, height: float, left: float) -> None:
    y = 1 - 0.33 / height
    entries = ((_GOOD, "G: reference better"), (_SAME, "S: same"), (_BAD, "B: rival better"))
    for index, (colour, text) in enumerate(entries):
        x = 1 - (4.55 - 1.55 * index + (0.45 if index == 2 else 0.0)) / width
        swatch(figure, x, y, colour, text)
