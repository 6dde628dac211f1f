"""Supervised fine-tuning with TRL on a study whose truth is the brightness of a clip."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("trl")

from safetensors.torch import load_file, save_file

from longtake.evaluation.judge.calibration import CalibrationSettings
from longtake.evaluation.judge.card import report_card_from_files
from longtake.evaluation.judge.config import GenerativeTrainingConfig, JudgeDataConfig
from longtake.evaluation.judge.data import split_ratings
from longtake.evaluation.judge.directory import read_judge
from longtake.evaluation.judge.prompt import PARSE_FAILURE, judge_prompt
from longtake.evaluation.judge.score import score_samples
from longtake.evaluation.judge.train import train_judge
from longtake.evaluation.judge.vlm import (
    AnswerCollator,
    ClipQuestions,
    VlmSpec,
    load_model,
    load_processor,
    training_examples,
)
from longtake.evaluation.ratings import read_ratings, read_samples
from longtake.rewards.frames import FrameSampler
from longtake.rewards.train_config import LoraSettings
from longtake.runtime.errors import RunDirectoryError, UserError

LORA = LoraSettings(rank=4, alpha=64.0, dropout=0.1)
CPU = torch.device("cpu")


ONE = ("visual_quality",)


def settings(study, base, **changes):
    plain = GenerativeTrainingConfig(
        base=str(base),
        data=JudgeDataConfig(
            ratings=(str(study.ratings),),
            samples=str(study.samples),
            held_out_models=("C",),
            test_share=0.15,
            calibration_share=0.3,
        ),
        dimensions=ONE,
        calibration=CalibrationSettings(min_points=10, min_prompts=2, folds=2),
        method="full",
        train_vision=True,
        learning_rate=1e-2,
        updates=45,
        batch_clips=8,
        micro_batch=8,
        eval_every=15,
        precision="float32",
        seed=4,
    )
    return plain.replace(**changes)


def short(study, base, **changes):
    few = {"updates": 4, "eval_every": 2, "batch_clips": 4, "micro_batch": 2, **changes}
    plain = settings(study, base, **few)
    return plain.replace(data=plain.data.replace(calibration_share=0.1))


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(study, tiny_vlm, tmp_path_factory):
    out = tmp_path_factory.mktemp("judge") / "run"
    train_judge(settings(study, tiny_vlm), output_dir=out, device="cpu")
    return out


def test_it_learns_brightness_of_new_prompts(run):
    losses = [row["loss"] for row in metrics(run) if "loss" in row]
    assert len(losses) == 45 and np.mean(losses[-5:]) < 0.2 * np.mean(losses[:5])
    held = {row["update"]: row["eval_loss"] for row in metrics(run) if "eval_loss" in row}
    assert set(held) == {14, 29, 44}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best_update"] == min(held, key=held.get) and summary["unscored"] == 0
    assert summary["calibration_part"]["visual_quality"]["plcc"] > 0.6, summary
    assert summary["calibrated"]
    names = {path.name for path in (run / "checkpoints").glob("checkpoint-*")}
    assert {"checkpoint-45", f"checkpoint-{summary['best_update'] + 1}"} <= names
    assert len(names) == 2
    judge = read_judge(run / "judge")
    assert judge.backbone == "generative" and set(judge.training.models) == {"A", "B"}
    assert set(read_samples(run / "test_new_models.csv").models) == {"C"}
    test = read_samples(run / "test.csv")
    assert not {item.caption for item in test.samples} & set(judge.training.prompts)


def test_a_judge_that_never_learned_is_counted_in_the_report_card(study, tiny_vlm, tmp_path):
    config = short(study, tiny_vlm, updates=1, eval_every=1, learning_rate=1e-9)
    train_judge(config, output_dir=tmp_path / "run", device="cpu")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["unscored"] == summary["clips"]["calibration"]
    assert not summary["calibrated"] and summary["not_calibrated"]
    judge = read_judge(tmp_path / "run/judge")
    listed = read_samples(tmp_path / "run/test.csv")
    score_samples(listed, judge, tmp_path / "s", device=CPU, calibrated=False)
    with pytest.raises(UserError, match="both"):  # a card needs videos with both
        report_card_from_files(
            [study.ratings], tmp_path / "run/test.csv", tmp_path / "s/scores.jsonl", dimensions=ONE
        )
    found, _ = read_ratings([tmp_path / "s/scores.jsonl"])
    assert {item.score for item in found} == {None}
    assert all(item.reason.startswith(PARSE_FAILURE) for item in found)


def test_a_stopped_run_continues_bit_by_bit(study, tiny_vlm, tmp_path, monkeypatch):
    config = short(study, tiny_vlm, updates=6, eval_every=2, method="lora", lora=LORA)
    whole = train_judge(config, output_dir=tmp_path / "whole", device="cpu")
    draw = AnswerCollator.scores

    def stop(self, **example):
        if example["draw"] == 4 * 4 + 1:  # in the update after the second checkpoint
            raise KeyboardInterrupt
        return draw(self, **example)

    monkeypatch.setattr(AnswerCollator, "scores", stop)
    with pytest.raises(KeyboardInterrupt):
        train_judge(config, output_dir=tmp_path / "cut", device="cpu")
    monkeypatch.undo()
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        train_judge(config, output_dir=tmp_path / "cut", device="cpu")
    resumed = train_judge(config, output_dir=tmp_path / "cut", resume=True, device="cpu")
    assert read_judge(resumed).digest == read_judge(whole).digest
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    # Finished: only the export is made again, with the same result.
    again = train_judge(config, output_dir=tmp_path / "cut", resume=True, device="cpu")
    assert read_judge(again).digest == read_judge(whole).digest


def test_micro_batches_do_not_change_the_update(study, tiny_vlm, tmp_path):
    found = []
    for micro in (1, 4):
        config = short(study, tiny_vlm, updates=2, eval_every=2, micro_batch=micro)
        train_judge(config, output_dir=tmp_path / str(micro), device="cpu")
        found.append([row for row in metrics(tmp_path / str(micro)) if "loss" in row])
    for one, four in zip(*found, strict=True):
        for name in ("update", "loss", "grad_norm"):
            assert one[name] == pytest.approx(four[name], rel=1e-3)


def test_the_loss_is_the_cross_entropy_of_the_answers(study, tiny_vlm, tmp_path):
    """The first logged loss, computed again by hand from the base."""
    config = short(study, tiny_vlm, updates=1, eval_every=1)
    train_judge(config, output_dir=tmp_path / "run", device="cpu")
    spec = VlmSpec(prompt=judge_prompt(ONE), sampler=FrameSampler(target_fps=2.0, max_frames=64))
    questions = ClipQuestions(load_processor(tiny_vlm), spec, ONE)
    part = split_ratings(config.data, ONE, config.seed)[0]["train"]
    collate = AnswerCollator((part, part), questions, spec, 0, config.seed)
    batch = collate(training_examples(len(part.mean), 4, 1, config.seed))
    with torch.no_grad():
        logits = load_model(tiny_vlm, CPU, torch.float32)(**batch).logits
    size = len(questions.tokens.ids)
    odds = logits[:, -size - 1 : -1].double().log_softmax(-1)
    answers = batch["input_ids"][:, -size:]
    expected = -odds.gather(-1, answers[..., None]).mean()
    assert metrics(tmp_path / "run")[0]["loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_lora_leaves_the_rest_alone_and_is_merged(study, tiny_vlm, tmp_path, precision):
    config = short(
        study,
        tiny_vlm,
        method="lora",
        lora=LORA,
        train_vision=False,
        precision=precision,
        gradient_checkpointing=True,
    )
    judge = train_judge(config, output_dir=tmp_path / "run", device="cpu")
    before = load_file(tiny_vlm / "model.safetensors")
    after = load_file(judge / "model/model.safetensors")
    assert before.keys() == after.keys()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    changed = {name for name, value in before.items() if not after[name].equal(value.to(dtype))}
    assert changed and all("proj" in name and "visual" not in name for name in changed)
    losses = [row["loss"] for row in metrics(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0]


def test_a_diverged_training_ends_with_its_name(study, tiny_vlm, tmp_path):
    broken = shutil.copytree(tiny_vlm, tmp_path / "base")
    state = load_file(broken / "model.safetensors")
    state["lm_head.weight"][0, 0] = float("nan")
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="diverged"):
        train_judge(short(study, broken), output_dir=tmp_path / "run", device="cpu")
    assert not any((tmp_path / "run/checkpoints").iterdir())


def test_nothing_is_reported_to_the_network(study, tiny_vlm, tmp_path, monkeypatch):
    import socket

    tried: list[str] = []  # an error alone could be caught on its way

    def refuse(name):
        def call(*_, **__):
            tried.append(name)
            raise OSError("no network in this test")

        return call

    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", refuse("telemetry"))
    monkeypatch.setattr(socket.socket, "connect", refuse("connection"))
    train_judge(short(study, tiny_vlm), output_dir=tmp_path / "run", device="cpu")
    assert tried == []
