"""Aggregation of ratings: plain means, protocol, raters, findings, JSON; the merge with a judge."""

import numpy as np
import pandas as pd
import pytest

from longtake.evaluation.checks import CheckSettings, check_ratings
from longtake.evaluation.comparison import ComparisonSettings
from longtake.evaluation.mos import MosSettings, aggregate_mos, video_scores
from longtake.evaluation.mos_merge import MergeWeights, check_judge, merge_scores
from longtake.evaluation.ratings import Rating, SampleList
from longtake.runtime.errors import UserError
from longtake.sandbox.raters import (
    SimulatedRater,
    SimulatedStudy,
    rater_pool,
    simulate_ratings,
    simulated_samples,
)

DIMENSIONS = ("overall", "motion_quality")


def settings(**fields):
    return MosSettings(
        dimensions=DIMENSIONS, comparison=ComparisonSettings(resamples=500), **fields
    )


def checked(ratings, samples=None):
    return check_ratings(ratings, CheckSettings(dimensions=DIMENSIONS), samples)


def make_study(quality=None, **fields):
    truth = quality or {"A": 3.8, "B": 3.0}
    return SimulatedStudy(
        quality={m: dict.fromkeys(DIMENSIONS, q) for m, q in truth.items()},
        **({"raters": rater_pool(8), "num_prompts": 40} | fields),
    )


def rating(sample, rater, score, dimension="overall", model="A", prompt="p"):
    return Rating(
        sample=sample, rater=rater, score=score, dimension=dimension, model=model, prompt=prompt
    )


def cell(result, dimension, model):
    return result.means.set_index(["dimension", "model"]).loc[dimension, model]


def test_a_video_is_the_mean_of_all_involved_ratings_and_a_model_of_its_videos():
    # Video 1: five ratings after a dispute. Video 2: three. Videos weigh the same.
    ratings = [rating("v1", f"r{i}", s, prompt="p1") for i, s in enumerate((1.0, 5, 3, 4, 5))]
    ratings += [rating("v2", f"r{i}", s, prompt="p2") for i, s in enumerate((2.0, 2, 3))]
    table = checked(ratings)
    scores = video_scores(table.table).set_index("sample")
    assert scores["score"].to_dict() == {"v1": pytest.approx(3.6), "v2": pytest.approx(7 / 3)}
    assert scores["n_ratings"].to_dict() == {"v1": 5, "v2": 3}
    result = aggregate_mos(table, settings())
    assert cell(result, "overall", "A")["mean"] == pytest.approx((3.6 + 7 / 3) / 2)


def test_simulated_raters_are_recovered():
    study = make_study(raters=(*rater_pool(7), SimulatedRater(name="harsh", bias=-1.0)))
    result = aggregate_mos(checked(simulate_ratings(study, seed=1)), settings())
    for dimension in DIMENSIONS:
        rows = result.differences[result.differences["dimension"] == dimension]
        (row,) = rows.itertuples()
        assert row.different and (row.better, row.worse) == ("A", "B")
        assert 0.3 < result.agreement[dimension].alpha < 0.9
        own = result.raters[result.raters["dimension"] == dimension].set_index("rater")
        assert own["bias"].idxmin() == "harsh" and own["bias"].min() < -0.6
        # Free of rater bias, the difference of the models is the same.
        free = [cell(result, dimension, model)["bias_free"] for model in ("A", "B")]
        assert free[0] - free[1] == pytest.approx(0.8, abs=0.3)
    status = result.protocol
    assert status.states["waiting"] == status.states["escalated"] == status.still_needed == 0
    assert status.decided == 80
    assert status.budget_factor == pytest.approx(1 + 2 / 3 * status.escalated / 80)
    per_video = result.n_ratings / 2 / 80
    assert per_video == pytest.approx(3 * status.budget_factor)


def test_unfinished_videos_and_surplus_raters_are_reported():
    study = make_study()
    ratings = simulate_ratings(study)
    first = ratings[0]
    fewer = [r for r in ratings if (r.sample, r.rater) != (first.sample, first.rater)]
    extra = [
        rating("s00002", f"x{i}", 3.0, dimension=d, model="B", prompt="p0001")
        for i in range(3) for d in DIMENSIONS
    ]  # fmt: skip
    listed = SampleList(samples=tuple(simulated_samples(study)), folder=None)
    result = aggregate_mos(checked(fewer + extra, listed), settings(), samples=listed)
    found = {f.kind: f for f in result.findings}
    assert first.sample in found["video with fewer raters than the protocol asks"].items[0]
    assert found["video with more raters than the protocol asks"].items == ("s00002: 3 more",)
    assert result.protocol.still_needed > 0
    assert result.models == ("A", "B")


