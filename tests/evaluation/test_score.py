"""Scoring videos again: same numbers as in memory, resumed, honest about what is missing."""

import json

import pytest
import torch

from longtake.core.video import read_video, write_mp4
from longtake.evaluation.ratings import Sample, read_ratings, read_samples, write_samples
from longtake.evaluation.score import RewardScorer, rescore
from longtake.rewards.contract import VideoBatch
from longtake.rewards.registry import load_suite

NAMES = ("general", "motion_quality")


@pytest.fixture
def study(tmp_path):
    samples = []
    for i in range(3):
        frames = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(i))
        write_mp4(frames, tmp_path / f"{i}.mp4", fps=8)
        samples.append(
            Sample(sample=f"s{i}", model="AB"[i % 2], prompt=f"p{i}", caption="x", video=f"{i}.mp4")
        )
    return write_samples(tmp_path / "samples.csv", samples)


@pytest.fixture
def scorer():
    return RewardScorer(NAMES, device="cpu")


def test_scores_are_those_of_the_rewards(tmp_path, study, scorer):
    seen = []
    report = rescore(read_samples(study), scorer, tmp_path / "log.jsonl", seen.append)
    assert (report.scored, report.unscored, report.kept, seen) == (6, 0, 0, [1, 2, 3])
    ratings, _ = read_ratings([tmp_path / "log.jsonl"])
    frames, rate = read_video(tmp_path / "1.mp4")
    wanted = load_suite(dict.fromkeys(NAMES, 1.0)).score(
        VideoBatch(video=frames[None], prompts=["x"], fps=rate)
    )
    found = {r.dimension: r.score for r in ratings if r.sample == "s1"}
    assert found == dict(zip(NAMES, wanted.scores[:, 0].tolist(), strict=True))
    assert {(r.kind, r.rater, r.model) for r in ratings if r.sample == "s1"} == {
        ("automatic", scorer.name, "B")
    }
    assert all(len(r.provenance["video"]) == 64 and r.time for r in ratings)
    assert all(r.provenance["calibration"] == "" for r in ratings)


def test_an_interrupted_run_is_continued(tmp_path, study, scorer):
    log = tmp_path / "log.jsonl"
    samples = read_samples(study)

    def stop(finished):
        if finished == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rescore(samples, scorer, log, stop)
    with log.open("a") as file:  # and a torn line, as a kill leaves it
        file.write('{"sample": "s2", "dim')
    with pytest.warns(UserWarning, match="torn last line"):
        report = rescore(samples, scorer, log)
    assert (report.scored, report.kept) == (2, 4)
    ratings, _ = read_ratings([log])
    assert len({r.key for r in ratings}) == len(ratings) == 6
    again = rescore(samples, scorer, log)
    assert (again.scored, again.kept) == (0, 6)


def test_missing_and_broken_videos_are_records_without_a_score(tmp_path, study, scorer):
    (tmp_path / "0.mp4").unlink()
    (tmp_path / "1.mp4").write_bytes(b"not a video")
    log = tmp_path / "log.jsonl"
    report = rescore(read_samples(study), scorer, log)
    assert (report.scored, report.unscored) == (2, 4)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    reasons = {line["sample"]: line["reason"] for line in lines if line["score"] is None}
    assert "video not found" in reasons["s0"] and reasons["s1"]
    # A later call tries again.
    write_mp4(torch.rand(5, 3, 32, 32), tmp_path / "0.mp4", fps=8)
    assert rescore(read_samples(study), scorer, log).scored == 2
