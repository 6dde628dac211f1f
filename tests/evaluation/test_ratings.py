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


def test_a_log_comes_back_and_records_are_short(tmp_path):
    path = tmp_path / "r.jsonl"
    append_ratings(path, [FULL, PLAIN])
    assert read_ratings([path]) == ([FULL, PLAIN], ())
    assert PLAIN.as_record() == {
        "sample": "s2", "dimension": "overall", "rater": "bob", "score": None,
        "reason": "broken video",
    }  # fmt: skip


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
        ({"score": "good"}, "score"),
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


def read_sheet(path):
    return read_ratings([path], DIMENSIONS)


def sheet(tmp_path, text):
    path = tmp_path / "sheet.csv"
    path.write_text(text)
    return [path]


SHEETS = {  # text, reader of cells, (sample, dimension, rater, score), words of the finding
    "long": (
        "sample,dimension,rater,score,note\ns1,overall,ann,4,x\ns1,overall,bob,5.0,\n",
        read_score,
        [("s1", "overall", "ann", 4.0), ("s1", "overall", "bob", 5.0)],
        "",
    ),
    "pairs": (
        "sample,rater,overall\np1,a,Left\np2,a,same\np3,a,right\np4,a,5\n",
        read_answer,
        [(f"p{i}", "overall", "a", score) for i, score in ((1, 1.0), (2, 0.0), (3, -1.0))],
        "left, same, right",
    ),
    "no rater": (
        "sample,rater,overall\ns1,,4\ns2,bob,3\n",
        read_score,
        [("s2", "overall", "bob", 3.0)],
        "`rater`",
    ),
}


@pytest.mark.parametrize("case", SHEETS)
def test_sheets(tmp_path, case):
    text, reader, wanted, words = SHEETS[case]
    ratings, findings = read_ratings(sheet(tmp_path, text), DIMENSIONS, reader)
    assert [(r.sample, r.dimension, r.rater, r.score) for r in ratings] == wanted
    assert len(findings) == bool(words) and all(words in f.items[0] for f in findings)
    given, _ = read_ratings(sheet(tmp_path, "sample,overall\ns1,4\n"), DIMENSIONS, rater="cy")
    assert given[0].rater == "cy"


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


REFUSED = {
    "column": (read_samples, "sample,model\ns,A\n", "lacks prompt"),
    "twice": (read_samples, "sample,model,prompt,model\ns,A,p,B\n", "names a column twice"),
    "empty": (read_samples, "sample,model,prompt\n", "holds no sample"),
    "extra": (read_samples, "sample,model,prompt\ns,A,p,extra\n", "line 2"),
    "torn": (read_samples, 'sample,model,prompt\n"s,A', "cannot read the CSV"),
    "scores": (read_sheet, "sample,rater,quality\ns,r,3\n", "no column of scores"),
    "sample": (read_sheet, "video,rater,overall\ns,r,3\n", "lacks sample"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_files_are_refused(tmp_path, case):
    read, text, message = REFUSED[case]
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read(path)
    for reader in (read_samples, read_sheet):
        with pytest.raises(UserError, match="unknown format"):
            reader(path.rename(tmp_path / "s.xlsx"))
        (tmp_path / "s.xlsx").rename(path)


def test_a_correction_is_appended_and_reported(tmp_path):
    log = tmp_path / "log.jsonl"
    text = "sample,rater,overall\ns0,ann,2\ns1,ann,4\n"
    import_ratings(*sheet(tmp_path, text), log, ("overall",))
    report = import_ratings(*sheet(tmp_path, text.replace(",2", ",3")), log, ("overall",))
    assert (report.added, report.present) == (1, 1)
    assert report.findings[0].items == ("ann on overall of s0: 3.0, before 2.0",)
    assert [r.score for r in read_ratings([log])[0]] == [2.0, 4.0, 3.0]