def test_a_dimension_without_ratings_is_reported():
    result = aggregate_mos(checked([rating("v", "r", 3.0)]), settings())
    assert {f.kind: f.items for f in result.findings}["dimension without a rating"] == (
        "motion_quality",
    )
    empty = cell(result, "motion_quality", "A")
    assert np.isnan(empty["mean"]) and empty["n_samples"] == 0


def video_means(model, dimension, mean, sd, n, prefix, seed=0):
    noise = np.random.default_rng(seed).normal(size=n)
    noise = (noise - noise.mean()) / noise.std()
    prompts = [f"{prefix}{i}" for i in range(n)]
    return pd.DataFrame(
        {
            "model": model, "dimension": dimension, "prompt": prompts, "cluster": prompts,
            "sample": prompts, "score": mean + sd * noise,
        }
    )  # fmt: skip


def merge(human, automatic, models=("A",), dimensions=("ta",), weights=None):
    return merge_scores(
        human,
        automatic,
        models,
        dimensions,
        weights or MergeWeights(),
        ComparisonSettings(resamples=4000),
    )


def test_formula_and_interval():
    human, automatic = (
        video_means("A", "ta", 3.6, 0.8, 500, "h"),
        video_means("A", "ta", 3.0, 0.6, 728, "a", 1),
    )
    merged, findings = merge(human, automatic)
    (row,) = merged.itertuples()
    assert row.merged == pytest.approx((2 * 3.6 + 3.0) / 3)
    # Independent prompts: the variances of the weighted means add up.
    error = np.sqrt((2 / 3) ** 2 * 0.8**2 / 500 + (1 / 3) ** 2 * 0.6**2 / 728)
    assert row.ci_high - row.ci_low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert (row.n_human, row.n_automatic, row.refused, findings) == (500, 728, "", ())
    (row,) = merge(human, automatic, weights=MergeWeights(human=1, automatic=3))[0].itertuples()
    assert row.merged == pytest.approx((3.6 + 9.0) / 4)


def test_the_same_size_and_seed_do_not_tie_the_two_sources_together():
    # Identical noise in both: with shared draws the errors would add up linearly.
    human, automatic = (
        video_means("A", "ta", 3.6, 0.8, 400, "h"),
        video_means("A", "ta", 3.0, 0.8, 400, "a"),
    )
    (row,) = merge(human, automatic)[0].itertuples()
    error = np.sqrt((2 / 3) ** 2 + (1 / 3) ** 2) * 0.8 / 20
    assert row.ci_high - row.ci_low == pytest.approx(2 * 1.96 * error, rel=0.07)


def test_refusals_have_reasons_and_no_number():
    human = pd.concat(
        [video_means(m, d, 3.5, 0.5, 20, "h") for m in "AB" for d in ("ta", "overall")]
    )
    automatic = pd.concat(
        [video_means("A", "ta", 3.0, 0.5, 20, "a"), video_means("C", "ta", 3.0, 0.5, 20, "a")]
    )
    cells, findings = merge(human, automatic, ("A", "B", "D"), ("ta", "overall"))
    reasons = {(c.dimension, c.model): c.refused for c in cells.itertuples()}
    assert reasons == {
        ("ta", "A"): "",
        ("ta", "B"): "the judge has not scored this model",
        ("ta", "D"): "no human ratings",
        ("overall", "A"): "no judge for this dimension",
        ("overall", "B"): "no judge for this dimension",
        ("overall", "D"): "no human ratings",
    }
    for row in cells.itertuples():
        assert np.isnan([row.merged, row.ci_low, row.ci_high]).any() == bool(row.refused)
    assert {f.kind: f.items for f in findings} == {"model that only the judge scored": ("C",)}


def judged(**fields):
    named = {"rater": "judge@1", "kind": "automatic", "provenance": {"calibration": "iso"}}
    return Rating(sample="s", dimension="ta", score=3.2, **(named | fields))


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([judged(), judged(provenance={})], "not calibrated"),
        ([judged(), judged(rater="judge@2")], "one judge"),
        ([judged(), judged(kind="human", rater="ann")], "one judge"),
        ([], "one judge"),
    ],
)
def test_only_one_calibrated_judge_is_accepted(ratings, message):
    check_judge([judged(), judged()])
    with pytest.raises(UserError, match=message):
        check_judge(ratings)
