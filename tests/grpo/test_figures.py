"""Figures: what the curves and charts draw, and clips in their grids with their scores."""

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from longtake.core.video import read_video
from longtake.grpo import figures as module
from longtake.grpo.figures import (
    interval,
    series,
    smooth,
    write_before_after,
    write_curves,
    write_groups,
    write_held_out,
)
from longtake.runtime.errors import RunDirectoryError, UserError


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that are saved during a test."""
    seen: list[Figure] = []
    save = module._save

    def spy(figure: Figure, path: Path) -> Path:
        seen.append(figure)
        return save(figure, path)

    monkeypatch.setattr(module, "_save", spy)
    return seen


def record(update: int, **values: float | None) -> dict[str, Any]:
    return {
        "update": update,
        "reward": 1.0 + update,
        "rewards/general/mean": 0.5 + 0.01 * update,
        "rewards/general/std": 0.1,
        "rewards/text_alignment/mean": None if update == 2 else 0.4,
        "advantages/max_group_std/general": 0.2,
        "kl": None if update == 0 else 1e-4 * update,
        "grad_norm": 0.3,
        "learning_rate": 1e-3,
        "hacking/saturation": 0.3,
        "hacking/luminance": 0.4,
        "hacking/frame_difference": 0.02,
        "unscored/general": 0,
        **values,
    }


def panel(figure: Figure, title: str) -> Axes:
    found = [axes for axes in figure.axes if axes.get_title(loc="left") == title]
    assert len(found) == 1, [axes.get_title(loc="left") for axes in figure.axes]
    return found[0]


def texts(figure: Figure) -> str:
    """Every word of a figure."""
    parts = [figure, *figure.subfigs]
    found = [t for part in parts for t in part.texts]
    for axes in figure.axes:
        found += [*axes.texts, *axes.get_yticklabels(), axes.title, axes._left_title]
    return " ".join(t.get_text() for t in found)


def test_one_panel_for_each_quantity(tmp_path: Path, figures: list[Figure]) -> None:
    path = write_curves([record(u) for u in range(40)], tmp_path / "curves.png", "A title")
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 1000
    titles = {axes.get_title(loc="left") for axes in figures[0].axes}
    assert titles == {
        "reward: general",
        "reward: text alignment",
        "weighted sum of rewards",
        "KL to the reference",
        "gradient norm",
        "probe: saturation",
        "probe: luminance",
        "probe: frame difference",
        "largest group std",
        "unscored samples",
    }
    thin, bold = panel(figures[0], "reward: general").lines
    assert np.allclose(thin.get_ydata(), 0.5 + 0.01 * np.arange(40))
    assert np.allclose(np.asarray(bold.get_ydata())[-1], 0.5 + 0.01 * np.arange(30, 40).mean())
    assert thin.get_linewidth() < bold.get_linewidth()
    assert "A title" in texts(figures[0]) and "mean of the last 10 updates" in texts(figures[0])


def test_missing_values_leave_gaps(tmp_path: Path, figures: list[Figure]) -> None:
    records = [record(u) for u in range(5)]
    del records[3]["grad_norm"]
    records[4]["hacking/saturation"] = math.inf
    write_curves(records, tmp_path / "c.png", "t")
    shown = panel(figures[0], "gradient norm").lines[0].get_ydata()
    assert np.isnan(np.asarray(shown)).tolist() == [False, False, False, True, False]
    assert np.isnan(np.asarray(panel(figures[0], "KL to the reference").lines[0].get_ydata()))[0]
    assert np.isnan(np.asarray(panel(figures[0], "probe: saturation").lines[0].get_ydata()))[4]


def test_a_resumed_run_shows_each_update_once(tmp_path: Path, figures: list[Figure]) -> None:
    records = [*(record(u) for u in range(6)), record(4, grad_norm=9.0), record(3, grad_norm=8.0)]
    write_curves(records, tmp_path / "c.png", "t")
    line = panel(figures[0], "gradient norm").lines[0]
    assert list(line.get_xdata()) == [0, 1, 2, 3, 4, 5]
    assert list(line.get_ydata()) == [0.3, 0.3, 0.3, 8.0, 9.0, 0.3]


@pytest.mark.parametrize(
    ("records", "word"),
    [
        ([], "no finished update"),
        ([record(0)], "1 finished"),
        ([{"update": 3}], "no finished update"),
        ([{"update": 0, "kl": None}], "no value"),
    ],
)
def test_short_runs_are_drawn(
    tmp_path: Path, figures: list[Figure], records: list[dict[str, Any]], word: str
) -> None:
    assert write_curves(records, tmp_path / "c.png", "t").stat().st_size > 1000
    assert word in texts(figures[0])


def test_smoothing_is_a_trailing_mean_of_finite_values() -> None:
    values = np.array([1.0, math.nan, 3.0, 5.0, math.nan, math.nan, math.nan])
    expected = [1.0, 1.0, 2.0, 4.0, 4.0, 5.0, math.nan]
    assert np.array_equal(smooth(values, 3), expected, equal_nan=True)
    assert np.array_equal(smooth(values, 1), values, equal_nan=True)
    kept = series([{"a": 1}, {"a": None}, {}, {"a": -math.inf}], "a")
    assert np.array_equal(kept, [1.0, math.nan, math.nan, math.nan], equal_nan=True)


def cell(diff: float, half: float) -> dict[str, Any]:
    bounds = [diff - half, diff + half]
    return {"before": 0.5, "after": 0.5 + diff, "diff": diff, "ci95": bounds, "n": 96}


SUMMARY = {
    "held_out": {
        "alignment": cell(0.06, 0.02),
        "visual": cell(-0.03, 0.01),
        "motion": cell(0.01, 0.02),
    },
    "rewards": {"general": {"before": None, "after": None, "diff": None, "n": 0, "dropped": 7}},
}


def test_held_out_chart_has_dots_intervals_and_zero(tmp_path: Path, figures: list[Figure]) -> None:
    write_held_out(SUMMARY, tmp_path / "new" / "held.png")
    axes = figures[0].axes[0]
    drawn = [list(np.asarray(line.get_xdata(), dtype=float)) for line in axes.lines]
    assert drawn[:2] == [pytest.approx([0.04, 0.08]), pytest.approx([0.06])]
    assert drawn[-1] == [0, 0]  # the zero line
    low, high = axes.get_xlim()
    assert low < -0.04 and high > 0.08
    rise, fall, flat = (axes.lines[i].get_color() for i in (0, 2, 4))
    assert len({rise, fall, flat}) == 3
    words = texts(figures[0])
    for word in ("alignment", "+0.060", "[-0.040, -0.020]", "n=96", "general", "7 dropped"):
        assert word in words
    assert "95 %" in axes.get_xlabel()


def test_held_out_chart_of_nothing(tmp_path: Path, figures: list[Figure]) -> None:
    write_held_out({}, tmp_path / "held.png")
    assert "no held-out comparison" in texts(figures[0])


def test_interval_reads_its_confidence() -> None:
    assert interval({"diff": 0.0, "ci90": [-0.1, 0.2]}) == (-0.1, 0.2, 90.0)
    assert interval({"diff": None, "n": 0}) is None
    assert interval({"ci95": None}) is None


def test_global_state_of_matplotlib_is_left_alone(tmp_path: Path) -> None:
    backend, settings = matplotlib.get_backend(), dict(matplotlib.rcParams)
    write_curves([record(0), record(1)], tmp_path / "c.png", "t")
    write_held_out(SUMMARY, tmp_path / "h.png")
    assert matplotlib.get_backend() == backend and dict(matplotlib.rcParams) == settings


def test_unwritable_target_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.png").mkdir()
    with pytest.raises(RunDirectoryError, match=r"cannot write c\.png"):
        write_curves([record(0)], tmp_path / "c.png", "t")
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]


NAMES = ["general", "text_alignment"]


@pytest.fixture(scope="module")
def clips() -> Tensor:
    """uint8 [6, 5, 3, 16, 24]: smooth pictures that move, so that scaling does not change them."""
    wave = torch.linspace(0, 3, 24) + torch.linspace(0, 2, 16)[:, None]
    phase = torch.arange(90.0).view(6, 5, 3, 1, 1)
    return ((wave + phase).sin() * 100 + 128).to(torch.uint8)


class Players:
    """Where the clips of a figure stand, and the frames that were written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.figure, self.pages = Figure(), torch.empty(0)
        self.boxes: list[tuple[int, int, int, int]] = []
        animate = module._animate

        def spy(figure: Figure, images: Any, videos: Tensor) -> Tensor:
            self.figure, self.pages = figure, animate(figure, images, videos)
            for image in images:
                (x0, y0), (x1, y1) = image.get_window_extent().get_points().round().astype(int)
                height = round(figure.bbox.height)
                self.boxes.append((height - y1, height - y0, x0, x1))
            return self.pages

        monkeypatch.setattr(module, "_animate", spy)

    def shown(self, index: int, size: tuple[int, int]) -> Tensor:
        """The clip in the picture, scaled back to its size."""
        top, bottom, left, right = self.boxes[index]
        region = self.pages[:, :, top:bottom, left:right].float()
        return torch.nn.functional.interpolate(region, size, mode="area")


