"""Means and differences of models: published numbers, the paired bootstrap, edges."""

import numpy as np
import pandas as pd
import pytest

from longtake.evaluation.comparison import ComparisonSettings, compare_models
from longtake.evaluation.dimensions import TASKS
from longtake.runtime.statistics import paired_bootstrap, sign_flip_test

SETTINGS = ComparisonSettings(resamples=2000)


def frame(**columns):
    rows = pd.DataFrame(columns)
    return rows.assign(
        dimension=rows.get("dimension", "d"), cluster=rows.get("cluster", rows["prompt"])
    )


def compare(scores, dimensions=("d",), settings=SETTINGS):
    """Means by (dimension, model), and the differences."""
    means, differences = compare_models(scores, dimensions, settings)
    return means.set_index(["dimension", "model"]), differences


def only(differences):
    (row,) = differences.itertuples()
    return row


def test_published_text_to_video_scores(published_mos, make_exact_scores):
    names = TASKS["t2v"]
    scores = make_exact_scores(published_mos["t2v"], names, clusters=500)
    means, differences = compare(scores, names)
    for model, published in published_mos["t2v"].items():
        for dimension, mean in zip(names, published, strict=True):
            cell = means.loc[dimension, model]
            assert f"{cell['mean']:.2f}" == f"{mean:.2f}"
            assert tuple(cell[["n_samples", "n_prompts", "n_clusters"]]) == (500, 500, 500)
            # 1.96 x 0.85 / sqrt(500) = 0.0745
            assert cell.ci_high - cell.ci_low == pytest.approx(2 * 0.0745, rel=0.1)
    # 500 prompts do not show the differences of 0.01 to 0.03 between 3.38, 3.36 and 3.35.
    overall = differences[differences["dimension"] == "overall"]
    close = overall[overall["diff"] < 0.05]
    assert len(close) == 3 and not close["different"].any()
    # Veo3's lead in text alignment (3.99 against 3.70 and 3.76) is one.
    rows = differences[(differences["dimension"] == "text_alignment") & differences["different"]]
    wide = set(zip(rows["better"], rows["worse"], strict=True))
    assert ("Veo3", "Wan2.2-T2V-A14B") in wide and ("Veo3", "LongCat-Video") in wide


def test_differences_are_those_of_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    prompts = [f"p{i}" for i in range(40)]
    clusters = [f"c{i // 2}" for i in range(40)]
    a, b = rng.normal(3.4, 1, 40), rng.normal(3, 1, 40)
    scores = frame(
        model=["A"] * 40 + ["B"] * 40, prompt=prompts * 2, cluster=clusters * 2,
        score=np.concatenate([a, b]),
    )  # fmt: skip
    row = only(compare(scores)[1])
    paired = paired_bootstrap(b, a, clusters, resamples=2000, seed=0)
    flip = 1 if row.better == "A" else -1
    assert row.diff == pytest.approx(flip * paired.diff)
    ends = sorted((flip * paired.ci_low, flip * paired.ci_high))
    assert [row.ci_low, row.ci_high] == pytest.approx(ends)
    sums = (a - b).reshape(20, 2).sum(axis=1)
    assert row.p == pytest.approx(sign_flip_test(sums[:, None], flips=2000)[0])
    assert (row.n_prompts, row.n_clusters) == (40, 20)


def test_only_shared_prompts_make_the_difference():
    # A has an easy prompt that B lacks: its mean is higher, but B wins on what both have.
    scores = frame(model=list("AAABB"), prompt=[1, 2, 3, 1, 2], score=[3.0, 3.0, 5.0, 3.2, 3.3])
    means, differences = compare(scores)
    row = only(differences)
    assert means.loc["d", "A"]["mean"] > means.loc["d", "B"]["mean"]
    assert (row.better, row.worse, row.n_prompts) == ("B", "A", 2)
    assert row.diff == pytest.approx(0.25)


def test_what_cannot_be_compared_is_missing_not_zero():
    row = only(compare(frame(model=list("AABB"), prompt=[1, 2, 3, 4], score=[5.0, 5, 1, 1]))[1])
    assert np.isnan([row.diff, row.ci_low, row.p, row.p_holm]).all()
    assert (row.n_prompts, row.different) == (0, False)
    means, differences = compare(frame(model=list("AB"), prompt=[1, 1], score=[5.0, 1.0]))
    cell = means.loc["d", "A"]
    assert cell["mean"] == 5.0 and np.isnan(cell[["ci_low", "ci_high", "sd"]].to_numpy()).all()
    assert np.isnan(only(differences).p) and not only(differences).different
    scores = frame(
        model=list("AABBA"), prompt=[1, 2, 1, 2, 1], score=[3.0, 4, 3, 4, 5],
        dimension=["d", "d", "d", "d", "e"],
    )  # fmt: skip
    means, differences = compare(scores, ("d", "e"))
    assert np.isnan(means.loc["e", "B"]["mean"]) and means.loc["e", "B"]["n_samples"] == 0
    assert set(differences["dimension"]) == {"d"}


def test_holm_counts_all_pairs_and_dimensions():
    rng = np.random.default_rng(5)
    scores = pd.concat(
        frame(model=m, prompt=range(30), score=rng.normal(size=30)).assign(dimension=d)
        for d in ("d", "e") for m in ("A", "B", "C")
    )  # fmt: skip
    differences = compare(scores, ("d", "e"))[1]
    smallest = differences.loc[differences["p"].idxmin()]
    assert len(differences) == 6
    assert smallest["p_holm"] == pytest.approx(min(6 * smallest["p"], 1.0))
