"""Preference pairs on disk: what the trainer reads is what was judged, whatever the workers."""

import csv
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from longtake import cli
from longtake.core.video import read_video
from longtake.rewards.pairs import WORD_OF_LABEL, read_pairs
from longtake.runtime.errors import UserError
from longtake.sandbox.annotators import Annotator
from longtake.sandbox.preferences import PairConfig, PoolJob, label_pair
from longtake.sandbox.recipes.pairs import make_preferences


def make(out: Path, *options: str) -> str:
    command = ["sandbox", "preferences", "--out", str(out), "--prompts", "2", *options]
    # Wide enough for headings of several words to stay on one line.
    result = CliRunner().invoke(cli.app, command, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_command_prints_what_the_labels_look_like(tmp_path: Path) -> None:
    printed = make(tmp_path)
    assert "agreement with the oracle" in printed and "train.csv" in printed


def test_files_are_read_back_by_the_reward_trainer(tmp_path: Path) -> None:
    annotator, config = Annotator(), PairConfig(pairs_per_prompt=15)
    path, statistics = make_preferences(tmp_path, "train", 2, 5, annotator, config=config)
    job = PoolJob(split="train", start=0, count=2, seed=5, config=config)
    pairs, rows = list(job.pairs()), read_pairs(path)
    assert len(rows) == len(pairs) == statistics["MQ"].count == 30
    for row, pair in zip(rows, pairs, strict=True):
        assert row.prompt == pair.prompt
        words = {name: WORD_OF_LABEL[label] for name, label in row.labels.items()}
        assert words == label_pair(pair, annotator, 5)
        assert (row.fps_a, row.num_frames_b) == (8.0, 17)
    for row, pair in list(zip(rows, pairs, strict=True))[:3]:
        video, fps = read_video(path.parent / row.path_a)
        assert torch.equal(video, pair.a.video) and fps == 8.0  # not one grey level is lost
    names = {clip.name for pair in pairs for clip in (pair.a, pair.b)}
    assert {file.stem for file in (tmp_path / "clips").iterdir()} == names


def test_an_unwritable_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        make_preferences(tmp_path / "file", "train", 1, 0, Annotator())


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
