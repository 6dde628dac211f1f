"""The figure of a MOS study: as report Figures 14 and 16, with intervals."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from longtake.evaluation.chart_style import (
    FAINT,
    INK,
    bare_axes,
    headings,
    new_figure,
    save_png,
    series_colour,
    swatch,
)
from longtake.evaluation.dimensions import SCALE, title_of
from longtake.evaluation.model_comparison import ModelMean
from longtake.evaluation.mos import MosResult
from longtake.evaluation.mos_tables import tie_letter

_MAX_WIDTH = 12.0
"""Inches; panels that do not fit beside each other go below."""


def write_mos_figure(result: MosResult, path: Path, title: str = "MOS") -> Path:
    """One panel for each dimension, one bar for each model, with intervals.

    The axis spans the whole scale, so that the height of a bar is the score. Letters under the
    models name the groups of ties: models with a common letter were not told apart.

    Raises:
        UserError: the picture cannot be written.
    """
    dimensions = [d for d in result.settings.dimensions if result.comparison.tie_groups[d]]
    models = result.models
    panel = 0.5 + 0.52 * len(models)
    per_row = min(max(int((_MAX_WIDTH - 0.75) / panel), 1), len(dimensions))
    panel_rows = -(-len(dimensions) // per_row)
    width = max(0.75 + per_row * panel, 6.4)
    step = 0.5 + 0.085 * max(len(model) for model in models)
    entries = min(max(int((width - 0.75) / step), 1), len(models))
    legend = 0.22 * -(-len(models) // entries)
    height = 1.24 + legend + 2.3 * panel_rows
    figure = new_figure(width, height)
    grid = figure.add_gridspec(
        panel_rows,
        per_row,
        left=0.6 / width,
        right=1 - 0.15 / width,
        bottom=(0.72 + legend) / height,
        top=1 - 0.72 / height,
        wspace=0.12,
        hspace=0.35,
    )
    for index, dimension in enumerate(dimensions):
        axes = figure.add_subplot(grid[index // per_row, index % per_row])
        cells = [result.comparison.mean_of(dimension, model) for model in models]
        _mos_panel(axes, cells, result.comparison.tie_groups[dimension])
        axes.set_title(title_of(dimension), fontsize=9.5, color=INK, pad=8)
        axes.tick_params(labelleft=index % per_row == 0)
    for index, model in enumerate(models):
        x = (0.6 + step * (index % entries)) / width
        y = (0.34 + legend - 0.22 * (index // entries)) / height
        swatch(figure, x, y, series_colour(index), model)
    confidence = 100 * result.settings.comparison.confidence
    sizes = sorted({c.n_samples for c in result.comparison.means if c.n_samples})
    note = (
        f"Bars: mean of {'-'.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} videos with its "
        f"{confidence:g} % interval (prompts drawn). Common letter: not told apart."
    )
    headings(figure, title, note)
    return save_png(figure, path)


def _mos_panel(axes: Axes, cells: Sequence[ModelMean], groups: Sequence[Sequence[str]]) -> None:
    low_end, high_end = SCALE
    bare_axes(axes)
    axes.set_ylim(low_end, high_end)
    axes.set_yticks(range(low_end, high_end + 1))
    axes.set_xlim(-0.6, len(cells) - 0.4)
    axes.set_xticks(range(len(cells)))
    letters = [
        "".join(tie_letter(g) for g, group in enumerate(groups) if cell.model in group)
        for cell in cells
    ]
    axes.set_xticklabels(letters, fontsize=8, color=FAINT)
    for x, cell in enumerate(cells):
        if math.isnan(cell.mean):
            axes.text(x, low_end + 0.06, "no rating", rotation=90, ha="center", va="bottom",
                      fontsize=7, color=FAINT)  # fmt: skip
            continue
        axes.bar(
            x, cell.mean - low_end, bottom=low_end, width=0.74, color=series_colour(x), alpha=0.88
        )
        top = cell.mean
        if not math.isnan(cell.ci_low):
            axes.plot([x, x], [cell.ci_low, cell.ci_high], color=INK, linewidth=1.3)
            top = cell.ci_high
        axes.text(
            x, top + 0.06, f"{cell.mean:.2f}", ha="center", va="bottom", fontsize=8, color=INK
        )
