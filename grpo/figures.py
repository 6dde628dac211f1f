"""Figures of a run: training curves, held-out differences, groups of clips, before against after.

``pyplot``, ``use`` and ``rcParams`` are left alone: a figure is an object with its own canvas, so a
notebook that imports this module keeps its settings.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from longtake.core.video import to_uint8, write_mp4
from longtake.runtime.files import explained, replacing

Record = Mapping[str, Any]
Scores = Mapping[str, float | None]
Series = NDArray[np.float64]

_INK, _FAINT, _GRID, _RISE, _FALL = "#1c1e21", "#6e737a", "#e4e6e9", "#147040", "#be2828"
_LINES = ("#2a6fb0", "#c4602a", "#4b8b3b", "#8a5aa8", "#9a7b1f", "#3a8f8f")
_DPI = 120
_COLUMNS = 4
_MAX_WINDOW = 10
_OTHERS = (
    ("kl", "KL to the reference"),
    ("grad_norm", "gradient norm"),
    ("hacking/saturation", "probe: saturation"),
    ("hacking/luminance", "probe: luminance"),
    ("hacking/frame_difference", "probe: frame difference"),
)
_CLIP_INCHES = 1.6
_LINE = 9  # points from line to line of the scores
_MAX_PAIRS = 8
_STILLS = 6


def write_curves(records: Sequence[Record], path: Path, title: str) -> Path:
    """Small multiples of ``metrics.jsonl``: rewards, KL, gradient norm, pixel probes, unscored.

    Thin lines are the values, bold lines their moving mean. A resumed run may log an update twice:
    the later record counts. Missing values leave gaps.
    """
    by_update = {int(r["update"]): r for r in records if r.get("update") is not None}
    rows = [by_update[update] for update in sorted(by_update)]
    x = np.array(sorted(by_update), dtype=np.float64)
    window = max(1, min(_MAX_WINDOW, len(rows) // 4))
    panels = _panels(rows) or {"no finished update": {}}
    columns = min(_COLUMNS, len(panels))
    size = (max(3.2 * columns, 6.0), 2.35 * math.ceil(len(panels) / columns) + 0.7)
    figure = Figure(size, dpi=_DPI, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
    note = f"{len(rows)} finished, too few to smooth. Top right: last value."
    if window > 1:
        note = f"Bold: mean of the last {window} updates. Top right: last smoothed value."
    figure.supxlabel(f"x: update. {note}", x=0.01, ha="left", fontsize=8, color=_FAINT)
    grid = figure.add_gridspec(math.ceil(len(panels) / columns), columns)
    for index, (label, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        _bare(axes)
        axes.set_title(label, loc="left", fontsize=9, color=_INK)
        _draw_lines(axes, x, lines, window)
    return _save(figure, path)


def _panels(records: Sequence[Record]) -> dict[str, dict[str, Series]]:
    """Title of each panel -> its lines by name; a panel of one line has no names."""
    keys = list(dict.fromkeys(key for record in records for key in record))
    names = list(dict.fromkeys(k.split("/")[1] for k in keys if k.startswith("rewards/")))
    single = {f"reward: {n.replace('_', ' ')}": f"rewards/{n}/mean" for n in names}
    if "reward" in keys:
        single["weighted sum of rewards"] = "reward"
    single |= {label: key for key, label in _OTHERS if key in keys}
    panels = {label: {"": series(records, key)} for label, key in single.items()}
    for prefix, label in (
        ("advantages/max_group_std/", "largest group std"),
        ("unscored/", "unscored samples"),
    ):
        lines = {k.removeprefix(prefix): series(records, k) for k in keys if k.startswith(prefix)}
        if lines:
            panels[label] = lines
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


def _draw_lines(axes: Axes, x: Series, lines: Mapping[str, Series], window: int) -> None:
    if not any(np.isfinite(y).any() for y in lines.values()):
        _nothing(axes, "no value")
        return
    for colour, (name, y) in zip(_LINES * len(lines), lines.items(), strict=False):
        marker = "o" if np.isfinite(y).sum() == 1 else ""  # a line of one point shows nothing
        if name:
            label = name.replace("_", " ")
            axes.plot(x, y, color=colour, linewidth=1.2, marker=marker, label=label)
            continue
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.45, marker=marker)
        ends = y if window == 1 else smooth(y, window)
        if window > 1:
            axes.plot(x, ends, color=colour, linewidth=2)
        last = ends[np.isfinite(ends)][-1]
        axes.set_title(f"{last:.3g}", loc="right", fontsize=9, color=colour)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
    axes.yaxis.get_offset_text().set(fontsize=7, color=_FAINT)
    if "" not in lines:
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.55 * (high - low))  # room for the legend above the lines
        axes.legend(loc="upper left", fontsize=6.5, ncols=2, frameon=False, labelcolor=_INK)


def write_held_out(summary: Mapping[str, Any], path: Path) -> Path:
    """Held-out differences after - before of summary.json: a dot and its interval for each row."""
    groups = (("held_out", "held-out metrics"), ("rewards", "training rewards"))
    rows: list[tuple[str, Mapping[str, Any] | None]] = []
    for key, heading in groups:
        if summary.get(key):
            rows += [(heading, None), *summary[key].items()]
    figure = Figure((8.0, 0.36 * max(len(rows), 2) + 1.25), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    _bare(axes)
    if not rows:
        _nothing(axes, "no held-out comparison")
    for y, (_, cell) in enumerate(rows):
        _draw_difference(axes, y, cell)
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name, _ in rows])
    for label, (name, cell) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set(color=_FAINT if cell is None else _INK, size=8 if cell is None else 9)
        label.set_fontweight("bold" if name.endswith("_mean") else "normal")
    axes.axvline(0, color=_INK, linewidth=1, zorder=1)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.margins(x=0.12)
    confidence = next((b[2] for _, cell in rows if cell and (b := interval(cell))), 95.0)
    note = f"mean difference with its {confidence:g} % interval, clustered by prompt"
    axes.set_xlabel(note, fontsize=8, color=_FAINT)
    title = "Held-out change, after - before"
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold", color=_INK)
    return _save(figure, path)


def interval(cell: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """(low, high, confidence in percent) of a cell of summary.json with a key such as ``ci95``."""
    for key, value in cell.items():
        if key.startswith("ci") and value is not None and None not in value:
            return float(value[0]), float(value[1]), float(key[2:])
    return None


def _draw_difference(axes: Axes, y: int, cell: Mapping[str, Any] | None) -> None:
    if cell is None:  # a heading
        return
    bounds, diff, colour = interval(cell), cell.get("diff"), _FAINT
    text = f"no complete pair, {cell.get('dropped', 0)} dropped"
    if diff is not None and bounds is not None:
        low, high, _ = bounds
        colour = _RISE if low > 0 else _FALL if high < 0 else _FAINT
        axes.plot([low, high], [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot([diff], [y], color=colour, marker="o", markersize=7)
        text = f"{diff:+.3f}  [{low:+.3f}, {high:+.3f}]  n={cell.get('n')}"
    side = axes.get_yaxis_transform()
    axes.text(1.03, y, text, transform=side, va="center", fontsize=8, color=colour)


def write_groups(
    path: Path,
    prompts: Sequence[str],
    videos: Tensor,
    scores: Tensor,
    names: Sequence[str],
    fps: float,
    title: str = "",
) -> Path:
    """Write groups as one mp4, a row per prompt and a column per member.

    One look shows what the rewards prefer: the best score of each within a group is dark. Clips
    [P, G, T, 3, H, W] are uint8 or float in [0, 1], scores [K, P, G] NaN where unscored.
    """
    num_groups, size = videos.shape[:2]
    height = _clip_height(videos) + _LINE * (len(names) + 2) / 72 + 0.3
    figure = Figure((size * _CLIP_INCHES, num_groups * height + 0.3), _DPI, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=8, color=_FAINT)
    images = []
    for p, part in enumerate(figure.subfigures(num_groups, 1, squeeze=False)[:, 0]):
        _write_prompt(part, prompts[p], size * _CLIP_INCHES)
        for g, axes in enumerate(part.subplots(1, size, squeeze=False)[0]):
            images.append(_show(axes, videos[p, g, 0]))
            _write_scores(axes, names, scores[:, p], g)
    return write_mp4(_animate(figure, images, videos.flatten(0, 1)), path, fps)


def write_before_after(
    folder: Path,
    before: Tensor,
    after: Tensor,
    prompts: Sequence[str],
    scores_before: Sequence[Scores],
    scores_after: Sequence[Scores],
    fps: float,
) -> None:
    """Write pairs of clips with their scores, as a picture and as a video.

    ``before_after.png`` has frames before above those after, ``before_after.mp4`` the clips side by
    side. Clips [N, T, 3, H, W] are of the same samples; the first 8 are shown; None = unscored.
    """
    count, num_frames = min(len(before), _MAX_PAIRS), before.shape[1]
    pick = torch.linspace(0, num_frames - 1, min(_STILLS, num_frames)).round().long()
    for still in (True, False):
        rows, columns = (2, 1) if still else (1, 2)
        width = 0.5 + (len(pick) if still else 2) * _CLIP_INCHES * (0.7 if still else 1.0)
        scale = 0.7 * 2 if still else 1.0
        height = scale * _clip_height(before) + 0.9
        shape = (math.ceil(count / 2), min(2, count))
        size = (shape[1] * width, shape[0] * height)
        figure = Figure(size, _DPI, layout="constrained")
        images = []
        parts = np.array(figure.subfigures(*shape, squeeze=False)).flatten()
        for i, part in enumerate(parts[:count]):
            _write_prompt(part, prompts[i], width)
            grid = part.subplots(rows, columns, squeeze=False).flatten()
            for axes, label, clips in zip(grid, ("before", "after"), (before, after), strict=True):
                # A strip of frames side by side, or the first frame of what will move.
                frames = clips[i, pick] if still else clips[i, :1]
                edged = F.pad(to_uint8(frames), (0, 2), value=255)
                images.append(_show(axes, torch.cat(list(edged if still else frames), dim=-1)))
                axes.set_ylabel(label, fontsize=7, color=_FAINT)
            _write_changes(part, scores_before[i], scores_after[i])
        if still:
            _save(figure, folder / "before_after.png")
        else:
            pairs = torch.stack((before[:count], after[:count]), dim=1).flatten(0, 1)
            write_mp4(_animate(figure, images, pairs), folder / "before_after.mp4", fps)


def _clip_height(videos: Tensor) -> float:
    """Inches of a clip [..., H, W] that is drawn at the common width."""
    return float(_CLIP_INCHES * videos.shape[-2] / videos.shape[-1])


def _write_prompt(part: SubFigure, prompt: str, inches: float) -> None:
    lines = textwrap.wrap(prompt, max(20, int(13 * inches)), max_lines=2, placeholder=" ...")
    part.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=8, fontweight="bold", color=_INK)


def _write_scores(axes: Axes, names: Sequence[str], scores_KG: Tensor, member: int) -> None:
    """Under a clip: one line per reward, its name on the left and the score on the right."""
    axes.set_xlabel("\n" * len(names), fontsize=6)  # keeps the room
    best_K = scores_KG.nan_to_num(-math.inf).amax(1)
    for k, name in enumerate(names):
        value = float(scores_KG[k, member])
        ink = _FALL if math.isnan(value) else _INK if value == best_K[k] else _FAINT
        score = "unscored" if math.isnan(value) else f"{value:.3f}"
        for x, side, text, colour in (
            (0, "left", name.replace("_", " "), _FAINT),
            (1, "right", score, ink),
        ):
            axes.annotate(
                text,
                (x, 0),
                xycoords="axes fraction",
                xytext=(0, -_LINE * (k + 1)),
                textcoords="offset points",
                ha=side,
                fontsize=6,
                color=colour,
            )


def _write_changes(part: SubFigure, before: Scores, after: Scores) -> None:
    """Under a pair: each score before and after, coloured by its change."""
    for n, (name, first) in enumerate(before.items()):
        second, ink, text = after.get(name), _FAINT, "unscored"
        if first is not None and second is not None:
            change = round(second, 2) - round(first, 2)
            ink = _RISE if change > 0.005 else _FALL if change < -0.005 else _FAINT
            text = f"{first:.2f} → {second:.2f}  {change:+.2f}"
        label = f"{name.replace('_', ' ')}\n{text}"
        part.text(0.01 + n / len(before), 0.01, label, fontsize=6, color=ink, va="bottom")
    part.supxlabel(" \n ", fontsize=6)  # keeps the room for two lines


def _show(axes: Axes, frame: Tensor) -> AxesImage:
    """Draw pixels [3, H, W] without axes."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_anchor("N")
    return axes.imshow(_pixels(frame))


