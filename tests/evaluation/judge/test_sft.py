"""Supervised fine-tuning with TRL on a study whose truth is the brightness of a clip."""

import dataclasses
import json

import numpy as np
import pytest
import torch

pytest.importorskip("trl")

from longtake.evaluation.judge.calibration import CalibrationSettings
from longtake.evaluation.judge.sft import train_generative
from longtake.evaluation.judge.sft_config import GenerativeTrainingConfig
from longtake.evaluation.judge.train_config import JudgeDataConfig

CPU = torch.device("cpu")


def settings(study, base, **changes):
    plain = GenerativeTrainingConfig(
        base=str(base),
        data=JudgeDataConfig(
            ratings=(str(study.ratings),),
            samples=str(study.samples),
            held_out_models=("C",),
            test_share=0.3,
            calibration_share=0.35,
        ),
        calibration=CalibrationSettings(min_points=10, min_prompts=2, folds=2),
        method="full",
        train_vision=True,
        learning_rate=5e-3,
        updates=40,
        batch_clips=8,
        micro_batch=8,
        eval_every=20,
        precision="float32",
        seed=4,
    )
    return dataclasses.replace(plain, **changes)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(study, tiny_vlm, tmp_path_factory):
    out = tmp_path_factory.mktemp("judge") / "run"
    train_generative(settings(study, tiny_vlm), output_dir=out, device="cpu")
    return out


def test_it_learns_to_answer(run):
    records = metrics(run)
    losses = [row["loss"] for row in records if "loss" in row]
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.2 * np.mean(losses[:5])
    held = [row["eval_loss"] for row in records if "eval_loss" in row]
    assert len(held) == 2 and held[1] < held[0]
    summary = json.loads((run / "summary.json").read_text())
    print(summary)
    assert summary["best_update"] in (19, 39)
