"""The figure of a comparison: differences with intervals around the line of no difference."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from longtake.evaluation.chart_style import (
    FAINT,
    GRID,
    INK,
    headings,
    new_figure,
    save_png,
    series_colour,
)
from longtake.evaluation.report.compare_lines import Line

_ROW = 0.27
"""Inches of one line."""


def write_compare_figure(lines: Sequence[Line], first: str, second: str, path: Path) -> Path:
    """One panel for each basis, one row for each line that has a difference.

    Raises:
        UserError: the picture cannot be written.
    """
    shown = [line for line in lines if not math.isnan(line.diff)]
    panels = {
        basis: [line for line in shown if line.basis == basis]
        for basis in dict.fromkeys(line.basis for line in shown)
    }
    heights = [0.75 + _ROW * len(rows) for rows in panels.values()]
    width, height = 8.6, 1.15 + sum(heights)
    figure = new_figure(width, height)
    top = height - 0.7
    for (basis, rows), size in zip(panels.items(), heights, strict=True):
        bottom = top - size + 0.5
        axes = figure.add_axes((2.6 / width, bottom / height, 5.6 / width, (size - 0.7) / height))
        _panel(axes, rows)
        axes.set_title(
            f"{basis}, {rows[0].unit}", fontsize=9, color=INK, loc="left", fontweight="bold"
        )
        top -= size
    note = (
        f"Right of the line: {_short(first)} is better; left: {_short(second)}. Grey: no "
        "difference shown, after correction."
    )
    headings(figure, f"{_short(first)} minus {_short(second)}", note)
    return save_png(figure, path)


def _panel(axes: Axes, rows: Sequence[Line]) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for y, line in enumerate(rows):
        colour = series_colour(0) if line.outcome == "first" else series_colour(1)
        colour = colour if line.outcome in ("first", "second") else FAINT
        if not math.isnan(line.low):
            axes.plot([line.low, line.high], [y, y], color=colour, linewidth=1.6)
        axes.plot([line.diff], [y], "o", color=colour, markersize=4.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels([_short(line.dimension.replace("_", " ")) for line in rows])
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    low, high = axes.get_xlim()
    edge = max(abs(low), abs(high), 1e-9)
    axes.set_xlim(-edge, edge)


def _short(name: str, limit: int = 34) -> str:
    text = name.replace("$", r"\$")  # matplotlib would read formulas
    return text if len(text) <= limit else text[: limit - 1] + "…"
