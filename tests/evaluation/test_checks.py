"""Every rating is used or reported: repeats, strangers, scales, constant raters."""

import dataclasses
import math
from pathlib import Path

import pytest

from longtake.evaluation.checks import CheckSettings, RaterRules, check_ratings
from longtake.evaluation.ratings import Rating, Sample, SampleList
from longtake.runtime.errors import UserError

SETTINGS = CheckSettings(dimensions=("overall",))
LISTED = SampleList(
    samples=(
        Sample(sample="s1", model="A", prompt="p1"),
        Sample(sample="s2", model="B", prompt="p1", cluster="image"),
    ),
    folder=Path("/nowhere"),
)


def rating(sample="s1", rater="ann", score=3.0, **fields):
    named = {"model": "A", "prompt": "p1", "dimension": "overall"} | fields
    return Rating(sample=sample, rater=rater, score=score, **named)


def found(table):
    return {finding.kind: len(finding.items) for finding in table.findings}


def used(table):
    rows = table.table
    return list(zip(rows["sample"], rows["rater"], rows["score"], strict=True))


def test_good_ratings_pass_in_order_without_findings():
    ratings = [rating(rater=r, score=s) for r, s in (("b", 1.0), ("a", 5.0), ("c", 3.0))]
    table = check_ratings(ratings, SETTINGS)
    assert used(table) == [("s1", "b", 1.0), ("s1", "a", 5.0), ("s1", "c", 3.0)]
    assert (table.findings, table.set_aside, table.received) == ((), 0, 3)
    assert table.table["cluster"].tolist() == ["p1"] * 3


@pytest.mark.parametrize("score", [0.0, 6.0, 2.5, -1.0, 1e9])
def test_scores_off_the_scale_are_set_aside(score):
    table = check_ratings([rating(), rating(rater="bob", score=score)], SETTINGS)
    assert used(table) == [("s1", "ann", 3.0)] and table.set_aside == 1
    assert found(table) == {"score that is not a whole number from 1 to 5": 1}


def test_a_scale_without_whole_numbers():
    settings = CheckSettings(dimensions=("overall",), whole=False, scale=(0.0, 1.0))
    table = check_ratings([rating(score=0.25), rating(rater="b", score=1.25)], settings)
    assert used(table) == [("s1", "ann", 0.25)]


def test_missing_scores_are_counted_with_their_reason():
    table = check_ratings([rating(), rating(rater="bob", score=None, reason="broken")], SETTINGS)
    (finding,) = table.findings
    assert (finding.kind, finding.effect) == ("rating without a score", "unscored")
    assert finding.items == ("bob on overall of s1: broken",)


def test_duplicates_count_once():
    table = check_ratings([rating(), rating(), rating(), rating(rater="bob")], SETTINGS)
    assert used(table) == [("s1", "ann", 3.0), ("s1", "bob", 3.0)]
    assert found(table) == {"duplicate rating": 2}


@pytest.mark.parametrize(("policy", "score"), [("last", 2.0), ("mean", 4.0)])
def test_contradictions_follow_the_policy_and_are_reported(policy, score):
    settings = dataclasses.replace(SETTINGS, rules=RaterRules(contradictions=policy))
    ratings = [rating(score=5.0), rating(score=5.0), rating(rater="b"), rating(score=2.0)]
    if policy == "mean":
        ratings[3] = rating(score=2.0)
        score = 4.0  # of 5, 5 and 2
    table = check_ratings(ratings, settings)
    assert sorted(used(table)) == [("s1", "ann", score), ("s1", "b", 3.0)]
    (finding,) = table.findings
    assert finding.items == ("ann on overall of s1: 5, 5, 2",)


def test_going_back_to_an_earlier_score_is_no_duplicate():
    table = check_ratings([rating(score=s) for s in (3.0, 4.0, 3.0)], SETTINGS)
    assert used(table) == [("s1", "ann", 3.0)]
    assert found(table) == {"contradictory ratings": 1}


def test_contradictions_can_be_refused():
    settings = dataclasses.replace(SETTINGS, rules=RaterRules(contradictions="refuse"))
    with pytest.raises(UserError, match="1 contradictory ratings"):
        check_ratings([rating(score=5.0), rating(score=2.0)], settings)
    assert check_ratings([rating(), rating()], settings).set_aside == 1


def test_of_a_score_and_no_score_the_later_counts():
    bob = rating(rater="bob")
    table = check_ratings([rating(), rating(score=None, reason="broken"), bob], SETTINGS)
    assert used(table) == [("s1", "bob", 3.0)]
    assert found(table) == {"rating withdrawn later": 1, "rating without a score": 1}
    table = check_ratings([rating(score=None, reason="late"), rating(score=4.0), bob], SETTINGS)
    assert used(table) == [("s1", "ann", 4.0), ("s1", "bob", 3.0)]
    assert found(table) == {"record without a score before a later one": 1}


