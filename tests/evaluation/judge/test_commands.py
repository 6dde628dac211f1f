"""From ratings to the report card by the commands alone; what they import, and what they refuse."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from longtake.commands.evaluate_judge import judge
from longtake.evaluation.judge.data import JUDGED
from longtake.evaluation.judge.directory import CALIBRATION_FILE, read_judge
from longtake.evaluation.ratings import Rating, Sample, append_ratings, write_samples
from longtake.runtime.errors import UserError


def run(*arguments):
    done = CliRunner().invoke(judge, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if done.exit_code:
        raise done.exception
    return done.output


def test_train_calibrate_score_report(study, tmp_path):
    out = tmp_path / "run"
    changes = [
        "method=full",
        "precision=float32",
        "learning_rate=3e-3",
        "updates=30",
        "eval_every=15",
        "batch_clips=8",
        "micro_batch=8",
        "data.test_share=0.3",
        "data.calibration_share=0.35",
        "seed=4",
    ]
    given = ["--base", study.base, "--ratings", study.ratings, "--samples", study.samples]
    sets = [part for change in changes for part in ("--set", change)]
    options = ["--output-dir", out, *given, "--held-out-model", "C", *sets, "--device", "cpu"]
    assert "test_new_models" in run("train", *options, "--dry-run") and not out.exists()
    assert str(out / "judge") in run("train", *options)
    assert not (out / "judge" / CALIBRATION_FILE).exists()  # too few clips for the default limits

    raw = ["--ratings", study.ratings, "--samples", study.samples, "--output-dir", tmp_path / "raw"]
    text = run("calibrate", out / "judge", *raw, "--set", "min_points=20", "--device", "cpu")
    assert "Calibration of judge@" in text
    assert read_judge(out / "judge").calibration is not None

    scores = tmp_path / "scores"
    listed = ["--samples", out / "test.csv", "--output-dir", scores, "--device", "cpu"]
    text = run("score", out / "judge", *listed, "--control", "all")
    assert "shuffled_prompt:" in text and " 0 without a score" in text
    text = run(
        "report",
        *("--ratings", study.ratings, "--samples", out / "test.csv"),
        *("--scores", scores / "scores.jsonl", "--controls", scores / "controls.jsonl"),
        *("--judge", out / "judge", "--set", "resamples=100"),
    )
    assert "none of" in text and "shuffled_prompt" in text and "within prompts" in text


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    listed, ratings, scores = [], [], []
    for p in range(12):
        for model in "AB":
            name, quality = f"{p}{model}", rng.uniform(1.5, 4.5)
            text = f"prompt {p}"
            listed.append(
                Sample(sample=name, model=model, prompt=text, caption=text, video=f"{name}.mp4")
            )
            for dimension in JUDGED:
                given = {"sample": name, "dimension": dimension}
                for rater in range(3):
                    score = float(np.clip(round(quality + rng.normal(0, 0.4)), 1, 5))
                    ratings.append(Rating(**given, rater=f"r{rater}", score=score))
                made = {"kind": "automatic", "provenance": {"calibration": "x"}}
                scores.append(Rating(**given, rater="judge@0", score=quality, **made))
    write_samples(tmp_path / "samples.csv", listed)
    append_ratings(tmp_path / "ratings.jsonl", ratings)
    append_ratings(tmp_path / "scores.jsonl", scores)
    return tmp_path


def report_of(folder):
    names = {"ratings": "ratings.jsonl", "samples": "samples.csv", "scores": "scores.jsonl"}
    options = [part for name, file in names.items() for part in (f"--{name}", f"{folder}/{file}")]
    return ["report", *options, "--set", "resamples=100"]


def test_the_report_needs_no_torch_and_help_nothing_heavy(files):
    report = report_of(files)
    code = (
        "import sys\n"
        "from longtake.commands.evaluate_judge import judge\n"
        f"try:\n    judge({[*report, '--help']})\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'scipy'} & sys.modules.keys()\n"
        "print('HEAVY', sorted(heavy), file=sys.stderr)\n"
        f"try:\n    judge({[*report, '--json']})\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "print('TORCH', 'torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in done.stderr and "TORCH False" in done.stderr, done.stderr
    card = json.loads(done.stdout[done.stdout.index("\n{") :])
    found = next(m for m in card["measurements"] if m["level"] == "sample")
    assert found["value"] > 0.9 and found["n"] == 24 and found["ci_low"] < found["value"]
    assert len(card["inputs"]) == 3  # digests of what it was computed from


def test_report_prints_and_writes(files):
    text = run(*report_of(files), "--output-dir", files / "card")
    assert "Agreement of judge@0" in text and "not checked" in text
    names = {path.name for path in (files / "card").iterdir()}
    assert {"judge_report.json", "judge_report_measurements.csv"} <= names


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("train", "--output-dir", "run"), "base is not set"),
        (("train", "--output-dir", "run", "--set", "learning_rat=1"), "learning_rate"),
        ((*report_of("."), "--scores", "none.jsonl"), "none.jsonl"),
        (("score", ".", "--samples", "samples.csv", "--output-dir", "x"), "judge.json"),
    ],
)
def test_what_is_refused_is_named(files, monkeypatch, arguments, expected):
    monkeypatch.chdir(files)
    with pytest.raises(UserError, match=expected):
        run(*arguments)
