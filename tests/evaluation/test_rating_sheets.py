"""Sheets that people fill in: long, wide, and filled in badly."""

import pytest

from longtake.evaluation.gsb import read_answer
from longtake.evaluation.rating_sheets import read_ratings
from longtake.runtime.errors import UserError

DIMENSIONS = ("overall", "motion_quality")


def write(tmp_path, text):
    path = tmp_path / "sheet.csv"
    path.write_text(text)
    return path


def test_a_long_sheet(tmp_path):
    path = write(
        tmp_path,
        "sample,dimension,rater,score,model,prompt,note\n"
        "s1,overall,ann,4,A,p1,x\ns1,overall,bob,5.0,A,p1,\n",
    )
    ratings, findings = read_ratings(path, DIMENSIONS)
    assert [(r.rater, r.score, r.model, r.prompt) for r in ratings] == [
        ("ann", 4.0, "A", "p1"), ("bob", 5.0, "A", "p1"),
    ]  # fmt: skip
    assert findings == ()


def test_a_wide_sheet_with_gaps(tmp_path):
    path = write(
        tmp_path,
        "sample,rater,caption,motion_quality,overall\n"
        's1,ann,"a cat, asleep",3,4\ns2,ann,x,,n/a\ns3,ann,x,good,2\n',
    )
    ratings, findings = read_ratings(path, DIMENSIONS)
    assert [(r.sample, r.dimension, r.score) for r in ratings] == [
        ("s1", "overall", 4.0), ("s1", "motion_quality", 3.0), ("s2", "overall", None),
        ("s3", "overall", 2.0),
    ]  # fmt: skip
    assert {f.kind: f.items for f in findings} == {
        "empty cell": ("sheet.csv:3, motion_quality",),
        "cell that is not a rating": (
            "sheet.csv:4, motion_quality: `score` is 'good', expected a number",
        ),
    }


def test_the_rater_can_be_given_beside_the_sheet(tmp_path):
    path = write(tmp_path, "sample,overall\ns1,4\n")
    assert read_ratings(path, DIMENSIONS, rater="cy")[0][0].rater == "cy"
    path = write(tmp_path, "sample,rater,overall\ns1,,4\ns2,bob,3\n")
    assert [r.rater for r in read_ratings(path, DIMENSIONS, rater="cy")[0]] == ["cy", "bob"]
    ratings, findings = read_ratings(path, DIMENSIONS)
    assert [r.rater for r in ratings] == ["bob"]
    assert "`rater`" in findings[0].items[0]


def test_answers_to_pairs(tmp_path):
    path = write(tmp_path, "sample,rater,overall\np1,ann,Left\np2,ann,same\np3,ann,right\np4,a,5\n")
    ratings, findings = read_ratings(path, DIMENSIONS, read_answer)
    assert [r.score for r in ratings] == [1.0, 0.0, -1.0]
    assert "left, same, right" in findings[0].items[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.csv", "sample,rater,quality\ns,r,3\n", "no column of scores"),
        ("s.csv", "video,rater,overall\ns,r,3\n", "lacks sample"),
        ("s.xlsx", "x", "unknown format"),
    ],
)
def test_unusable_sheets_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_ratings(tmp_path / name, DIMENSIONS)
