import csv
from pathlib import Path

from typer.testing import CliRunner

from longtake import cli
from longtake.core.video import read_video


def make(out: Path, *options: str) -> str:
    command = ["sandbox", "preferences", "--out", str(out), "--prompts", "2", *options]
    # Wide enough for headings of several words to stay on one line.
    result = CliRunner().invoke(cli.app, command, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_command_writes_labelled_clips_that_can_be_read(tmp_path: Path) -> None:
    printed = make(tmp_path / "a")
    assert "agreement with the oracle" in printed and "train.csv" in printed
    with (tmp_path / "a" / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and len({row["prompt"] for row in rows}) == 2
    for row in rows:
        assert {row[d] for d in ("VQ", "MQ", "TA")} <= {"A", "B", "same"}
        for side in "AB":
            clip = read_video(tmp_path / "a" / row[f"path_{side}"])[0]
            assert clip.shape == (int(row[f"num_frames_{side}"]), 3, 64, 64)


def test_one_seed_gives_one_result(tmp_path: Path) -> None:
    for name, options in {"a": (), "b": (), "c": ("--seed", "1")}.items():
        make(tmp_path / name, *options)
    a, b, c = ((tmp_path / name / "train.csv").read_bytes() for name in "abc")
    assert a == b and a != c


def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    for name, workers in {"a": "0", "b": "2"}.items():
        make(tmp_path / name, "--prompts", "11", "--workers", workers)
    a, b = tmp_path / "a", tmp_path / "b"
    assert (a / "train.csv").read_bytes() == (b / "train.csv").read_bytes()
    names = sorted(path.name for path in (a / "clips").iterdir())
    assert names == sorted(path.name for path in (b / "clips").iterdir())
    for name in names:
        assert (a / "clips" / name).read_bytes() == (b / "clips" / name).read_bytes()


def test_annotators_without_threshold_never_tie(tmp_path: Path) -> None:
    make(tmp_path, "--tie-threshold", "0", "--split", "held_out")
    with (tmp_path / "held_out.csv").open(newline="") as file:
        labels = {row[d] for row in csv.DictReader(file) for d in ("VQ", "MQ", "TA")}
    assert labels == {"A", "B"}
