"""The files of a study: lists and folders of videos, logs, sheets, and what is wrong with them."""

import json
import math

import pytest

from longtake.evaluation.gsb import read_answer
from longtake.evaluation.ratings import (
    Rating,
    Sample,
    append_ratings,
    import_ratings,
    rating_from_record,
    read_ratings,
    read_samples,
    read_score,
    write_samples,
)
from longtake.runtime.errors import UserError

DIMENSIONS = ("overall", "motion_quality")
SAMPLES = [
    Sample(sample="s1", model="A", prompt="p1", caption="a cat, asleep", video="v/1.mp4"),
    Sample(sample="s2", model="B", prompt="p1", cluster="img 1", image="i.png"),
]
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


def test_lists_of_samples_come_back(tmp_path):
    path = write_samples(tmp_path / "samples.csv", SAMPLES)
    listed = read_samples(path)
    assert list(listed.samples) == SAMPLES and listed.findings == ()
    assert listed.models == ("A", "B") and listed.folder == tmp_path
    assert listed.missing_videos() == {"s1": f"s1 (A): {tmp_path / 'v/1.mp4'}"}
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "1.mp4").write_bytes(b"x")
    assert listed.missing_videos() == {}
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({"sample": 0, "model": "A", "prompt": 0, "seed": 5}) + "\n")
    assert read_samples(path).samples == (Sample(sample="0", model="A", prompt="0"),)


def test_a_folder_of_videos_is_a_list(tmp_path):
    for model in ("wan", "veo"):
        (tmp_path / model).mkdir()
        for name in ("a cat.mp4", "a dog.webm", "notes.md", ".hidden.mp4"):
            (tmp_path / model / name).write_bytes(b"x")
    (tmp_path / "wan" / "a cat.txt").write_text("A cat sleeps.\n")
    listed = read_samples(tmp_path)
    assert listed.models == ("veo", "wan") and listed.missing_videos() == {}
    assert [(s.model, s.prompt, s.caption) for s in listed.samples] == [
        ("veo", "a cat", "a cat"), ("veo", "a dog", "a dog"),
        ("wan", "a cat", "A cat sleeps."), ("wan", "a dog", "a dog"),
    ]  # fmt: skip
    ids = [item.sample for item in listed.samples]
    assert len(set(ids)) == 4 and not any(word in "".join(ids) for word in ("wan", "veo", "cat"))
    (flat,) = {item.model for item in read_samples(tmp_path / "wan").samples}
    assert flat == "wan"


def test_incomplete_and_repeated_samples_are_reported(tmp_path):
    path = tmp_path / "samples.csv"
    path.write_text(
        "\ufeffsample,model,prompt\ns1,A,p1\ns1,B,p1\ns2,,p1\ns1,A,p1\n\ns4,A,p2\n",
        encoding="utf-8",
    )
    listed = read_samples(path)
    assert [item.sample for item in listed.samples] == ["s1", "s4"]
    assert {f.kind: f.items for f in listed.findings} == {
        "sample without id, model or prompt": ("samples.csv:4",),
        "sample listed twice with different contents": ("samples.csv:3: s1",),
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.csv", "sample,model\ns,A\n", "lacks prompt"),
        ("s.csv", "sample,model,prompt,model\ns,A,p,B\n", "names a column twice"),
        ("s.csv", "sample,model,prompt\n", "holds no sample"),
        ("s.csv", "sample,model,prompt\ns,A,p,extra\n", "line 2"),
        ("s.csv", 'sample,model,prompt\n"s,A', "cannot read the CSV"),
        ("s.txt", "x", "unknown format"),
        ("empty/x.md", "x", "holds no video"),
    ],
)
def test_unusable_lists_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_samples(path if path.parent == tmp_path else path.parent)


def test_a_log_comes_back_and_records_are_short(tmp_path):
    path = tmp_path / "r.jsonl"
    append_ratings(path, [FULL, PLAIN])
    assert read_ratings([path]) == ([FULL, PLAIN], ())
    assert PLAIN.as_record() == {
        "sample": "s2", "dimension": "overall", "rater": "bob", "score": None,
        "reason": "broken video",
    }  # fmt: skip


def test_whole_numbers_serve_as_ids():
    rating = rating_from_record({"sample": 0, "dimension": "d", "rater": 7, "score": "3"})
    assert rating.key == ("0", "d", "7") and rating.score == 3.0


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "no score given"), ("N/A", "rater wrote N/A"), (" na ", "na"), (math.nan, "is nan"),
     ("-inf", "is -inf")],
)  # fmt: skip
def test_no_score_has_a_reason(value, reason):
    score, why = read_score(value)
    assert score is None and reason in why
    record = {"sample": "s", "dimension": "d", "rater": "r", "score": value}
    assert reason in rating_from_record(record).reason


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"sample": ""}, "sample"),
        ({"dimension": ["d"]}, "dimension"),
        ({"rater": True}, "rater"),
        ({"score": "good"}, "score"),
        ({"score": True}, "score"),
        ({"kind": "alien"}, "kind"),
        ({"provenance": "x"}, "provenance"),
    ],
)
def test_a_record_that_is_no_rating_names_its_field(change, word):
    record = {"sample": "s", "dimension": "d", "rater": "r", "score": 3} | change
    with pytest.raises(ValueError, match=f"`{word}`"):
        rating_from_record(record)


