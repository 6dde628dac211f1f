"""Charts of a run: training curves and held-out differences, drawn without matplotlib's state.

``pyplot``, ``use`` and ``rcParams`` are left alone: a figure is an object with its own canvas, so a
notebook that imports this module keeps its settings.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from longtake.runtime.errors import RunDirectoryError
from longtake.runtime.files import replacing

Record = Mapping[str, Any]
Series = NDArray[np.float64]

_INK, _FAINT, _GRID = "#1c1e21", "#6e737a", "#e4e6e9"
_LINES = ("#2a6fb0", "#c4602a", "#4b8b3b", "#8a5aa8", "#9a7b1f", "#3a8f8f")
_RISE, _FALL = "#147040", "#be2828"
_COLUMNS = 4
_DPI = 130
_MAX_WINDOW = 10
_OTHERS = (
    ("kl", "KL to the reference"),
    ("grad_norm", "gradient norm"),
    ("hacking/saturation", "probe: saturation"),
    ("hacking/luminance", "probe: luminance"),
    ("hacking/frame_difference", "probe: frame difference"),
)


def write_curves(records: Sequence[Record], path: Path, title: str) -> Path:
    """Small multiples of ``metrics.jsonl``: rewards, KL, gradient norm, pixel probes, unscored.

    Thin lines are the values, bold lines their moving mean (the window is in the caption). A
    resumed run may log an update twice: the later record counts. Missing values leave gaps.

    Args:
        records: lines of metrics.jsonl, each with ``update``; may be empty.
        path: of the png.
        title: heading.

    Raises:
        RunDirectoryError: the picture cannot be written.
    """
    kept = list({int(r["update"]): r for r in records if r.get("update") is not None}.values())
    kept.sort(key=lambda r: int(r["update"]))
    updates = np.array([int(r["update"]) for r in kept], dtype=np.float64)
    window = max(1, min(_MAX_WINDOW, len(kept) // 4))
    panels = _panels(kept, updates, window)
    if not panels:
        panels = [lambda axes: _nothing(axes, "no finished update")]
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    head, foot, width, height = 0.62, 0.5, max(3.2 * columns, 6.0), 2.35 * rows
    figure = Figure(figsize=(width, height + head + foot), dpi=_DPI, facecolor="white")
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.62 / width,
        right=1 - 0.2 / width,
        top=1 - (head + 0.3) / (height + head + foot),
        bottom=(foot + 0.1) / (height + head + foot),
        wspace=0.3,
        hspace=0.48,
    )
    for index, draw in enumerate(panels):
        draw(figure.add_subplot(grid[index // columns, index % columns]))
    _caption(figure, title, _note(window, len(kept)))
    return _save(figure, path)


def write_held_out(summary: Mapping[str, Any], path: Path) -> Path:
    """Held-out differences after - before: a dot and its interval for each metric and reward.

    Args:
        summary: summary.json; its ``held_out`` and ``rewards`` are drawn.
        path: of the png.

    Raises:
        RunDirectoryError: the picture cannot be written.
    """
    rows: list[tuple[str, Mapping[str, Any] | None]] = []
    for key, heading in (("held_out", "held-out metrics"), ("rewards", "training rewards")):
        group = summary.get(key) or {}
        if group:
            rows += [(heading, None), *group.items()]
    width, height = 8.0, 0.36 * max(len(rows), 2) + 1.25
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    left, right = 1.75 / width, 2.5 / width
    bottom, top = 0.55 / height, 0.55 / height
    axes = figure.add_axes((left, bottom, 1 - left - right, 1 - bottom - top))
    _bare(axes)
    if not rows:
        _nothing(axes, "no held-out comparison")
    for y, (name, cell) in enumerate(rows):
        _difference(axes, y, name, cell)
    axes.axvline(0, color=_INK, linewidth=1, zorder=1)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_yticks([])
    axes.margins(x=0.12)
    bounds = [interval(cell) for _, cell in rows if cell is not None]
    confidence = next((found[2] for found in bounds if found is not None), 95.0)
    figure.text(
        0.2 / width,
        1 - 0.3 / height,
        "Held-out change, after - before",
        fontsize=11,
        fontweight="bold",
        color=_INK,
        va="center",
    )
    axes.set_xlabel(
        f"mean difference with its {confidence:g} % interval, clustered by prompt",
        fontsize=8,
        color=_FAINT,
    )
    return _save(figure, path)


def interval(cell: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """(low, high, confidence in percent) of a cell of summary.json with a key such as ``ci95``."""
    for key, value in cell.items():
        if key.startswith("ci") and value is not None and None not in value:
            return float(value[0]), float(value[1]), float(key[2:])
    return None


def _panels(
    records: Sequence[Record], updates: Series, window: int
) -> list[Callable[[Axes], None]]:
    keys = list(dict.fromkeys(key for record in records for key in record))
    rewards = [key.split("/")[1] for key in keys if key.startswith("rewards/")]
    names = list(dict.fromkeys(rewards))
    # Keys of single lines: every reward, their weighted sum, then the others in a fixed order.
    single = [(f"rewards/{name}/mean", f"reward: {name.replace('_', ' ')}") for name in names]
    if "reward" in keys:
        single.append(("reward", "weighted sum of rewards"))
    single += [(key, label) for key, label in _OTHERS if key in keys]
    panels: list[Callable[[Axes], None]] = [
        lambda axes, key=key, label=label: _line(  # type: ignore[misc]
            axes, updates, series(records, key), window, label
        )
        for key, label in single
    ]
    for prefix, label in (
        ("advantages/max_group_std/", "largest group std"),
        ("unscored/", "unscored samples"),
    ):
        table = {key[len(prefix) :]: series(records, key) for key in keys if key.startswith(prefix)}
        if table:
            panels.append(
                lambda axes, table=table, label=label: _lines(  # type: ignore[misc]
                    axes, updates, table, label
                )
            )
    return panels


def series(records: Sequence[Record], key: str) -> Series:
    """Values of a key as float64 [n], NaN where it is missing, None or infinite."""
    values = [record.get(key) for record in records]
    numbers = [math.nan if v is None else float(v) for v in values]
    return np.array([v if math.isfinite(v) else math.nan for v in numbers], dtype=np.float64)


def smooth(values: Series, window: int) -> Series:
    """Mean of the finite values among the last ``window`` of them; NaN where there are none."""
    finite = np.isfinite(values)
    total = np.cumsum(np.where(finite, values, 0.0))
    count = np.cumsum(finite)
    total[window:] = total[window:] - total[:-window]
    count[window:] = count[window:] - count[:-window]
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _line(axes: Axes, x: Series, y: Series, window: int, label: str) -> None:
    _bare(axes)
    axes.set_title(label, loc="left", fontsize=9, color=_INK)
    finite = np.isfinite(y)
    if not finite.any():
        _nothing(axes, "no value")
        return
    colour = _LINES[0]
    isolated = finite.sum() == 1
    axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.45, marker="o", markersize=4 * isolated)
    if window > 1:
        smoothed = smooth(y, window)
        axes.plot(x, smoothed, color=colour, linewidth=2)
        ends = smoothed[np.isfinite(smoothed)]
    else:
        ends = y[finite]
    axes.set_title(f"{ends[-1]:.3g}", loc="right", fontsize=9, color=colour)
    _ticks(axes, x)


def _lines(axes: Axes, x: Series, table: Mapping[str, Series], label: str) -> None:
    """Several rewards in one panel, named in a legend."""
    _bare(axes)
    axes.set_title(label, loc="left", fontsize=9, color=_INK)
    for index, (name, y) in enumerate(table.items()):
        marker = "o" if np.isfinite(y).sum() == 1 else ""
        axes.plot(
            x,
            y,
            color=_LINES[index % len(_LINES)],
            linewidth=1.2,
            marker=marker,
            markersize=4,
            label=name.replace("_", " "),
        )
    if not any(np.isfinite(y).any() for y in table.values()):
        _nothing(axes, "no value")
        return
    _ticks(axes, x)
    if all(np.nan_to_num(y).max() == 0 for y in table.values()):
        axes.set_ylim(-0.04, 1)
        axes.set_yticks([0, 1])
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.55 * (high - low))  # room for the legend above the lines
    axes.legend(
        loc="upper left", fontsize=6.5, ncols=2, frameon=False, labelcolor=_INK, borderpad=0.1
    )


def _difference(axes: Axes, y: int, name: str, cell: Mapping[str, Any] | None) -> None:
    """One row of the held-out chart; ``cell`` is None for a heading."""
    side = axes.get_yaxis_transform()
    if cell is None:
        axes.text(-0.03, y, name, transform=side, ha="right", va="center", fontsize=8, color=_FAINT)
        return
    bounds, diff = interval(cell), cell.get("diff")
    bold = "bold" if name.endswith("_mean") else "normal"
    axes.text(
        -0.03,
        y,
        name.replace("_", " "),
        transform=side,
        ha="right",
        va="center",
        fontsize=9,
        fontweight=bold,
        color=_INK,
    )
    colour = _FAINT
    text = f"no complete pair, {cell.get('dropped', 0)} dropped"
    if diff is not None and bounds is not None:
        low, high, _ = bounds
        colour = _RISE if low > 0 else _FALL if high < 0 else _FAINT
        axes.plot([low, high], [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot([diff], [y], color=colour, marker="o", markersize=7)
        text = f"{diff:+.3f}  [{low:+.3f}, {high:+.3f}]  n={cell.get('n')}"
    axes.text(1.03, y, text, transform=side, ha="left", va="center", fontsize=8, color=colour)


def _bare(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)
    axes.tick_params(colors=_FAINT, labelsize=7.5, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _ticks(axes: Axes, x: Series) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
    axes.yaxis.get_offset_text().set(fontsize=7, color=_FAINT)
    if len(x) == 1:
        axes.set_xlim(x[0] - 1, x[0] + 1)


def _nothing(axes: Axes, text: str) -> None:
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, color=_FAINT
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(_GRID)


def _note(window: int, count: int) -> str:
    if count == 0:
        return "metrics.jsonl holds no record."
    if window == 1:
        return f"x: update. {count} finished, too few to smooth. Top right: last value."
    return (
        f"x: update. Thin: value. Bold: mean of the last {window} updates. "
        "Top right: last smoothed value."
    )


def _caption(figure: Figure, title: str, note: str) -> None:
    width, height = figure.get_size_inches()
    x = 0.2 / width
    figure.text(
        x, 1 - 0.33 / height, title, fontsize=12, fontweight="bold", color=_INK, va="center"
    )
    figure.text(x, 0.2 / height, note, fontsize=8, color=_FAINT, va="center")


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)  # the canvas makes itself known to the figure
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI, facecolor="white")
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write {path.name}: {error.strerror or error}",
            received=str(path),
            expected="a writable folder with free space",
            remedy="free some space or choose another --output-dir",
        ) from error
    return path
