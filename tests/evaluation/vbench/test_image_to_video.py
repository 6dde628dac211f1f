"""VBench 1.0 image-to-video: from the public code's result files to the total."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from longtake.commands.evaluate_vbench import vbench
from longtake.evaluation.vbench.aggregate import aggregate
from longtake.evaluation.vbench.compare import compare, read_side
from longtake.evaluation.vbench.result_files import read_results
from longtake.evaluation.vbench.submission import submit
from longtake.evaluation.vbench.suites import VBENCH1, VBENCH1_I2V, find_suite
from longtake.evaluation.vbench.totals import all_scores
from longtake.runtime.errors import UserError

VIDEOS = 5 * (246 + 109 + 246 + 246 + 355 + 355 + 246 + 109 + 763)
"""Results of a complete evaluation."""


def content(seed: int = 0, shift: float = 0.0) -> dict[str, list[Any]]:
    """One result file as the public code writes it, with the true number of results."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {}
    for name, dimension in VBENCH1_I2V.dimensions.items():
        entries = []
        for number in range(5 * dimension.prompts):
            value: float = float(np.clip(rng.uniform(0.6, 0.9) + shift, 0, 1)) * dimension.unit
            entry = {"video_path": f"/v/{name} {number // 5}-{number % 5}.mp4"}
            if name == "camera_motion":
                value = float(rng.random() < 0.4)
            if name == "background_consistency":
                entry["cnt_per_video"] = 16
            if name.startswith("i2v"):
                entry["image_path"] = "crop/1-1/x.jpg"
            entries.append({**entry, "video_results": value})
        score = float(np.mean([entry["video_results"] for entry in entries])) / dimension.unit
        kinds = [{"pan_left": 0.5, "static": float("nan")}] if name == "camera_motion" else []
        found[name] = [score, *kinds, entries]
    return found


def put(path: Path, made: dict[str, list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made), encoding="utf-8")
    return path


def test_the_public_file_is_read_and_totalled(tmp_path: Path) -> None:
    made = content()
    flickering = [0.9, [{"video_path": "/v/x-0.mp4", "video_results": 0.9}]]
    put(tmp_path / "run" / "all.json", made | {"temporal_flickering": flickering})
    found = read_results(VBENCH1_I2V, tmp_path / "run")
    assert not found.problems
    assert found.ignored == ["all.json: temporal_flickering, which no total uses"]
    scores = aggregate(found, resamples=200)
    assert scores.is_complete
    expected = all_scores(VBENCH1_I2V, {name: value[0] for name, value in made.items()})
    for name, line in scores.categories.items():
        assert line.score == pytest.approx(expected[name])
        assert line.interval is not None and line.interval.low < expected[name] < line.interval.high
    assert scores.categories["Total"].videos == VIDEOS
    assert scores.dimensions["camera_motion"].prompts == 763


def test_missing_dimensions_and_videos_give_no_total(tmp_path: Path) -> None:
    made = content()
    camera = made.pop("camera_motion")
    put(tmp_path / "a.json", made)
    lines = aggregate(read_results(VBENCH1_I2V, tmp_path), resamples=100).categories
    assert lines["Total"].score is None and "camera_motion" in lines["Total"].notes[0]
    assert lines["I2V"].score is None and lines["Quality"].score is not None
    camera[-1].pop()
    put(tmp_path / "camera" / "b.json", {"camera_motion": camera})
    scores = aggregate(read_results(VBENCH1_I2V, tmp_path), resamples=100)
    assert not scores.is_complete and scores.categories["Total"].score is None


def test_the_suites_are_not_taken_for_each_other(tmp_path: Path) -> None:
    put(tmp_path / "a.json", content())
    as_text = read_results(VBENCH1, tmp_path)
    assert any("i2v_subject" in problem for problem in as_text.problems)
    with pytest.raises(UserError, match="unknown suite"):
        find_suite("vbench1_i2v")  # no plan, no generation, no run: they would need the images


def test_the_commands_score_compare_and_pack(tmp_path: Path) -> None:
    for name, shift in (("a", 0.0), ("b", 0.05)):
        put(tmp_path / name / "all.json", content(1, shift))
    suite = ["--suite", "vbench1_i2v"]
    runner = CliRunner(env={"COLUMNS": "200"})
    done = runner.invoke(vbench, ["aggregate", str(tmp_path / "a"), *suite])
    assert done.exit_code == 0 and "VBench 1.0 image-to-video" in done.output
    out = tmp_path / "submission.zip"
    done = runner.invoke(vbench, ["submit", str(tmp_path / "a"), "--out", str(out), *suite])
    assert done.exit_code == 0, done.output
    with zipfile.ZipFile(out) as archive:
        packed = json.loads(archive.read("camera_motion/camera_motion_eval_results.json"))
    # The public aggregator takes the first entry of each list.
    assert packed["camera_motion"][0] == pytest.approx(content(1)["camera_motion"][0])
    assert submit(VBENCH1_I2V, out, tmp_path / "again.zip").is_complete
    sides = [read_side(VBENCH1_I2V, str(tmp_path / name)) for name in "ab"]
    lines = {line.name: line for line in compare(VBENCH1_I2V, *sides, resamples=200).lines}
    assert lines["Total"].second > lines["Total"].first
    done = runner.invoke(vbench, ["plan", "--source", "x", "--out", "y", *suite])
    assert done.exit_code != 0
