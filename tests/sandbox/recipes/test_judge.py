"""The pipeline of the tiny judge in its smallest size, and the simulated ratings behind it."""

import json
import shutil

import pytest
import torch

from longtake.core.weights import read_tensors
from longtake.evaluation.judge.calibration import Calibration, Curve
from longtake.evaluation.judge.data import TrainingRecord
from longtake.evaluation.judge.directory import read_judge, set_calibration, write_judge
from longtake.evaluation.ratings import read_ratings, read_samples
from longtake.runtime.errors import CheckpointError, ConfigError, RunDirectoryError, UserError
from longtake.sandbox.preferences import Candidate
from longtake.sandbox.raters import SimulatedRater
from longtake.sandbox.recipes import judge as judge_recipe
from longtake.sandbox.recipes.judge import PARTS, summary_rows, train_tiny_judge
from longtake.sandbox.recipes.ratings import ORACLE_OF, RatingConfig, rate_clip
from longtake.sandbox.recipes.samples import QUALITIES, Quality
from longtake.tests.tiny_reward import tiny_spec, write_tiny_reward

SMALL = (
    "train_prompts=6",
    "held_out_prompts=2",
    "damaged=1",
    "updates=2",
    "captions.updates=1",
    "captions.batch_clips=2",
    "batch_clips=4",
    "eval_every=2",
    "calibration_share=0.6",
    "min_points=500",
    "resamples=100",
    "size.width=32",
    "size.layers=1",
    "size.vision_width=32",
    "size.vision_layers=1",
    "size.side=28",
    "controls=[shuffled_prompt]",
)


def clip(name, **oracles):
    return Candidate(
        name=name,
        video=torch.zeros(1, 3, 2, 2, dtype=torch.uint8),
        origin="clean",
        oracles=oracles,
        colourfulness=0.0,
    )


def test_ratings_follow_the_truth_and_the_protocol():
    quiet = tuple(SimulatedRater(name=f"r{i}", noise=0.0) for i in range(5))
    config = RatingConfig(raters=quiet, damaged=0, seed=0)
    found = rate_clip(clip("a", alignment=1.0, motion=0.5, visual=0.0), config)
    scores = {(r.dimension, r.score) for r in found}
    assert scores == {("text_alignment", 5.0), ("motion_quality", 3.0), ("visual_quality", 1.0)}
    assert len(found) == 9  # three raters agree
    # Two of three raters one apart from each other by 2 points or more: five rate.
    biased = tuple(SimulatedRater(name=f"r{i}", noise=0.0, bias=2.0 * (i % 2)) for i in range(5))
    config = RatingConfig(raters=biased, damaged=0, seed=1)
    counts = {
        len(rate_clip(clip(str(i), alignment=0.5, motion=0.5, visual=0.5), config))
        for i in range(30)
    }
    assert counts == {9, 15}


def test_pipeline(tmp_path, monkeypatch):
    quick = tuple(Quality(num_steps=1, guidance_scale=1.0) for _ in QUALITIES)
    sample = judge_recipe.sample_qualities
    monkeypatch.setattr(
        judge_recipe, "sample_qualities", lambda *a, **k: sample(*a, **k, qualities=quick)
    )
    out = tmp_path / "run"
    record = train_tiny_judge(out, SMALL, device="cpu")
    listed = read_samples(out / "data" / "samples.csv")
    assert len(listed.samples) == 8 * 8 and not listed.missing_videos()
    assert set(listed.models) == {
        "render", "still", "other-scene", "damaged", *(quality.generator for quality in QUALITIES)
    }  # fmt: skip
    judge = read_judge(out / "judge")
    held_out = (out / "data" / "test_prompts.txt").read_text().splitlines()
    assert len(held_out) == 2 and not set(held_out) & set(judge.training.prompts)
    assert QUALITIES[2].generator not in judge.training.models and judge.calibration is None
    weights = read_tensors(out / "judge" / "model" / "model.safetensors")
    assert {v.dtype for k, v in weights.items() if "embed_tokens" in k} == {torch.bfloat16}
    tested = read_samples(out / "training" / "test_new_models.csv")
    assert tested.models == (QUALITIES[2].generator,) and len(tested.samples) == 2
    rows = summary_rows(record)
    assert len(rows) == len(PARTS) * 2 * len(ORACLE_OF)
    # The truth itself is the best judge of honest raters.
    assert all(row[3] > 0.9 for row in rows if row[1:3] == ["test", "truth"])
    assert json.loads((out / "agreement.json").read_text())["judge"] == judge.name
    card = json.loads((out / "report/test/judge_report.json").read_text())
    assert {c["control"] for c in card["controls"]} == {"shuffled_prompt"}
    assert card["leakage"]["checked"] and not card["leakage"]["same_prompts"]
    ratings, damage = read_ratings([out / "data" / "ratings.jsonl"])
    assert not damage and {r.rater for r in ratings} <= {f"rater{i}" for i in range(1, 13)}
    with pytest.raises(RunDirectoryError):
        train_tiny_judge(out, SMALL, device="cpu")
    before = (out / "judge" / "judge.json").stat().st_mtime_ns
    again = train_tiny_judge(out, SMALL, resume=True, device="cpu")
    assert again == record
    assert (out / "judge" / "judge.json").stat().st_mtime_ns == before


def test_the_written_judge_has_half_the_bytes_and_the_same_calibration(tmp_path):
    reward = write_tiny_reward(tmp_path / "reward", tiny_spec("videoreward"), 3)
    judge = write_judge(
        tmp_path / "judge",
        lambda folder: shutil.copytree(reward.path, folder),
        backbone="qwen2vl",
        dimensions=tuple(ORACLE_OF),
        training=TrainingRecord(prompts=("a red circle",), models=("render",)),
        provenance={"seed": 5},
    )
    curve = Curve(
        method="logistic",
        parameters={"low": (1.0,), "high": (5.0,), "centre": (3.0,), "width": (0.5,)},
        n=40,
        n_prompts=20,
        errors={"logistic": 0.4},
        plcc=0.9,
    )
    curves = dict.fromkeys(ORACLE_OF, curve)
    judge = set_calibration(judge, Calibration(judge=judge.digest, curves=curves))
    half = judge_recipe.halved(judge, tmp_path / "half")
    assert half.digest != judge.digest and half.calibration.curves == judge.calibration.curves
    assert half.training == judge.training and half.provenance == judge.provenance
    exact = read_tensors(judge.path / "model" / "model.safetensors")
    for name, tensor in read_tensors(half.path / "model" / "model.safetensors").items():
        assert torch.equal(tensor, exact[name].to(tensor.dtype))
        assert tensor.dtype == (torch.float32 if name.startswith("rm_head") else torch.bfloat16)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("updatez=3", ConfigError),
        ("held_out_quality=9", ConfigError),
        ("raters=2", ConfigError),
        ("rater_noise=[0.5,0.1]", ConfigError),
        ("min_points=3", UserError),  # what a later stage would refuse
        ("batch_clips=0", UserError),
        ("resamples=20", UserError),
        ("data=none", ConfigError),
        ("base=none", CheckpointError),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_made(tmp_path, setting, error):
    with pytest.raises(error):
        train_tiny_judge(tmp_path / "run", [setting], device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_plan_writes_nothing_and_a_launcher_is_refused(tmp_path, monkeypatch):
    assert train_tiny_judge(tmp_path / "run", dry_run=True)["clips"] == 5300 * 12
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        train_tiny_judge(tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
