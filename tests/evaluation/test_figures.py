"""Figures: they are drawn for whole, odd and sparse results, and show what they must."""

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from longtake.evaluation.dimensions import TASKS
from longtake.evaluation.gsb import aggregate_gsb, pairs_as_samples
from longtake.evaluation.gsb_figure import write_gsb_figure
from longtake.evaluation.gsb_plan import plan_pairs
from longtake.evaluation.model_comparison import ComparisonSettings, compare_models
from longtake.evaluation.mos import MosSettings, aggregate_mos
from longtake.evaluation.mos_figure import write_mos_figure
from longtake.evaluation.rating_checks import CheckSettings, check_ratings
from longtake.evaluation.samples import SampleList
from longtake.evaluation.simulated_raters import (
    SimulatedStudy,
    rater_pool,
    simulate_answers,
    simulate_ratings,
    simulated_samples,
)
from longtake.runtime.errors import UserError


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


def colours(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return {tuple(colour) for colour in np.unique(pixels, axis=0).tolist()}


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_published_scores_as_figures_14_and_16(tmp_path, task, published_mos, make_exact_scores):
    names = TASKS[task]
    result = mos_result(tuple(published_mos[task]), names)
    scores = make_exact_scores(published_mos[task], names, clusters=100)
    result = dataclasses.replace(
        result, comparison=compare_models(scores, names, ComparisonSettings(resamples=200))
    )
    path = write_mos_figure(result, tmp_path / "mos.png")
    height, width = np.asarray(Image.open(path)).shape[:2]
    assert width > 1.8 * height
    # Four models: a bar of each colour (drawn at 88 % over white).
    bars = [(0x2A, 0x6F, 0xB0), (0xC4, 0x60, 0x2A), (0x4B, 0x8B, 0x3B), (0x8A, 0x5A, 0xA8)]
    drawn = colours(path)
    assert all(tuple(bar) in drawn for bar in bars)


@pytest.mark.parametrize("models", [["only"], [f"a model with a long name {i}" for i in range(9)]])
def test_one_model_and_many_models(tmp_path, models):
    path = write_mos_figure(mos_result(models), tmp_path / "m.png")
    assert len(colours(path)) > 20


def test_a_model_without_ratings_and_without_interval_is_drawn_as_missing(tmp_path):
    result = mos_result()
    a, b = result.comparison.means
    missing = dataclasses.replace(b, mean=math.nan, ci_low=math.nan, ci_high=math.nan, n_samples=0)
    bare = dataclasses.replace(a, ci_low=math.nan, ci_high=math.nan)
    comparison = dataclasses.replace(result.comparison, means=(bare, missing))
    path = write_mos_figure(dataclasses.replace(result, comparison=comparison), tmp_path / "m.png")
    assert len(colours(path)) > 20


def test_the_bar_height_is_the_score(tmp_path):
    result = mos_result()

    def bar_pixels(mean):
        a, b = result.comparison.means
        nan = math.nan
        means = tuple(dataclasses.replace(c, mean=m, ci_low=nan, ci_high=nan)
                      for c, m in ((a, mean), (b, 1.0)))  # fmt: skip
        changed = dataclasses.replace(
            result, comparison=dataclasses.replace(result.comparison, means=means)
        )
        path = write_mos_figure(changed, tmp_path / "m.png")
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        # The colour of the bar: series blue at 88 % over white.
        blue = np.array([0x2A, 0x6F, 0xB0]) * 0.88 + 255 * 0.12
        return (np.abs(pixels - blue).max(axis=2) < 4).sum()

    low, high = bar_pixels(2.0), bar_pixels(4.0)
    assert high == pytest.approx(3 * low, rel=0.03)


def test_gsb_bars_share_the_width_like_the_counts(tmp_path):
    study = SimulatedStudy(
        quality={"A": {"overall": 4.2}, "B": {"overall": 3.0}}, raters=rater_pool(6), num_prompts=40
    )
    listed = SampleList(samples=tuple(simulated_samples(study)), folder=tmp_path)
    pairs, _ = plan_pairs(listed, seed=0)
    answers = simulate_answers(study, pairs, raters_per_pair=3, seed=0)
    checks = CheckSettings(dimensions=study.dimensions, scale=(-1.0, 1.0))
    table = check_ratings(answers, checks, pairs_as_samples(pairs, tmp_path))
    comparison = ComparisonSettings(resamples=200)
    result = aggregate_gsb(table, pairs, study.dimensions, comparison, ranking_resamples=0)
    path = write_gsb_figure(result, tmp_path / "g.png", "A against B")
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    (count,) = result.counts
    area = {
        name: (pixels == colour).all(axis=1).sum()
        for name, colour in (("good", (0x2A, 0x6F, 0xB0)), ("bad", (0xC4, 0x60, 0x2A)))
    }
    assert count.good > 4 * count.bad > 0
    assert area["good"] / area["bad"] == pytest.approx(count.good / count.bad, rel=0.25)


def test_a_place_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write m\.png"):
        write_mos_figure(mos_result(), tmp_path / "file" / "m.png")
