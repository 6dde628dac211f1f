"""Figures of the evaluation: MOS by dimension (report Figures 14, 16) and GSB (Figure 15).

The report's bars have no intervals; these have. Figures are objects with their own canvas, so a
notebook that imports this module keeps its matplotlib settings.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from longtake.evaluation.dimensions import SCALE, title_of
from longtake.evaluation.gsb import GsbCount, GsbResult
from longtake.evaluation.model_comparison import ModelMean
from longtake.evaluation.mos import MosResult
from longtake.evaluation.mos_tables import tie_letter
from longtake.runtime.errors import UserError
from longtake.runtime.replacing import replacing

_INK, _FAINT, _GRID = "#1c1e21", "#6e737a", "#e4e6e9"
_BARS = ("#2a6fb0", "#c4602a", "#4b8b3b", "#8a5aa8", "#9a7b1f", "#3a8f8f", "#b04a6b", "#5b6770")
_GOOD, _SAME, _BAD = "#2a6fb0", "#d5d9de", "#c4602a"
_DPI = 140


def write_mos_figure(result: MosResult, path: Path, title: str = "MOS") -> Path:
    """One panel for each dimension, one bar for each model, with intervals.

    The axis spans the whole scale, so that the height of a bar is the score. Letters under the
    models name the groups of ties: models with a common letter were not told apart.

    Raises:
        UserError: the picture cannot be written.
    """
    dimensions = [d for d in result.settings.dimensions if result.comparison.tie_groups[d]]
    models = result.models
    width = max(1.1 + len(dimensions) * (0.5 + 0.52 * len(models)), 6.4)
    rows = _legend_rows(models, width)
    height = 3.5 + 0.22 * rows
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    grid = figure.add_gridspec(
        1,
        len(dimensions),
        left=0.6 / width,
        right=1 - 0.15 / width,
        bottom=(0.82 + 0.22 * rows) / height,
        top=1 - 0.72 / height,
        wspace=0.12,
    )
    for column, dimension in enumerate(dimensions):
        axes = figure.add_subplot(grid[0, column])
        cells = [result.comparison.mean_of(dimension, model) for model in models]
        _mos_panel(axes, cells, result.comparison.tie_groups[dimension])
        axes.set_title(title_of(dimension), fontsize=9.5, color=_INK, pad=8)
        if column:
            axes.tick_params(labelleft=False)
    for index, model in enumerate(models):
        per_row = -(-len(models) // rows)
        x = 0.6 / width + (index % per_row) * (1 - 0.75 / width) / per_row
        y = (0.5 + 0.22 * (rows - 1 - index // per_row)) / height
        figure.text(x, y, "■", fontsize=10, color=_colour(index), va="center")
        figure.text(x + 0.17 / width, y, model, fontsize=8.5, color=_INK, va="center")
    confidence = 100 * result.settings.comparison.confidence
    sizes = sorted({c.n_samples for c in result.comparison.means if c.n_samples})
    note = (
        f"Bars: mean of {'-'.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} videos with its "
        f"{confidence:g} % interval (prompts drawn). Common letter: not told apart."
    )
    _headings(figure, title, note)
    return _save(figure, path)


def _legend_rows(models: Sequence[str], width: float) -> int:
    longest = max(len(model) for model in models)
    fitting = max(int((width - 0.75) / (0.35 + 0.078 * longest)), 1)
    return -(-len(models) // fitting)


def _mos_panel(axes: Axes, cells: Sequence[ModelMean], groups: Sequence[Sequence[str]]) -> None:
    low_end, high_end = SCALE
    _bare(axes)
    axes.set_ylim(low_end, high_end)
    axes.set_yticks(range(low_end, high_end + 1))
    axes.set_xlim(-0.6, len(cells) - 0.4)
    axes.set_xticks(range(len(cells)))
    letters = [
        "".join(tie_letter(g) for g, group in enumerate(groups) if cell.model in group)
        for cell in cells
    ]
    axes.set_xticklabels(letters, fontsize=8, color=_FAINT)
    for x, cell in enumerate(cells):
        if math.isnan(cell.mean):
            axes.text(x, low_end + 0.06, "no rating", rotation=90, ha="center", va="bottom",
                      fontsize=7, color=_FAINT)  # fmt: skip
            continue
        axes.bar(x, cell.mean - low_end, bottom=low_end, width=0.74, color=_colour(x), alpha=0.88)
        top = cell.mean
        if not math.isnan(cell.ci_low):
            axes.plot([x, x], [cell.ci_low, cell.ci_high], color=_INK, linewidth=1.3)
            top = cell.ci_high
        axes.text(
            x, top + 0.06, f"{cell.mean:.2f}", ha="center", va="bottom", fontsize=8, color=_INK
        )


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
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    left, right = 1.5 / width, 2.75 / width
    axes = figure.add_axes((left, 0.55 / height, 1 - left - right, 1 - 1.15 / height))
    axes.axis("off")
    axes.set_xlim(0, 1)
    y = 0.0
    side = axes.get_yaxis_transform()
    for (reference, rival), block in blocks.items():
        axes.text(
            0, y, f"{reference}  vs  {rival}", fontsize=9.5, fontweight="bold", color=_INK,
            va="center",
        )  # fmt: skip
        y += 0.95
        for item in block:
            _gsb_line(axes, y, item)
            axes.text(-0.02, y, title_of(item.dimension), transform=side, ha="right", va="center",
                      fontsize=8.5, color=_INK)  # fmt: skip
            y += 1.0
        y += 0.3
    axes.set_ylim(y - 0.6, -0.6)
    _gsb_legend(figure, width, height, left)
    note = (
        f"Right: net (G-B)/(G+S+B) with its {100 * result.settings.confidence:g} % interval "
        "(prompts drawn). Grey: not told apart after Holm's correction."
    )
    _headings(figure, title, note)
    return _save(figure, path)


def _gsb_line(axes: Axes, y: float, item: GsbCount) -> None:
    total = item.good + item.same + item.bad
    start = 0.0
    for count, colour, ink in (
        (item.good, _GOOD, "white"),
        (item.same, _SAME, _INK),
        (item.bad, _BAD, "white"),
    ):
        share = count / total
        axes.barh(y, share, left=start, height=0.72, color=colour)
        if share > 0.05:
            axes.text(start + share / 2, y, str(count), ha="center", va="center", fontsize=8,
                      color=ink)  # fmt: skip
        start += share
    colour = _FAINT
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
        figure.text(x, y, "■", fontsize=10, color=colour, va="center")
        figure.text(x + 0.17 / width, y, text, fontsize=8.5, color=_INK, va="center")


def _colour(index: int) -> str:
    return _BARS[index % len(_BARS)]


def _bare(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(colors=_FAINT, labelsize=8, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _headings(figure: Figure, title: str, note: str) -> None:
    width, height = figure.get_size_inches()
    x = 0.15 / width
    figure.text(
        x, 1 - 0.33 / height, title, fontsize=12, fontweight="bold", color=_INK, va="center"
    )
    figure.text(x, 0.2 / height, note, fontsize=7.5, color=_FAINT, va="center")


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)  # the canvas makes itself known to the figure
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI, facecolor="white")
    except OSError as error:
        raise UserError(
            f"cannot write {path.name}: {error.strerror or error}",
            received=str(path),
            expected="a writable folder with free space",
        ) from error
    return path
