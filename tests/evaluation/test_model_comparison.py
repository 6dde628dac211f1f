"""Means and differences of models: published numbers, the paired bootstrap, edges."""

import numpy as np
import pandas as pd
import pytest

from longtake.evaluation import model_comparison
from longtake.evaluation.dimensions import TASKS
from longtake.evaluation.model_comparison import ComparisonSettings, compare_models, mean_draws
from longtake.runtime.errors import UserError
from longtake.runtime.statistics import paired_bootstrap, sign_flip_test

SETTINGS = ComparisonSettings(resamples=2000)


def frame(**columns):
    rows = pd.DataFrame(columns)
    return rows.assign(
        dimension=rows.get("dimension", "d"), cluster=rows.get("cluster", rows["prompt"])
    )


def test_published_text_to_video_scores(published_mos, make_exact_scores):
    names = TASKS["t2v"]
    scores = make_exact_scores(published_mos["t2v"], names, clusters=500)
    result = compare_models(scores, names, SETTINGS)
    for model, means in published_mos["t2v"].items():
        for dimension, mean in zip(names, means, strict=True):
            cell = result.mean_of(dimension, model)
            assert f"{cell.mean:.2f}" == f"{mean:.2f}"
            assert (cell.n_samples, cell.n_prompts, cell.n_clusters) == (500, 500, 500)
            # 1.96 x 0.85 / sqrt(500) = 0.0745
            assert cell.ci_high - cell.ci_low == pytest.approx(2 * 0.0745, rel=0.1)
    # 3.38, 3.36 and 3.35 are one group: 500 prompts do not show differences of 0.01 to 0.03.
    groups = result.tie_groups["overall"]
    assert any({"LongCat-Video", "PixVerse-V5", "Wan2.2-T2V-A14B"} <= set(g) for g in groups)
    close = [d for d in result.differences if d.dimension == "overall" and d.diff < 0.05]
    assert len(close) == 3 and not any(d.different for d in close)
    # Veo3's lead in text alignment (3.99 against 3.70 and 3.76) is one.
    wide = {
        (d.better, d.worse) for d in result.differences
        if d.dimension == "text_alignment" and d.different
    }  # fmt: skip
    assert ("Veo3", "Wan2.2-T2V-A14B") in wide and ("Veo3", "LongCat-Video") in wide


def test_published_image_to_video_scores_have_wider_intervals(published_mos, make_exact_scores):
    names = TASKS["i2v"]
    scores = make_exact_scores(published_mos["i2v"], names, clusters=100, per_cluster=4, sd=0.8)
    # The four prompts of an image share its luck: make the clusters matter.
    luck = np.random.default_rng(1).normal(0, 0.8, size=100)
    scores["score"] = scores.groupby(["model", "dimension", "cluster"])["score"].transform("mean")
    scores["score"] += scores["cluster"].map({f"c{i}": luck[i] for i in range(100)})
    cell = compare_models(scores, names, SETTINGS).mean_of("overall", "Seedance 1.0")
    assert (cell.n_samples, cell.n_prompts, cell.n_clusters) == (400, 400, 100)
    assert cell.ci_high - cell.ci_low == pytest.approx(2 * 1.96 * 0.09, rel=0.25)


@pytest.mark.parametrize("seed", range(3))
def test_differences_are_those_of_the_paired_bootstrap(seed):
    rng = np.random.default_rng(seed)
    prompts = [f"p{i}" for i in range(40)]
    clusters = [f"c{i // 2}" for i in range(40)]
    a, b = rng.normal(3.4, 1, 40), rng.normal(3, 1, 40)
    scores = frame(
        model=["A"] * 40 + ["B"] * 40, prompt=prompts * 2, cluster=clusters * 2,
        score=np.concatenate([a, b]),
    )  # fmt: skip
    (found,) = compare_models(scores, ["d"], SETTINGS).differences
    wanted = paired_bootstrap(b, a, clusters, resamples=2000, seed=0)
    flip = 1 if found.better == "A" else -1
    assert found.diff == pytest.approx(flip * wanted.diff)
    ends = sorted((flip * wanted.ci_low, flip * wanted.ci_high))
    assert [found.ci_low, found.ci_high] == pytest.approx(ends)
    sums = (a - b).reshape(20, 2).sum(axis=1)
    assert found.p == pytest.approx(sign_flip_test(sums[:, None], flips=2000)[0])
    assert (found.n_prompts, found.n_clusters) == (40, 20)


