"""The commands of the judge: help without torch, the report without torch, and errors."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from longtake.commands.evaluate_judge import judge
from longtake.evaluation.judge.data import JUDGED
from longtake.evaluation.ratings import Rating, append_ratings
from longtake.runtime.errors import UserError


def run(*arguments):
    return CliRunner().invoke(judge, [str(a) for a in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    rows, scores = [], []
    for p in range(12):
        for model in "AB":
            path, quality = f"{p}{model}.mp4", rng.uniform(1.5, 4.5)
            for dimension in JUDGED:
                for rater in range(3):
                    rating = int(np.clip(round(quality + rng.normal(0, 0.4)), 1, 5))
                    rows.append((path, f"prompt {p}", dimension, rating, f"r{rater}", model))
                scores.append(
                    Rating(
                        sample=path,
                        dimension=dimension,
                        rater="judge@0",
                        score=quality,
                        kind="automatic",
                        provenance={"calibration": "x"},
                    )
                )
    with (tmp_path / "ratings.csv").open("w", newline="") as file:
        header = ("path", "prompt", "dimension", "rating", "rater", "model")
        csv.writer(file).writerows([header, *rows])
    append_ratings(tmp_path / "scores.jsonl", scores)
    return tmp_path


@pytest.mark.parametrize("command", ["train", "calibrate", "score", "report"])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\n"
        "from longtake.commands.evaluate_judge import judge\n"
        f"try:\n    judge(['{command}', '--help'])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "print('HEAVY', sorted({'torch', 'numpy', 'scipy'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_report_needs_no_torch(files):
    code = (
        "import sys\n"
        "from longtake.commands.evaluate_judge import judge\n"
        f"try:\n    judge(['report', '--ratings', '{files}/ratings.csv', '--scores', "
        f"'{files}/scores.jsonl', '--resamples', '100', '--json'])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "print('TORCH', 'torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "TORCH False" in done.stderr, done.stderr
    card = json.loads(done.stdout)
    found = next(m for m in card["measurements"] if m["level"] == "sample")
    assert found["value"] > 0.9 and found["n"] == 24 and found["ci_low"] < found["value"]
    assert len(card["inputs"]) == 2  # digests of what it was computed from


def test_report_prints_and_writes(files):
    done = run(
        "report",
        "--ratings",
        files / "ratings.csv",
        "--scores",
        files / "scores.jsonl",
        "--resamples",
        100,
        "--output-dir",
        files / "card",
    )
    assert done.exit_code == 0, done.output
    assert "Agreement of judge@0" in done.output and "not checked" in done.output
    names = {path.name for path in (files / "card").iterdir()}
    assert {"judge_report.json", "judge_report_measurements.csv"} <= names


def test_errors_name_what_is_missing(files):
    done = run("train", "--output-dir", files / "run")
    assert isinstance(done.exception, UserError) and "base is not set" in str(done.exception)
    done = run("report", "--ratings", files / "ratings.csv", "--scores", files / "none.jsonl")
    assert isinstance(done.exception, UserError) and "none.jsonl" in str(done.exception)
    done = run("score", files, "--samples", files / "ratings.csv", "--output-dir", files / "x")
    assert isinstance(done.exception, UserError)
