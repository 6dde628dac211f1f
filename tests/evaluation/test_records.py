"""Ratings as records: round trip, and every way in which one can be wrong."""

import math

import pytest

from longtake.evaluation.records import (
    Rating,
    append_ratings,
    rating_from_record,
    read_log,
    read_score,
)

FULL = Rating(
    sample="s1",
    dimension="overall",
    rater="ann",
    score=4.0,
    kind="automatic",
    model="A",
    prompt="p1",
    cluster="image1",
    time="2026-01-02T03:04:05",
    provenance={"video": "abc", "calibration": "iso-1"},
)
PLAIN = Rating(sample="s2", dimension="overall", rater="bob", score=None, reason="broken video")


def test_round_trip(tmp_path):
    path = tmp_path / "r.jsonl"
    assert append_ratings(path, [FULL, PLAIN]) == 2
    ratings, findings = read_log(path)
    assert ratings == [FULL, PLAIN] and findings == ()


def test_records_are_short():
    assert PLAIN.as_record() == {
        "sample": "s2", "dimension": "overall", "rater": "bob", "score": None,
        "reason": "broken video",
    }  # fmt: skip


def test_whole_numbers_serve_as_ids():
    rating = rating_from_record({"sample": 0, "dimension": "d", "rater": 7, "score": "3"})
    assert rating.key == ("0", "d", "7") and rating.score == 3.0


@pytest.mark.parametrize("value", [math.nan, math.inf, "nan", "-inf"])
def test_scores_that_are_not_finite_are_missing_with_a_reason(value):
    rating = rating_from_record({"sample": "s", "dimension": "d", "rater": "r", "score": value})
    assert rating.score is None and "the score is" in rating.reason


@pytest.mark.parametrize(
    ("value", "reason"), [(None, "no score given"), ("N/A", "rater wrote N/A"), (" na ", "na")]
)
def test_no_score_has_a_reason(value, reason):
    score, found = read_score(value)
    assert score is None and reason in found


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"sample": ""}, "sample"),
        ({"sample": None}, "sample"),
        ({"dimension": ["d"]}, "dimension"),
        ({"rater": True}, "rater"),
        ({"score": "good"}, "score"),
        ({"score": True}, "score"),
        ({"score": [3]}, "score"),
        ({"kind": "alien"}, "kind"),
        ({"provenance": "x"}, "provenance"),
        ({"model": {}}, "model"),
    ],
)
def test_wrong_fields_are_named(tmp_path, change, word):
    record = {"sample": "s", "dimension": "d", "rater": "r", "score": 3} | change
    with pytest.raises(ValueError, match=f"`{word}`"):
        rating_from_record(record)


def test_a_log_reports_records_that_are_no_ratings(tmp_path):
    path = tmp_path / "r.jsonl"
    append_ratings(path, [FULL])
    with path.open("a") as file:
        file.write('{"sample": "s", "dimension": "d", "rater": "r"}\n{"sample": "s"')
    ratings, findings = read_log(path)
    assert ratings == [FULL]
    assert [(f.kind, f.count) for f in findings] == [
        ("torn last line", 1), ("record that is not a rating", 1),
    ]  # fmt: skip
    assert "`score` is missing" in findings[1].items[0]
