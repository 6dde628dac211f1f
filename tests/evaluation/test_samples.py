"""Lists of samples: round trip, damage, missing videos."""

import json

import pytest

from longtake.evaluation.samples import Sample, read_samples, write_samples
from longtake.runtime.errors import UserError

SAMPLES = [
    Sample(sample="s1", model="A", prompt="p1", caption="a cat, asleep", video="v/1.mp4"),
    Sample(sample="s2", model="B", prompt="p1", cluster="img 1", image="i.png"),
]


def test_csv_round_trip(tmp_path):
    path = write_samples(tmp_path / "samples.csv", SAMPLES)
    found = read_samples(path)
    assert list(found.samples) == SAMPLES and found.findings == ()
    assert found.models == ("A", "B") and found.folder == tmp_path


def test_jsonl_is_read_with_numbers_as_ids(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({"sample": 0, "model": "A", "prompt": 0, "seed": 5}) + "\n")
    assert read_samples(path).samples == (Sample(sample="0", model="A", prompt="0"),)


def test_missing_videos_are_named(tmp_path):
    path = write_samples(tmp_path / "samples.csv", SAMPLES)
    assert read_samples(path).missing_videos() == [f"s1 (A): {tmp_path / 'v/1.mp4'}"]
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "1.mp4").write_bytes(b"x")
    assert read_samples(path).missing_videos() == []


def test_incomplete_and_repeated_rows_are_reported(tmp_path):
    path = tmp_path / "samples.csv"
    path.write_text(
        "﻿sample,model,prompt\ns1,A,p1\ns1,B,p1\ns2,,p1\ns1,A,p1\ns3,A,p,extra\n\ns4,A,p2\n",
        encoding="utf-8",
    )
    found = read_samples(path)
    assert [item.sample for item in found.samples] == ["s1", "s4"]
    assert {f.kind: f.items for f in found.findings} == {
        "row with too many cells": ("samples.csv:6: 4 cells; put texts with commas in quotes",),
        "sample without id, model or prompt": ("samples.csv:4",),
        "sample listed twice with different contents": ("samples.csv:3: s1",),
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.csv", "sample,model\ns,A\n", "lacks prompt"),
        ("s.csv", "sample,model,prompt,model\ns,A,p,B\n", "names a column twice"),
        ("s.csv", "sample,model,prompt\n", "holds no sample"),
        ("s.csv", "", "lacks sample"),
        ("s.csv", 'sample,model,prompt\n"s,A', "cannot read the CSV"),
        ("s.txt", "x", "unknown format"),
    ],
)
def test_unusable_lists_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_samples(tmp_path / name)


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_samples(tmp_path / "absent.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="cannot read"):
        read_samples(tmp_path / "b.csv")
