"""Agreement at the three levels against scipy and counting, and on judges known by design."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from longtake.evaluation.judge.levels import (
    MEASURES,
    Judged,
    LevelSettings,
    choose_pairs,
    coefficients,
    measure_levels,
)
from longtake.runtime.statistics import resampled


def by_scipy(x, y):
    correlations = [f(x, y).statistic for f in (stats.pearsonr, stats.spearmanr, stats.kendalltau)]
    return [*correlations, np.sqrt(np.mean((x - y) ** 2))]


@pytest.mark.parametrize("digits", [16, 0])  # without and with many ties
def test_coefficients_are_scipys(digits):
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = (0.6 * x + rng.normal(size=40)).round(digits)
    assert coefficients(x.round(digits), y) == pytest.approx(by_scipy(x.round(digits), y))


def test_undefined_is_nan():
    x = np.arange(5.0)
    for row in (coefficients(x, np.full(5, 0.1)), coefficients(x[:1], x[:1])):
        assert np.isnan(row[:3]).all() and not np.isnan(row[3])
    assert np.isnan(coefficients(x[:0], x[:0])).all()


@pytest.mark.parametrize(("n", "limit"), [(9, 100), (40, 779), (4000, 5000)])
def test_chosen_pairs_are_different_pairs_of_different_points(n, limit):
    first, second = choose_pairs(n, limit, np.random.default_rng(0))
    number = min(limit, n * (n - 1) // 2)
    assert len(set(zip(first.tolist(), second.tolist(), strict=True))) == number
    assert (first >= 0).all() and (first < second).all() and (second < n).all()


def study(seed=0, num_prompts=40, num_models=5, noise=0.5):
    rng = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(num_prompts), num_models)
    models = np.tile(np.arange(num_models), num_prompts)
    human = 3 + 0.3 * models + rng.normal(0, 0.6, size=num_prompts)[prompts]
    human = np.round((human + rng.normal(0, 0.4, size=len(models))) * 3) / 3
    judge = human + noise * rng.normal(size=len(human))
    return Judged(human=human, judge=judge, prompts=prompts, models=models, clusters=prompts)


def measured(data, **settings):
    number = int(data.clusters.max()) + 1
    found = measure_levels("x", data, number, LevelSettings(resamples=150, **settings))
    assert [item.measure for item in found] == [*MEASURES] * 3
    return {(item.level, item.measure): item for item in found}


def brute_pairs(human, judge, pairs, margin):
    """Accuracy over the pairs that the raters decide, counted pair by pair."""
    decided = [(i, j) for i, j in pairs if abs(human[i] - human[j]) > margin + 1e-9]
    return np.mean([(human[i] > human[j]) == (judge[i] > judge[j]) for i, j in decided])


def test_values_equal_direct_computation():
    data = study(1, num_prompts=15)
    found = measured(data)
    value = {key: item.value for key, item in found.items()}
    h, j = data.human, data.judge
    assert [value["sample", name] for name in MEASURES[:4]] == pytest.approx(by_scipy(h, j))
    every = [(a, b) for a in range(len(h)) for b in range(a)]
    assert value["sample", "accuracy"] == pytest.approx(brute_pairs(h, j, every, 0.25))
    table = pd.DataFrame({"h": h, "j": j, "p": data.prompts, "m": data.models})
    groups = [group for _, group in table.groupby("p")]
    for name, function in (("plcc", stats.pearsonr), ("krcc", stats.kendalltau)):
        each = [function(g.h, g.j).statistic for g in groups if g.h.nunique() > 1]
        assert value["prompt", name] == pytest.approx(np.mean(each))
        assert found["prompt", name].n == len(each)
    centred = table[["h", "j"]] - table.groupby("p")[["h", "j"]].transform("mean")
    assert value["prompt", "rmse"] == pytest.approx(np.sqrt(((centred.h - centred.j) ** 2).mean()))
    within = [(a, b) for a, b in every if data.prompts[a] == data.prompts[b]]
    assert value["prompt", "accuracy"] == pytest.approx(brute_pairs(h, j, within, 0.25))
    means = table.groupby("m")[["h", "j"]].mean()
    assert value["model", "plcc"] == pytest.approx(stats.pearsonr(means.h, means.j).statistic)
    pairs = [(a, b) for a in range(5) for b in range(a)]
    expected = brute_pairs(means.h.tolist(), means.j.tolist(), pairs, 0.05)
    assert value["model", "accuracy"] == pytest.approx(expected)
    assert found["model", "plcc"].n == 5 and found["sample", "plcc"].n == 75


def test_intervals_are_those_of_resampled_prompts():
    """Every resample written out as a study of its own."""
    data = study(3, num_prompts=12)
    settings = LevelSettings(resamples=100, seed=2)
    value = {(item.level, item.measure): item for item in measure_levels("x", data, 12, settings)}
    drawn = resampled(lambda counts: counts, 12, resamples=100, seed=2)
    again = {key: [] for key in (("sample", "srcc"), ("prompt", "plcc"), ("model", "plcc"))}
    for row in drawn.astype(int):
        # Copies of a prompt are prompts of their own.
        chosen = [p for p in range(12) for _ in range(row[p])]
        index = np.concatenate([np.flatnonzero(data.prompts == p) for p in chosen])
        h, j, m = data.human[index], data.judge[index], data.models[index]
        again["sample", "srcc"].append(stats.spearmanr(h, j).statistic)
        each = [
            stats.pearsonr(data.human[data.prompts == p], data.judge[data.prompts == p]).statistic
            for p in chosen
        ]
        again["prompt", "plcc"].append(np.mean(each))
        means = [(h[m == k].mean(), j[m == k].mean()) for k in range(5)]
        again["model", "plcc"].append(stats.pearsonr(*zip(*means, strict=True)).statistic)
    for key, draws in again.items():
        ends = value[key].ci_low, value[key].ci_high
        assert ends == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_a_judge_of_prompts_fails_within_prompts():
    """The trap of the sample level: a score of the prompt alone correlates over videos."""
    data = study(1, noise=0.0)
    mean = np.bincount(data.prompts, data.human) / np.bincount(data.prompts)
    noise = 1e-6 * np.random.default_rng(0).normal(size=len(data.human))
    found = measured(Judged(**{**vars(data), "judge": mean[data.prompts] + noise}))
    assert found["sample", "plcc"].ci_low > 0.5
    within = found["prompt", "plcc"]
    assert within.ci_low < 0 < within.ci_high and abs(found["prompt", "accuracy"].value - 0.5) < 0.1


def test_perfect_reversed_and_constant_judges():
    data = study(2)
    perfect = measured(Judged(**{**vars(data), "judge": data.human}))
    for level in ("sample", "prompt", "model"):
        for name in ("plcc", "srcc", "krcc", "accuracy"):
            assert perfect[level, name].value == pytest.approx(1)
        assert perfect[level, "rmse"].value == pytest.approx(0, abs=1e-12)
    wrong = measured(Judged(**{**vars(data), "judge": 6 - data.human}))
    assert wrong["sample", "plcc"].value == pytest.approx(-1)
    assert wrong["model", "accuracy"].value == 0
    constant = measured(Judged(**{**vars(data), "judge": np.full(len(data.human), 3.1)}))
    for level in ("sample", "model"):
        assert math.isnan(constant[level, "plcc"].value)
        assert "same score" in constant[level, "plcc"].reason
    assert constant["prompt", "plcc"].value == 0  # silence within a prompt is not left out
    assert constant["sample", "accuracy"].value == 0


def test_one_prompt_has_no_interval():
    found = measured(study(0, num_prompts=1))
    assert math.isnan(found["sample", "plcc"].ci_low) and found["sample", "plcc"].value != 0
