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


S1, BOB = ("s1", "ann", 3.0), ("s1", "bob", 3.0)
OFF_SCALE = "score that is not a whole number from 1 to 5"
CASES = {
    "good": ([rating(), rating(rater="bob")], {}, [S1, BOB], {}),
    "off the scale": (
        [rating(), *(rating(rater=f"r{s}", score=s) for s in (0.0, 6.0, 2.5, 1e9, math.nan))],
        {},
        [S1],
        {OFF_SCALE: 4, "rating without a score": 1},
    ),
    "fractions": (
        [rating(score=0.25), rating(rater="bob", score=1.25)],
        {"whole": False, "scale": (0.0, 1.0)},
        [("s1", "ann", 0.25)],
        {"score that is not a number from 0 to 1": 1},
    ),
    "duplicates": (
        [rating(), rating(), rating(), rating(rater="bob")],
        {},
        [S1, BOB],
        {"duplicate rating": 2},
    ),
    "last": (
        [rating(score=5.0), rating(score=2.0), rating(score=5.0), rating(score=3.0)],
        {},
        [S1],
        {"contradictory ratings": 1},
    ),
    "mean": (
        [rating(score=5.0), rating(score=5.0), rating(score=2.0)],
        {"rules": RaterRules(contradictions="mean")},
        [("s1", "ann", 4.0)],
        {"contradictory ratings": 1},
    ),
    "there and back": (
        [rating(), rating(score=4.0), rating()],
        {},
        [S1],
        {"contradictory ratings": 1},
    ),
    "withdrawn": (
        [rating(), rating(score=None, reason="broken"), rating(rater="bob")],
        {},
        [BOB],
        {"rating withdrawn later": 1, "rating without a score": 1},
    ),
    "given later": (
        [rating(score=None, reason="late"), rating()],
        {},
        [S1],
        {"record without a score before a later one": 1},
    ),
    "dimension and raters": (
        [rating(), rating(rater="bob"), rating(dimension="colour")],
        {"rules": RaterRules(exclude_raters=("bob", "zoe"))},
        [S1],
        {
            "excluded rater without a rating": 1,
            "rating of an excluded rater": 1,
            "unknown dimension": 1,
        },
    ),
    "unknown model": (
        [rating(), rating(sample="s3", model="Z")],
        {"rules": RaterRules(models=("A", "B"))},
        [S1],
        {"unknown model": 1, "model without a rating": 1},
    ),
    "names": (
        [rating(), rating(rater="b", model=""), rating(rater="c", model="B")],
        {},
        [S1],
        {
            "rating that names no model or prompt": 1,
            "sample with another model or prompt than before": 1,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_rating_is_used_or_reported(case):
    ratings, changes, wanted, findings = CASES[case]
    table = check_ratings(ratings, dataclasses.replace(SETTINGS, **changes))
    assert used(table) == wanted and found(table) == findings
    assert table.received == len(ratings) == len(wanted) + table.set_aside
    assert set(table.table["cluster"]) == {"p1"}


def test_contradictions_can_be_refused():
    settings = dataclasses.replace(SETTINGS, rules=RaterRules(contradictions="refuse"))
    with pytest.raises(UserError, match="1 contradictory ratings"):
        check_ratings([rating(score=5.0), rating(score=2.0)], settings)


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
    gone = Sample(sample="s1", model="A", prompt="p1", video="gone.mp4")
    table = check_ratings([rating()], SETTINGS, dataclasses.replace(LISTED, samples=(gone,)))
    assert used(table) == [S1] and found(table) == {"missing video": 1}


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