def test_a_log_reports_records_that_are_no_ratings(tmp_path):
    path = tmp_path / "r.jsonl"
    append_ratings(path, [FULL])
    with path.open("a") as file:
        file.write('{"sample": "s", "dimension": "d", "rater": "r"}\n{"sample": "s"')
    with pytest.warns(UserWarning, match="torn last line"):
        ratings, (finding,) = read_ratings([path])
    assert ratings == [FULL]
    assert finding.items == ("r.jsonl:2: `score` is missing; write null and a `reason` for no "
                             "score",)  # fmt: skip


def sheet(tmp_path, text):
    path = tmp_path / "sheet.csv"
    path.write_text(text)
    return [path]


def test_a_long_sheet(tmp_path):
    paths = sheet(
        tmp_path,
        "sample,dimension,rater,score,model,prompt,note\n"
        "s1,overall,ann,4,A,p1,x\ns1,overall,bob,5.0,A,p1,\n",
    )
    ratings, findings = read_ratings(paths, DIMENSIONS)
    assert [(r.rater, r.score, r.model, r.prompt) for r in ratings] == [
        ("ann", 4.0, "A", "p1"), ("bob", 5.0, "A", "p1"),
    ]  # fmt: skip
    assert findings == ()


def test_a_wide_sheet_with_gaps(tmp_path):
    paths = sheet(
        tmp_path,
        "sample,rater,caption,motion_quality,overall\n"
        's1,ann,"a cat, asleep",3,4\ns2,ann,x,,n/a\ns3,ann,x,good,2\n',
    )
    ratings, findings = read_ratings(paths, DIMENSIONS)
    assert [(r.sample, r.dimension, r.score) for r in ratings] == [
        ("s1", "overall", 4.0), ("s1", "motion_quality", 3.0), ("s2", "overall", None),
        ("s3", "overall", 2.0),
    ]  # fmt: skip
    assert {f.kind: f.items for f in findings} == {
        "empty cell": ("sheet.csv:3, motion_quality",),
        "record that is not a rating": (
            "sheet.csv:4, motion_quality: `score` is 'good', expected a number",
        ),
    }


def test_the_rater_can_be_given_beside_the_sheet(tmp_path):
    paths = sheet(tmp_path, "sample,overall\ns1,4\n")
    assert read_ratings(paths, DIMENSIONS, rater="cy")[0][0].rater == "cy"
    paths = sheet(tmp_path, "sample,rater,overall\ns1,,4\ns2,bob,3\n")
    assert [r.rater for r in read_ratings(paths, DIMENSIONS, rater="cy")[0]] == ["cy", "bob"]
    ratings, (finding,) = read_ratings(paths, DIMENSIONS)
    assert [r.rater for r in ratings] == ["bob"] and "`rater`" in finding.items[0]


def test_answers_to_pairs(tmp_path):
    paths = sheet(tmp_path, "sample,rater,overall\np1,a,Left\np2,a,same\np3,a,right\np4,a,5\n")
    ratings, (finding,) = read_ratings(paths, DIMENSIONS, read_answer)
    assert [r.score for r in ratings] == [1.0, 0.0, -1.0]
    assert "left, same, right" in finding.items[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.csv", "sample,rater,quality\ns,r,3\n", "no column of scores"),
        ("s.csv", "video,rater,overall\ns,r,3\n", "lacks sample"),
        ("s.xlsx", "x", "unknown format"),
        ("s.jsonl", "[1]\n{}\n", "not a JSON object"),
    ],
)
def test_unusable_ratings_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_ratings([tmp_path / name], DIMENSIONS)


def test_a_correction_is_appended_and_reported(tmp_path):
    log = tmp_path / "log.jsonl"
    text = "sample,rater,overall\ns0,ann,2\ns1,ann,4\n"
    import_ratings(*sheet(tmp_path, text), log, ("overall",))
    report = import_ratings(*sheet(tmp_path, text.replace(",2", ",3")), log, ("overall",))
    assert (report.added, report.present) == (1, 1)
    assert report.findings[0].items == ("ann on overall of s0: 3.0, before 2.0",)
    assert [r.score for r in read_ratings([log])[0]] == [2.0, 4.0, 3.0]


def test_a_file_without_an_answer_is_reported(tmp_path):
    saved = tmp_path / "saved.jsonl"
    saved.write_bytes(b"")
    report = import_ratings(saved, tmp_path / "log.jsonl", ("overall",))
    assert report.added == 0
    assert [finding.kind for finding in report.findings] == ["file without an answer"]