def test_unknown_dimensions_and_excluded_raters():
    settings = dataclasses.replace(SETTINGS, rules=RaterRules(exclude_raters=("bob", "zoe")))
    ratings = [rating(), rating(rater="bob"), rating(dimension="colour")]
    table = check_ratings(ratings, settings)
    assert used(table) == [("s1", "ann", 3.0)]
    assert found(table) == {
        "excluded rater without a rating": 1, "rating of an excluded rater": 1,
        "unknown dimension": 1,
    }  # fmt: skip


def test_the_list_of_samples_gives_the_names_and_shows_what_is_missing():
    ratings = [
        rating(model="", prompt=""),
        rating(sample="s9", model="", prompt=""),
        rating(sample="s2", model="C", prompt=""),
    ]
    table = check_ratings(ratings, SETTINGS, LISTED)
    assert used(table) == [("s1", "ann", 3.0)]
    assert table.table[["model", "prompt", "cluster"]].values.tolist() == [["A", "p1", "p1"]]
    assert found(table) == {
        "sample that is not in the list": 1,
        "rating that names another model than the list": 1,
        "model without a rating": 1,
        "sample without a rating": 1,
    }


def test_missing_videos_are_reported_and_their_ratings_used():
    listed = dataclasses.replace(
        LISTED, samples=(Sample(sample="s1", model="A", prompt="p1", video="gone.mp4"),)
    )
    table = check_ratings([rating()], SETTINGS, listed)
    assert used(table) == [("s1", "ann", 3.0)]
    assert found(table) == {"missing video": 1}


def test_unknown_models_are_set_aside():
    settings = dataclasses.replace(SETTINGS, rules=RaterRules(models=("A", "B")))
    ratings = [rating(), rating(sample="s3", model="Z")]
    table = check_ratings(ratings, settings)
    assert used(table) == [("s1", "ann", 3.0)]
    assert found(table) == {"unknown model": 1, "model without a rating": 1}
    assert "by Z" in table.findings[0].items[0]


def test_without_a_list_ratings_must_name_model_and_prompt_consistently():
    ratings = [rating(), rating(rater="b", model=""), rating(rater="c", model="B")]
    table = check_ratings(ratings, SETTINGS)
    assert used(table) == [("s1", "ann", 3.0)]
    assert found(table) == {
        "rating that names no model or prompt": 1,
        "sample with another model or prompt than before": 1,
    }


def test_a_prompt_has_one_cluster():
    ratings = [rating(cluster="i1"), rating(sample="s2", model="B", cluster="i2")]
    table = check_ratings(ratings, SETTINGS)
    assert table.table["cluster"].tolist() == ["i1", "i1"]
    assert found(table) == {"prompt in two clusters": 1}


def test_a_rater_who_always_answers_three_is_reported_and_kept():
    honest = [rating(f"s{i}", "ann", float(1 + i % 5), prompt=f"p{i}") for i in range(12)]
    lazy = [rating(f"s{i}", "bob", 3.0, prompt=f"p{i}") for i in range(12)]
    table = check_ratings(honest + lazy, SETTINGS)
    assert len(table.table) == 24
    (finding,) = table.findings
    assert finding.items == ("bob: 3 in all 12 ratings of overall",)


def test_nothing_left_is_an_error_that_says_why():
    with pytest.raises(UserError, match="rating without a score"):
        check_ratings([rating(score=None, reason="broken")], SETTINGS)
    with pytest.raises(UserError, match="none at all"):
        check_ratings([], SETTINGS)
    with pytest.raises(UserError, match="no rating is left"):
        check_ratings([rating(score=math.nan)], SETTINGS)


def test_used_and_set_aside_add_up_for_a_random_mess():
    import random

    rng = random.Random(0)
    ratings = [
        rating(
            f"s{rng.randrange(30)}",
            f"r{rng.randrange(6)}",
            rng.choice([1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 0.0, 2.5, None, math.nan]),
            model=rng.choice("AAAB"),
            dimension=rng.choice(["overall"] * 5 + ["other"]),
        )
        for _ in range(600)
    ]
    table = check_ratings(ratings, SETTINGS)
    assert table.set_aside + len(table.table) == 600
    one_by_one = [
        len(f.items) for f in table.findings
        if f.kind not in ("contradictory ratings", "rater with one answer only")
    ]  # fmt: skip
    repeats = sum(
        len(item.split(": ")[1].split(", ")) - 1
        for f in table.findings if f.kind == "contradictory ratings" for item in f.items
    )  # fmt: skip
    assert sum(one_by_one) + repeats == table.set_aside
    assert not table.table.duplicated(["sample", "dimension", "rater"]).any()
