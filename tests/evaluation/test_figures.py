"""Figures: they are drawn for whole, odd and sparse results, and show what they must."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from longtake.evaluation.checks import CheckSettings, check_ratings
from longtake.evaluation.comparison import ComparisonSettings, compare_models
from longtake.evaluation.dimensions import TASKS
from longtake.evaluation.figures import write_gsb_figure, write_mos_figure
from longtake.evaluation.gsb import GsbResult
from longtake.evaluation.mos import MosSettings, aggregate_mos
from longtake.sandbox.raters import SimulatedStudy, rater_pool, simulate_ratings

BLUE, RED, GREEN, PURPLE = (
    (0x2A, 0x6F, 0xB0),
    (0xC4, 0x60, 0x2A),
    (0x4B, 0x8B, 0x3B),
    (0x8A, 0x5A, 0xA8),
)


def mos_result(models=("A", "B"), dimensions=("overall",), prompts=6):
    study = SimulatedStudy(
        quality={m: dict.fromkeys(dimensions, 3.3) for m in models},
        raters=rater_pool(6),
        num_prompts=prompts,
    )
    table = check_ratings(simulate_ratings(study), CheckSettings(dimensions=tuple(dimensions)))
    settings = MosSettings(
        dimensions=tuple(dimensions), comparison=ComparisonSettings(resamples=200)
    )
    return aggregate_mos(table, settings)


def area(path, colour):
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)
    return int((np.abs(pixels - colour).max(axis=1) < 4).sum())


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_published_scores_as_figures_14_and_16(tmp_path, task, published_mos, make_exact_scores):
    names = TASKS[task]
    result = mos_result(tuple(published_mos[task]), names)
    scores = make_exact_scores(published_mos[task], names, clusters=100)
    means, _ = compare_models(scores, names, ComparisonSettings(resamples=200))
    path = write_mos_figure(dataclasses.replace(result, means=means), tmp_path / "mos.png")
    height, width = np.asarray(Image.open(path)).shape[:2]
    assert width > 1.8 * height
    assert all(area(path, colour) > 1000 for colour in (BLUE, RED, GREEN, PURPLE))


def test_the_bar_height_is_the_score_and_a_missing_one_has_no_bar(tmp_path):
    result = mos_result()

    def blue(mean):
        means = result.means.assign(mean=[mean, 3.0], ci_low=math.nan, ci_high=math.nan)
        shown = dataclasses.replace(result, means=means)
        return area(write_mos_figure(shown, tmp_path / "m.png"), BLUE)

    legend = blue(math.nan)
    assert blue(4.0) - legend == pytest.approx(3 * (blue(2.0) - legend), rel=0.04)


def test_gsb_bars_share_the_width_like_the_counts(tmp_path):
    counts = {"good": 30, "same": 6, "bad": 4, "net": 0.65, "net_low": 0.5, "net_high": 0.8}
    names = {"dimension": "overall", "reference": "A", "rival": "B", "different": True}
    result = GsbResult(
        counts=pd.DataFrame([{**names, **counts}, {**names, **counts, "rival": "C"}]),
        rankings={},
        position=pd.DataFrame(),
        agreement={},
        findings=(),
        settings=ComparisonSettings(),
        dimensions=("overall",),
        n_answers=40,
        set_aside=0,
    )
    path = write_gsb_figure(result, tmp_path / "g.png", "A against B and C")
    assert area(path, BLUE) / area(path, RED) == pytest.approx(30 / 4, rel=0.25)
