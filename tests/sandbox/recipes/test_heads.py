"""The pipeline of the tiny reward heads, from samples to accuracies, in its smallest size."""

import json

import pytest

from longtake.rewards.directory import read_reward_directory
from longtake.runtime.errors import CheckpointError, ConfigError, RunDirectoryError, UserError
from longtake.sandbox.recipes import heads
from longtake.sandbox.recipes.heads import HEADS, summary_rows, train_heads
from longtake.sandbox.recipes.samples import Quality

SMALL = (
    "train_prompts=5",
    "held_out_prompts=2",
    "pairs_per_prompt=6",
    "damaged=1",
    "validation_share=0.4",
    "captions.updates=2",
    "captions.batch_clips=2",
    *(f"{name}.updates=2" for name in HEADS),
    *(f"{name}.batch_prompts=1" for name in HEADS),
)


def test_pairs_heads_and_accuracies(tmp_path, monkeypatch):
    quick = (Quality(num_steps=1, guidance_scale=1.0),)
    sample = heads.sample_qualities
    monkeypatch.setattr(heads, "sample_qualities", lambda *a, **k: sample(*a, **k, qualities=quick))
    out = tmp_path / "run"
    record = train_heads(out, ["videoalign_mq"], SMALL, device="cpu")
    reward = read_reward_directory(out / "rewards" / "videoalign_mq")
    assert reward.spec.color_mode == "bt601" and "MQ" in reward.spec.normalization
    sizes = [
        (directory / "model.safetensors").stat().st_size
        for directory in (reward.path, out / "heads" / "videoalign_mq" / "base")
    ]
    assert sizes[0] < 0.55 * sizes[1]  # bfloat16, but for the head
    assert set(record["videoalign_mq"]) == {"pairs", "truth"}
    rows = summary_rows(record)
    assert [row[:3] for row in rows] == [
        ["videoalign_mq", "MQ", "annotators"],
        ["videoalign_mq", "MQ", "truth"],
    ]
    assert json.loads((out / "accuracy.json").read_text()) == record
    held_out = (out / "pairs" / "held_out.csv").read_text().splitlines()
    assert len(held_out) == 13
    with pytest.raises(RunDirectoryError):
        train_heads(out, ["videoalign_mq"], SMALL, device="cpu")
    base = out / "heads" / "videoalign_mq" / "base"
    assert read_reward_directory(base).provenance["captions"]["updates"] == 2
    assert not (base.parent / "random").exists()
    # Another run can use the pairs of the first, and a resumed one keeps what is finished.
    other = (*SMALL, f"data={out}", "captions.updates=0")
    train_heads(tmp_path / "other", ["videoalign_ta"], other, device="cpu")
    assert not (tmp_path / "other" / "pairs").exists()
    start = read_reward_directory(tmp_path / "other" / "heads" / "videoalign_ta" / "base")
    assert "random_weights" in start.provenance
    # And its backbones.
    third = tmp_path / "third"
    train_heads(third, ["videoalign_mq"], (*SMALL, f"data={out}", f"bases={out}"), device="cpu")
    copied = third / "heads" / "videoalign_mq" / "base" / "model.safetensors"
    assert copied.read_bytes() == (base / "model.safetensors").read_bytes()
    before = (out / "rewards" / "videoalign_mq" / "reward.json").stat().st_mtime_ns
    assert train_heads(out, ["videoalign_mq"], SMALL, resume=True, device="cpu") == record
    assert (out / "rewards" / "videoalign_mq" / "reward.json").stat().st_mtime_ns == before


def test_wrong_settings_are_refused_before_anything_is_made(tmp_path, monkeypatch):
    for names, setting, error in (
        (["motion"], "seed=0", ConfigError),
        ([], "videoalign_mq.update=3", ConfigError),
        ([], "data=none", ConfigError),
        ([], "bases=none", CheckpointError),
    ):
        with pytest.raises(error):
            train_heads(tmp_path / "run", names, [setting], device="cpu")
    assert train_heads(tmp_path / "run", dry_run=True)["heads"] == list(HEADS)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        train_heads(tmp_path / "run", overrides=SMALL, device="cpu")
    assert not list(tmp_path.iterdir())
