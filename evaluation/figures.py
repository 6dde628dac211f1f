"""Figures of the evaluation: MOS as report Figures 14 and 16, GSB as Figure 15, with intervals.

Figures are objects with their own canvas, so a notebook that imports this keeps its settings.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.patches import Patch

from longtake.evaluation.dimensions import SCALE, title_of
from longtake.evaluation.gsb import GsbResult
from longtake.evaluation.mos import MosResult
from longtake.evaluation.tables import rows_of
from longtake.runtime.files import explained, replacing

INK, FAINT, GRID = "#1c1e21", "#6e737a", "#e4e6e9"
"""Colours of texts, of what is secondary, and of lines in the background."""
SERIES = (
    *("#2a6fb0", "#c4602a", "#4b8b3b", "#8a5aa8", "#9a7b1f", "#3a8f8f", "#b04a6b", "#5b6770"),
    *("#7fb2e5", "#e5a37f", "#9ccf8f", "#c7a5dc"),
)
"""Of the models, in their order; they repeat."""
_GOOD, _SAME, _BAD = SERIES[0], "#d5d9de", SERIES[1]
_MAX_WIDTH = 12.0
"""Inches; panels that do not fit beside each other go below."""


def new_figure(width: float, height: float, title: str, note: str = "") -> Figure:
    """An empty white figure, inches, with a heading on top and a note at the foot."""
    figure = Figure(figsize=(width, height), dpi=140, facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left")
    figure.supxlabel(note, fontsize=7.5, color=FAINT, x=0.01, ha="left")
    return figure


def bare_axes(axes: Axes) -> None:
    """Horizontal lines only, no frame."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def save_png(figure: Figure, path: Path) -> Path:
    """Write the picture, atomically."""
    FigureCanvasAgg(figure)  # the canvas makes itself known to the figure
    with explained(f"write {path.name}", path), replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _legend(
    figure: Figure, colours: Sequence[str], names: Sequence[str], loc: str, ncols: int
) -> Legend:
    style: dict[str, Any] = {"loc": loc, "ncols": ncols, "alignment": "left", "fontsize": 8.5}
    patches = [Patch(color=colour) for colour in colours]
    legend: Legend = figure.legend(patches, names, frameon=False, labelcolor=INK, **style)
    return legend


def write_mos_figure(result: MosResult, path: Path, title: str = "MOS") -> Path:
    """One panel for each dimension, one bar for each model, with intervals.

    The axis spans the whole scale, so that the height of a bar is the score.
    """
    cells = {(c.dimension, c.model): c for c in rows_of(result.means)}
    rated = result.means[result.means["n_samples"] > 0]
    dimensions = [d for d in result.settings.dimensions if d in set(rated["dimension"])]
    panel = 0.5 + 0.52 * len(result.models)
    per_row = min(max(int(_MAX_WIDTH / panel), 1), len(dimensions))
    rows = math.ceil(len(dimensions) / per_row)
    entries = max(int(per_row * panel / (0.6 + 0.09 * max(map(len, result.models)))), 1)
    legend_rows = math.ceil(len(result.models) / entries)
    sizes = sorted({*rated["n_samples"]})
    note = (
        f"Bars: mean of {'-'.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} videos with its "
        f"{100 * result.settings.comparison.confidence:g} % interval (prompts drawn)."
    )
    height = 0.9 + 2.3 * rows + 0.25 * legend_rows
    figure = new_figure(max(0.75 + per_row * panel, 6.4), height, title)
    # One scale for all panels: dimensions are compared by eye.
    grid = figure.subplots(rows, per_row, squeeze=False, sharey=True)
    for axes in grid.flat[len(dimensions) :]:
        axes.set_axis_off()
    for axes, dimension in zip(grid.flat, dimensions, strict=False):
        bare_axes(axes)
        axes.set_title(title_of(dimension), fontsize=9.5, color=INK)
        axes.set_ylim(*SCALE)  # a cut axis would make small differences look large
        axes.set_yticks(range(SCALE[0], SCALE[1] + 1))
        axes.set_xticks([])
        axes.set_xlim(-0.6, len(result.models) - 0.4)
        for x, model in enumerate(result.models):
            cell = cells[dimension, model]
            text: dict[str, Any] = {"ha": "center", "va": "bottom", "color": INK, "fontsize": 8}
            if math.isnan(cell.mean):
                axes.text(x, SCALE[0] + 0.06, "no rating", rotation=90, **text)
                continue
            colour = SERIES[x % len(SERIES)]
            axes.bar(x, cell.mean - SCALE[0], bottom=SCALE[0], width=0.74, color=colour)
            axes.plot([x, x], [cell.ci_low, cell.ci_high], color=INK, linewidth=1.3)
            top = np.nanmax([cell.mean, cell.ci_high])
            axes.text(x, top + 0.06, f"{cell.mean:.2f}", **text)
    colours = [SERIES[i % len(SERIES)] for i in range(len(result.models))]
    _legend(figure, colours, result.models, "outside lower left", entries).set_title(
        note, prop=FontProperties(size=7.5)
    )
    return save_png(figure, path)


def write_gsb_figure(result: GsbResult, path: Path, title: str = "GSB") -> Path:
    """One stacked bar for each rival and dimension: good, same, bad, and the net with interval."""
    blocks = list(result.counts.groupby(["reference", "rival"], sort=False))
    note = (
        f"Right: net (G-B)/(G+S+B) with its {100 * result.settings.confidence:g} % interval "
        "(prompts drawn). Grey: not told apart after Holm's correction."
    )
    lines = [len(block) for _, block in blocks]
    height = 1.3 + 0.34 * sum(lines) + 0.45 * len(blocks)
    figure = new_figure(8.6, height, title, note)
    grid = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=lines)
    for axes, ((reference, rival), block) in zip(grid.flat, blocks, strict=True):
        axes.set_title(f"{reference}  vs  {rival}", fontsize=9.5, fontweight="bold", loc="left")
        _gsb_bars(axes, block)
    names = ("G: reference better", "S: same", "B: rival better")
    _legend(figure, (_GOOD, _SAME, _BAD), names, "outside upper right", 3)
    return save_png(figure, path)


def _gsb_bars(axes: Axes, block: pd.DataFrame) -> None:
    axes.spines[:].set_visible(False)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    axes.set_yticks(range(len(block)), [title_of(name) for name in block["dimension"]])
    axes.invert_yaxis()
    for y, item in enumerate(rows_of(block)):
        total = item.good + item.same + item.bad
        start = 0.0
        text: dict[str, Any] = {"va": "center", "fontsize": 8}
        parts = ((item.good, _GOOD, "white"), (item.same, _SAME, INK), (item.bad, _BAD, "white"))
        for count, colour, ink in parts:
            share = count / total
            axes.barh(y, share, left=start, height=0.72, color=colour)
            if share > 0.05:  # in a narrower part the number would touch its neighbours
                axes.text(start + share / 2, y, str(count), ha="center", color=ink, **text)
            start += share
        colour = (_GOOD if item.net > 0 else _BAD) if item.different else FAINT
        interval = "no interval"
        if not math.isnan(item.net_low):
            interval = f"[{item.net_low:+.1%}, {item.net_high:+.1%}]"
        words = f"{item.net:+.1%}  {interval}  n={total}"
        beside = axes.get_yaxis_transform()
        axes.text(1.02, y, words, transform=beside, color=colour, **text)
