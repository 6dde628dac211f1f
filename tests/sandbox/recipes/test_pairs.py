"""Preference pairs on disk: what the trainer reads is what was judged, whatever the workers."""

import torch
from typer.testing import CliRunner

from longtake import cli
from longtake.core.video import read_video
from longtake.rewards.pairs import WORD_OF_LABEL, read_pairs
from longtake.sandbox.annotators import Annotator
from longtake.sandbox.preferences import PairConfig, PoolJob, label_pair
from longtake.sandbox.recipes.pairs import make_preferences


def make(out, *options):
    command = ["sandbox", "preferences", "--out", str(out), "--prompts", "2", *options]
    # Wide enough for headings of several words to stay on one line.
    result = CliRunner().invoke(cli.app, command, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_files_are_read_back_by_the_reward_trainer(tmp_path):
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


def test_one_seed_gives_one_result(tmp_path):
    for name, options in {"a": (), "b": (), "c": ("--seed", "1")}.items():
        make(tmp_path / name, *options)
    a, b, c = ((tmp_path / name / "train.csv").read_bytes() for name in "abc")
    assert a == b and a != c


def test_workers_do_not_change_the_result(tmp_path):
    for name, workers in {"a": "0", "b": "2"}.items():
        make(tmp_path / name, "--prompts", "11", "--workers", workers)
    a, b = tmp_path / "a", tmp_path / "b"
    assert (a / "train.csv").read_bytes() == (b / "train.csv").read_bytes()
    names = sorted(path.name for path in (a / "clips").iterdir())
    assert names == sorted(path.name for path in (b / "clips").iterdir())
    for name in names:
        assert (a / "clips" / name).read_bytes() == (b / "clips" / name).read_bytes()
