"""Agreement at the three levels against direct computation, and against judges known by design."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from longtake.evaluation.agreement import rest_correlations
from longtake.evaluation.judge.human_ceiling import human_ceiling
from longtake.evaluation.judge.levels import MEASURES, Judged, LevelSettings, measure_levels
from longtake.runtime.statistics import resampled


def study(seed=0, num_prompts=40, num_models=5, noise=0.5):
    rng = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(num_prompts), num_models)
    models = np.tile(np.arange(num_models), num_prompts)
    human = 3 + 0.3 * models + rng.normal(0, 0.6, size=num_prompts)[prompts]
    human = np.round((human + rng.normal(0, 0.4, size=len(models))) * 3) / 3
    judge = human + noise * rng.normal(size=len(human))
    return Judged(human=human, judge=judge, prompts=prompts, models=models, clusters=prompts)


def counts(clusters, resamples=150, seed=1):
    return resampled(lambda drawn: drawn, clusters, resamples=resamples, seed=seed)


def measured(data, **settings):
    drawn = counts(int(data.clusters.max()) + 1)
    found = measure_levels("x", data, drawn, LevelSettings(**settings))
    assert [item.measure for item in found] == [*MEASURES] * 3
    return {(item.level, item.measure): item for item in found}


def brute_pairs(human, judge, pairs, margin):
    """Accuracy without ties, and the best over every threshold, counted pair by pair."""
    label = [
        0 if abs(human[i] - human[j]) <= margin + 1e-9 else np.sign(human[i] - human[j])
        for i, j in pairs
    ]
    gap = [judge[i] - judge[j] for i, j in pairs]
    decided = [(np.sign(g) == t) for g, t in zip(gap, label, strict=True) if t]
    best = max(
        np.mean(
            [(0 if abs(g) <= cut else np.sign(g)) == t for g, t in zip(gap, label, strict=True)]
        )
        for cut in [-1.0, *map(abs, gap)]
    )
    return np.mean(decided), best


@pytest.mark.parametrize("seed", range(2))
def test_values_equal_direct_computation(seed):
    data = study(seed, num_prompts=15)
    found = measured(data)
    value = {key: item.value for key, item in found.items()}
    h, j = data.human, data.judge
    assert value["sample", "plcc"] == pytest.approx(stats.pearsonr(h, j).statistic)
    assert value["sample", "srcc"] == pytest.approx(stats.spearmanr(h, j).statistic)
    assert value["sample", "krcc"] == pytest.approx(stats.kendalltau(h, j).statistic)
    assert value["sample", "rmse"] == pytest.approx(np.sqrt(np.mean((h - j) ** 2)))
    every = [(a, b) for a in range(len(h)) for b in range(a)]
    expected = brute_pairs(h, j, every, 0.25)
    got = value["sample", "accuracy"], value["sample", "accuracy_ties"]
    assert got == pytest.approx(expected)
    table = pd.DataFrame({"h": h, "j": j, "p": data.prompts, "m": data.models})
    groups = [group for _, group in table.groupby("p")]
    for name, function in (("plcc", stats.pearsonr), ("krcc", stats.kendalltau)):
        each = [function(g.h, g.j).statistic for g in groups if g.h.nunique() > 1]
        assert value["prompt", name] == pytest.approx(np.mean(each))
        assert found["prompt", name].n == len(each)
    centred = table[["h", "j"]] - table.groupby("p")[["h", "j"]].transform("mean")
    assert value["prompt", "rmse"] == pytest.approx(np.sqrt(((centred.h - centred.j) ** 2).mean()))
    within = [(a, b) for a, b in every if data.prompts[a] == data.prompts[b]]
    got = value["prompt", "accuracy"], value["prompt", "accuracy_ties"]
    assert got == pytest.approx(brute_pairs(h, j, within, 0.25))
    means = table.groupby("m")[["h", "j"]].mean()
    assert value["model", "plcc"] == pytest.approx(stats.pearsonr(means.h, means.j).statistic)
    pairs = [(a, b) for a in range(5) for b in range(a)]
    got = value["model", "accuracy"], value["model", "accuracy_ties"]
    assert got == pytest.approx(brute_pairs(means.h.tolist(), means.j.tolist(), pairs, 0.05))
    assert found["model", "plcc"].n == 5 and found["sample", "plcc"].n == 75


def test_intervals_equal_recomputation_on_drawn_prompts():
    data = study(3, num_prompts=12)
    drawn = counts(12, 100)
    found = measure_levels("x", data, drawn, LevelSettings())
    value = {(item.level, item.measure): item for item in found}
    again = {key: [] for key in (("sample", "srcc"), ("prompt", "plcc"), ("model", "plcc"))}
    for row in drawn.astype(int):
        # Copies of a prompt are prompts of their own.
        chosen = [(p, c) for p in range(12) for c in range(row[p])]
        index = np.concatenate([np.flatnonzero(data.prompts == p) for p, _ in chosen])
        h, j, m = data.human[index], data.judge[index], data.models[index]
        again["sample", "srcc"].append(stats.spearmanr(h, j).statistic)
        each = [
            stats.pearsonr(data.human[data.prompts == p], data.judge[data.prompts == p]).statistic
            for p, _ in chosen
        ]
        again["prompt", "plcc"].append(np.mean(each))
        means = [(h[m == k].mean(), j[m == k].mean()) for k in range(5)]
        again["model", "plcc"].append(stats.pearsonr(*zip(*means, strict=True)).statistic)
    for key, draws in again.items():
        ends = value[key].ci_low, value[key].ci_high
        assert ends == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_intervals_cover_the_truth():
    # Judge and raters with a known correlation over videos.
    hits, trials, rho = 0, 40, 0.8
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=150)
        y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=150)
        prompts = np.repeat(np.arange(50), 3)
        data = Judged(
            human=x, judge=y, prompts=prompts, models=np.tile(np.arange(3), 50), clusters=prompts
        )
        chosen = resampled(lambda drawn: drawn, 50, resamples=100, seed=seed)
        found = measure_levels("x", data, chosen, LevelSettings(max_pairs=10))
        hits += found[0].ci_low <= rho <= found[0].ci_high
    assert 0.85 <= hits / trials <= 1, hits


def test_a_judge_of_prompts_fails_within_prompts():
    """The trap of the sample level: a score of the prompt alone correlates over videos."""
    data = study(1, noise=0.0)
    mean = np.bincount(data.prompts, data.human) / np.bincount(data.prompts)
    rng = np.random.default_rng(0)
    blind = Judged(
        human=data.human,
        judge=mean[data.prompts] + 1e-6 * rng.normal(size=len(data.human)),
        prompts=data.prompts,
        models=data.models,
        clusters=data.clusters,
    )
    found = measured(blind)
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
    # The raters' tie margin is above 0, so even a perfect judge may need a threshold; it has one.
    assert perfect["sample", "accuracy_ties"].value == pytest.approx(1)
    wrong = measured(Judged(**{**vars(data), "judge": 6 - data.human}))
    assert wrong["sample", "plcc"].value == pytest.approx(-1)
    assert wrong["model", "accuracy"].value == 0
    constant = measured(Judged(**{**vars(data), "judge": np.full(len(data.human), 3.0)}))
    for level in ("sample", "model"):
        assert math.isnan(constant[level, "plcc"].value)
        assert "same score" in constant[level, "plcc"].reason
    assert constant["prompt", "plcc"].value == 0  # silence within a prompt is not left out
    assert constant["sample", "accuracy"].value == 0


def test_four_models_say_nothing_about_other_models():
    found = measured(study(5, num_models=4, noise=1.0))["model", "plcc"]
    assert found.value > 0.9 and found.models_high > found.value
    # Other prompts would change little; other models could change everything.
    assert found.models_low < found.ci_low - 0.3


def test_one_prompt_has_no_interval():
    found = measured(study(0, num_prompts=1))
    assert math.isnan(found["sample", "plcc"].ci_low) and found["sample", "plcc"].value != 0


def ratings(seed, num_prompts=30, raters=6, noise=0.7):
    rng = np.random.default_rng(seed)
    quality = rng.normal(3, 1, size=num_prompts * 3)
    sample = np.repeat(np.arange(len(quality)), 3)
    rater = np.concatenate([rng.permutation(raters)[:3] for _ in quality])
    score = quality[sample] + noise * rng.normal(size=len(sample))
    return score, rater, sample, sample // 3


def test_ceiling_is_the_mean_of_rater_against_rest():
    score, rater, sample, cluster = ratings(0)
    drawn = counts(30)
    found = human_ceiling("x", score, rater, sample, cluster, drawn, 0.95)
    assert found.value == pytest.approx(np.mean(rest_correlations(score, rater, sample)))
    assert found.n_raters == 6 and found.n_ratings == 270
    assert found.ci_low < found.value < found.ci_high
    # One resample by hand: videos of a prompt drawn twice are videos of their own.
    row = drawn[:1].astype(int)[0]
    parts, shift = [], 0
    for prompt, number in enumerate(row):
        for _ in range(number):
            part = cluster == prompt
            parts.append((score[part], rater[part], sample[part] + shift))
            shift += 1000
    s, r, v = (np.concatenate(column) for column in zip(*parts, strict=True))
    _, v = np.unique(v, return_inverse=True)
    expected = float(np.nanmean(rest_correlations(s, r, v)))
    one = human_ceiling("x", score, rater, sample, cluster, drawn[:1], 0.95)
    assert one.ci_low == pytest.approx(expected) and one.ci_high == pytest.approx(expected)


def test_noise_lowers_the_ceiling_and_single_raters_have_none():
    drawn = counts(30)
    quiet = human_ceiling("x", *ratings(1, noise=0.2), drawn, 0.95)
    loud = human_ceiling("x", *ratings(1, noise=1.5), drawn, 0.95)
    assert quiet.ci_low > loud.ci_high
    alone = human_ceiling(
        "x", np.arange(9.0), np.arange(9) % 3, np.arange(9), np.arange(9), counts(9), 0.95
    )
    assert math.isnan(alone.value) and alone.n_raters == 0 and alone.n_ratings == 0
