"""Aggregation of ratings: plain means, protocol, raters, findings, JSON."""

import json

import numpy as np
import pytest

from longtake.evaluation.model_comparison import ComparisonSettings
from longtake.evaluation.mos import MosSettings, aggregate_mos, video_scores
from longtake.evaluation.rating_checks import CheckSettings, check_ratings
from longtake.evaluation.records import Rating
from longtake.evaluation.samples import SampleList
from longtake.evaluation.simulated_raters import (
    SimulatedRater,
    SimulatedStudy,
    rater_pool,
    simulate_ratings,
    simulated_samples,
)
from longtake.runtime.files import to_plain

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


def test_a_video_is_the_mean_of_all_involved_ratings_and_a_model_of_its_videos():
    # Video 1: five ratings after a dispute. Video 2: three. Videos weigh the same.
    ratings = [rating("v1", f"r{i}", s, prompt="p1") for i, s in enumerate((1.0, 5, 3, 4, 5))]
    ratings += [rating("v2", f"r{i}", s, prompt="p2") for i, s in enumerate((2.0, 2, 3))]
    table = checked(ratings)
    scores = video_scores(table.table).set_index("sample")
    assert scores["score"].to_dict() == {"v1": pytest.approx(3.6), "v2": pytest.approx(7 / 3)}
    assert scores["n_ratings"].to_dict() == {"v1": 5, "v2": 3}
    result = aggregate_mos(table, settings())
    assert result.comparison.mean_of("overall", "A").mean == pytest.approx((3.6 + 7 / 3) / 2)


def test_simulated_raters_are_recovered():
    study = make_study(raters=(*rater_pool(7), SimulatedRater(name="harsh", bias=-1.0)))
    result = aggregate_mos(checked(simulate_ratings(study, seed=1)), settings())
    for dimension in DIMENSIONS:
        (found,) = (d for d in result.comparison.differences if d.dimension == dimension)
        assert found.different and (found.better, found.worse) == ("A", "B")
        assert result.comparison.tie_groups[dimension] == (("A",), ("B",))
        assert 0.3 < result.agreement[dimension].alpha < 0.9
        profiles = {r.rater: r for r in result.raters if r.dimension == dimension}
        assert min(profiles, key=lambda name: profiles[name].bias) == "harsh"
        assert profiles["harsh"].bias < -0.6
        # Free of rater bias, the difference of the models is the same.
        free = result.bias_free["motion_quality", "A"] - result.bias_free["motion_quality", "B"]
        assert free == pytest.approx(0.8, abs=0.3)
    status = result.protocol
    assert status.states["waiting"] == status.states["escalated"] == status.still_needed == 0
    assert status.decided == 80
    assert status.budget_factor == pytest.approx(1 + 2 / 3 * status.escalated / 80)
    per_video = result.n_ratings / 2 / 80
    assert per_video == pytest.approx(3 * status.budget_factor)


def test_a_rater_who_always_answers_three_is_reported_and_harmless():
    lazy = SimulatedRater(name="lazy", constant=3)
    study = make_study(raters=(*rater_pool(6), lazy))
    result = aggregate_mos(checked(simulate_ratings(study)), settings())
    (finding,) = [f for f in result.findings if f.kind == "rater with one answer only"]
    assert finding.count == 2 and all(item.startswith("lazy: 3") for item in finding.items)
    profile = next(r for r in result.raters if r.rater == "lazy")
    assert np.isnan(profile.rest_correlation)
    assert profile.inconsistency > np.median([r.inconsistency for r in result.raters])
    assert result.comparison.differences[0].better == "A"


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
    cell = result.comparison.mean_of("motion_quality", "A")
    assert np.isnan(cell.mean) and cell.n_samples == 0


def test_an_unbalanced_design_is_reported():
    ratings = [
        rating("v1", "r", 3.0, prompt="p1"),
        rating("v2", "r", 3.0, prompt="p2"),
        rating("v3", "r", 3.0, model="B", prompt="p1"),
    ]
    found = {f.kind: f.items for f in aggregate_mos(checked(ratings), settings()).findings}
    assert found["model without a rated video of a prompt"] == ("B: p2",)


def test_the_record_is_json_and_names_every_option():
    result = aggregate_mos(checked(simulate_ratings(make_study())), settings())
    record = json.loads(json.dumps(to_plain(result.as_record()), allow_nan=False))
    assert [option["key"] for option in record["options"]] == list("abcdefg")
    assert record["options"][0]["value"] == "range of the first 3 scores >= 2"
    assert {"mean", "ci_low", "n_samples", "bias_free"} <= record["means"][0].keys()
    assert record["settings"]["protocol"]["threshold"] == 2.0
    assert record["protocol"]["states"].keys() == {"waiting", "agreed", "escalated", "resolved"}


def test_the_same_ratings_in_another_order_give_the_same_means():
    ratings = simulate_ratings(make_study())
    again = list(reversed(ratings))
    first, second = (aggregate_mos(checked(r), settings()).comparison for r in (ratings, again))
    for cell in first.means:
        assert second.mean_of(cell.dimension, cell.model).mean == pytest.approx(cell.mean)
