"""From ratings to the report card by the commands alone."""

from typer.testing import CliRunner

from longtake.commands.evaluate_judge import judge
from longtake.evaluation.judge.directory import CALIBRATION_FILE, read_judge


def run(*arguments):
    done = CliRunner().invoke(judge, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.exception or done.output
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
    text = run("calibrate", out / "judge", *raw, "--min-points", 20, "--device", "cpu")
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
        *("--judge", out / "judge", "--resamples", 100),
    )
    assert "none of" in text and "shuffled_prompt" in text and "within prompts" in text
