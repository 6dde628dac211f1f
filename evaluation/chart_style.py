"""The look of the evaluation's figures, drawn without matplotlib's global state.

Figures are objects with their own canvas, so a notebook that imports this keeps its settings.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from longtake.runtime.errors import UserError
from longtake.runtime.files import replacing

INK, FAINT, GRID = "#1c1e21", "#6e737a", "#e4e6e9"
"""Colours of texts, of what is secondary, and of lines in the background."""
DPI = 140
_SERIES = (
    "#2a6fb0",
    "#c4602a",
    "#4b8b3b",
    "#8a5aa8",
    "#9a7b1f",
    "#3a8f8f",
    "#b04a6b",
    "#5b6770",
    "#7fb2e5",
    "#e5a37f",
    "#9ccf8f",
    "#c7a5dc",
)


def series_colour(index: int) -> str:
    """Colour of the model with this number."""
    return _SERIES[index % len(_SERIES)]


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, inches."""
    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def bare_axes(axes: Axes) -> None:
    """Horizontal lines only, no frame."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def swatch(figure: Figure, x: float, y: float, colour: str, text: str) -> None:
    """An entry of a legend; x and y in shares of the figure."""
    width = figure.get_size_inches()[0]
    figure.text(x, y, "■", fontsize=10, color=colour, va="center")
    figure.text(x + 0.17 / width, y, text, fontsize=8.5, color=INK, va="center")


def headings(figure: Figure, title: str, note: str) -> None:
    """Title on top, note at the foot."""
    width, height = figure.get_size_inches()
    x = 0.15 / width
    figure.text(x, 1 - 0.33 / height, title, fontsize=12, fontweight="bold", color=INK, va="center")
    figure.text(x, 0.2 / height, note, fontsize=7.5, color=FAINT, va="center")


def save_png(figure: Figure, path: Path) -> Path:
    """Write the picture, atomically.

    Raises:
        UserError: it cannot be written.
    """
    FigureCanvasAgg(figure)  # the canvas makes itself known to the figure
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, facecolor="white")
    except OSError as error:
        raise UserError(
            f"cannot write {path.name}: {error.strerror or error}",
            received=str(path),
            expected="a writable folder with free space",
        ) from error
    return path