@pytest.fixture
def players(monkeypatch: pytest.MonkeyPatch) -> Players:
    return Players(monkeypatch)


def test_a_group_grid_plays_every_member_in_its_place(
    tmp_path: Path, clips: Tensor, players: Players
) -> None:
    videos = clips.view(2, 3, *clips.shape[1:])
    scores = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "new" / "update-0010.mp4"
    assert write_groups(path, ["a text", "b " * 200], videos, scores, NAMES, 8.0, "t") == path
    pages, fps = read_video(path)
    assert fps == 8 and pages.shape == players.pages.shape
    for i, clip in enumerate(clips):
        assert (players.shown(i, (16, 24)) - clip.float()).abs().mean() < 6, i
    tops, lefts = [box[0] for box in players.boxes], [box[2] for box in players.boxes]
    assert tops[0] == tops[2] < tops[3] == tops[5]  # rows are prompts
    assert lefts[0] == lefts[3] < lefts[1] < lefts[2] == lefts[5]  # columns are members
    assert "a text" in texts(players.figure) and " ..." in texts(players.figure)


def test_the_best_score_is_dark_and_a_missing_one_red(
    tmp_path: Path, clips: Tensor, players: Players
) -> None:
    scores = torch.tensor([[[0.1, 0.9, math.nan]]])
    videos = clips[:3][None].float() / 255
    videos[0, 2] = math.nan  # a broken sample is black, not an error
    write_groups(tmp_path / "g.mp4", ["p"], videos, scores, ["r"], 8.0)
    colours = {t.get_text(): t.get_color() for axes in players.figure.axes for t in axes.texts}
    assert colours["0.900"] != colours["0.100"] != colours["unscored"] != colours["0.900"]
    assert players.shown(2, (16, 24)).max() == 0