def test_shared_difficulty_does_not_hide_a_difference():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 2.0, 80)
    a, b = 3.2 + hard + rng.normal(0, 0.2, 80), 3.0 + hard + rng.normal(0, 0.2, 80)
    scores = frame(
        model=["A"] * 80 + ["B"] * 80, prompt=[*range(80)] * 2, score=np.concatenate([a, b])
    )
    result = compare_models(scores, ["d"], SETTINGS)
    mean = result.mean_of("d", "A")
    assert mean.ci_low < result.mean_of("d", "B").mean  # the intervals overlap widely
    assert result.differences[0].different and result.differences[0].better == "A"
    assert result.tie_groups["d"] == (("A",), ("B",))


def test_several_videos_of_a_prompt_are_averaged_before_pairing():
    scores = frame(
        model=list("AAABBAB"), prompt=[1, 1, 2, 1, 2, 3, 3],
        score=[5.0, 3.0, 2.0, 3.0, 2.5, 4.0, 3.0],
    )  # fmt: skip
    (found,) = compare_models(scores, ["d"], SETTINGS).differences
    assert found.diff == pytest.approx(np.mean([4 - 3, 2 - 2.5, 4 - 3]))


def test_only_shared_prompts_make_the_difference():
    # A has an easy prompt that B lacks: its mean is higher, but B wins on what both have.
    scores = frame(model=list("AAABB"), prompt=[1, 2, 3, 1, 2], score=[3.0, 3.0, 5.0, 3.2, 3.3])
    result = compare_models(scores, ["d"], SETTINGS)
    (found,) = result.differences
    assert result.mean_of("d", "A").mean > result.mean_of("d", "B").mean
    assert (found.better, found.worse, found.n_prompts) == ("B", "A", 2)
    assert found.diff == pytest.approx(0.25)


def test_models_without_common_prompts_are_not_compared():
    scores = frame(model=list("AABB"), prompt=[1, 2, 3, 4], score=[5.0, 5, 1, 1])
    (found,) = compare_models(scores, ["d"], SETTINGS).differences
    assert np.isnan([found.diff, found.ci_low, found.p, found.p_holm]).all()
    assert (found.n_prompts, found.different) == (0, False)


def test_one_cluster_gives_no_interval_and_no_test():
    scores = frame(model=list("AB"), prompt=[1, 1], score=[5.0, 1.0])
    result = compare_models(scores, ["d"], SETTINGS)
    cell = result.mean_of("d", "A")
    assert cell.mean == 5.0 and np.isnan([cell.ci_low, cell.ci_high, cell.sd]).all()
    assert np.isnan(result.differences[0].p) and not result.differences[0].different


def test_a_model_without_scores_in_a_dimension_is_missing_not_zero():
    scores = frame(
        model=list("AABBA"), prompt=[1, 2, 1, 2, 1], score=[3.0, 4, 3, 4, 5],
        dimension=["d", "d", "d", "d", "e"],
    )  # fmt: skip
    result = compare_models(scores, ["d", "e"], SETTINGS)
    empty = result.mean_of("e", "B")
    assert np.isnan([empty.mean, empty.ci_low]).all() and empty.n_samples == 0
    assert result.tie_groups["e"] == (("A",),)
    assert [d.dimension for d in result.differences] == ["d"]


def test_holm_counts_all_pairs_and_dimensions():
    rng = np.random.default_rng(5)
    scores = pd.concat(
        frame(model=m, prompt=range(30), score=rng.normal(size=30)).assign(dimension=d)
        for d in ("d", "e") for m in ("A", "B", "C")
    )  # fmt: skip
    result = compare_models(scores, ["d", "e"], SETTINGS)
    smallest = min(result.differences, key=lambda item: item.p)
    assert len(result.differences) == 6
    assert smallest.p_holm == pytest.approx(min(6 * smallest.p, 1.0))


def test_blocks_of_columns_change_nothing(monkeypatch, published_mos, make_exact_scores):
    scores = make_exact_scores(published_mos["t2v"], TASKS["t2v"], clusters=30)
    whole = compare_models(scores, TASKS["t2v"], ComparisonSettings(resamples=300))
    monkeypatch.setattr(model_comparison, "_BLOCK", 3)
    again = compare_models(scores, TASKS["t2v"], ComparisonSettings(resamples=300))
    assert [c.ci_low for c in again.means] == pytest.approx([c.ci_low for c in whole.means])


def test_mean_draws_are_the_bootstrap_of_the_means(published_mos, make_exact_scores):
    scores = make_exact_scores({"A": (3.0,), "B": (2.0,)}, ["d"], clusters=50)
    draws = mean_draws(scores, ["B", "A"], SETTINGS, seed=0)
    cell = compare_models(scores, ["d"], SETTINGS).mean_of("d", "A")
    assert np.quantile(draws[:, 1], [0.025, 0.975]) == pytest.approx([cell.ci_low, cell.ci_high])


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"confidence": 95}, {"resamples": 10}])
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(UserError):
        ComparisonSettings(**wrong)