def _pixels(video: Tensor) -> NDArray[np.uint8]:
    """[..., 3, H, W] as uint8 [..., H, W, 3]."""
    pixels: NDArray[np.uint8] = to_uint8(video).cpu().movedim(-3, -1).contiguous().numpy()
    return pixels


def _animate(figure: Figure, images: Sequence[AxesImage], videos: Tensor) -> Tensor:
    """uint8 [T, 3, height, width] of a figure whose images play clips [N, T, 3, H, W]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    page = torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1)
    pages = page[None].repeat(videos.shape[1], 1, 1, 1)
    for image, clip in zip(images, videos, strict=True):
        # Texts and layout are drawn once, the clips pasted: drawing each frame takes minutes.
        (left, low), (right, high) = image.get_window_extent().get_points().round().astype(int)
        size, top = (high - low, right - left), pages.shape[2] - high
        mode = "nearest-exact" if clip.shape[-1] < size[1] else "area"
        for t in range(videos.shape[1]):
            frame = F.interpolate(to_uint8(clip[t : t + 1]).float(), size, mode=mode)
            pages[t, :, top : top + size[0], left:right] = frame[0].round()
    return pages[..., : page.shape[1] // 2 * 2, : page.shape[2] // 2 * 2]  # H.264: even sides


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=_FAINT, labelsize=7.5, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", fontsize=9, color=_FAINT)
    axes.set_xticks([])
    axes.set_yticks([])


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)  # the canvas makes itself known to the figure
    with explained(f"write {path.name}", path), replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
    return path