def test_large_clips_are_shrunk(tmp_path: Path, players: Players) -> None:
    videos = torch.rand(1, 2, 2, 3, 480, 832)
    write_groups(tmp_path / "g.mp4", ["p"], videos, torch.zeros(1, 1, 2), ["r"], 15.0)
    assert players.pages.shape[3] < 800
    assert players.pages.shape[2] % 2 == players.pages.shape[3] % 2 == 0


def test_pairs_stand_above_each_other_and_play_side_by_side(
    tmp_path: Path, clips: Tensor, figures: list[Figure], players: Players
) -> None:
    first = [{"alignment": 0.2, "motion": 0.5}] * 3
    second = [{"alignment": 0.6, "motion": None}] * 3
    before, after = clips[:3], clips[3:]
    write_before_after(tmp_path, before, after, ["a", "b", "c"], first, second, 8.0)
    still = figures[0]
    assert "0.20 → 0.60  +0.40" in texts(still) and "unscored" in texts(still)
    with Image.open(tmp_path / "before_after.png") as image:
        assert image.format == "PNG"
    tops = [axes.get_position().y0 for axes in still.axes[:2]]
    assert tops[0] > tops[1] and len(still.axes) == 6  # before above after
    for i in range(3):
        for k, side in enumerate((before, after)):
            shown = players.shown(2 * i + k, (16, 24))
            assert (shown - side[i].float()).abs().mean() < 6, (i, k)
        assert players.boxes[2 * i][3] < players.boxes[2 * i + 1][2]
    assert read_video(tmp_path / "before_after.mp4")[0].shape[0] == 5


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, clips: Tensor) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_groups(
            tmp_path / "file" / "g.mp4", ["a"], clips[None, :2], torch.zeros(1, 1, 2), ["r"], 8.0
        )
