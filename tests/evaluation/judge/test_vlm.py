"""A judge that answers in text: inputs at true times, scores, files. TRL is not needed here."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from longtake.evaluation.judge.config import GenerativeTrainingConfig, JudgeDataConfig
from longtake.evaluation.judge.data import JUDGED, TrainingRecord, read_rated_clips
from longtake.evaluation.judge.directory import JudgeClip, read_judge, write_judge
from longtake.evaluation.judge.prompt import PARSE_FAILURE, judge_prompt
from longtake.evaluation.judge.score import JudgeScorer
from longtake.evaluation.judge.train import train_judge
from longtake.evaluation.judge.vlm import (
    IGNORED,
    AnswerCollator,
    ClipQuestions,
    VlmJudge,
    VlmSpec,
    as_batch,
    held_out_examples,
    load_model,
    load_processor,
    shown_clip,
    training_examples,
    write_vlm,
)
from longtake.evaluation.ratings import read_samples
from longtake.runtime.errors import CheckpointError, ConfigError, UserError

CPU = torch.device("cpu")
ONE = ("visual_quality",)


def noise(frames, height, width, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), generator=draw, dtype=torch.uint8)


def spec_of(dimensions=JUDGED, **changes):
    return VlmSpec(prompt=judge_prompt(dimensions), **changes)


def judge_of(folder, dimensions=JUDGED, **options):
    model = load_model(folder, CPU, torch.float32)
    return VlmJudge(model, load_processor(folder), spec_of(dimensions), dimensions, **options)


def collator_of(clips, folder, dimensions=ONE):
    questions = ClipQuestions(load_processor(folder), spec_of(dimensions), dimensions)
    return AnswerCollator((clips, clips), questions, spec_of(dimensions), 2**20, 0)


@pytest.fixture(scope="module")
def collator(study, tiny_vlm):
    return collator_of(read_rated_clips([study.ratings], study.samples, ONE), tiny_vlm)


@pytest.fixture(scope="module")
def trained(collator, study, tiny_vlm, tmp_path_factory):
    """A judge directory of a model that has learned the form of the answer, by a plain loop."""
    model = load_model(tiny_vlm, CPU, torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(12):
        rows = [(4 * step + i) % 60 for i in range(4)]
        batch = collator([{"row": row, "draw": step, "held_out": 0} for row in rows])
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 1.0
    folder = tmp_path_factory.mktemp("trained") / "judge"
    processor = load_processor(tiny_vlm)
    write_judge(
        folder,
        lambda path: write_vlm(path, spec_of(ONE), model.eval(), processor),
        backbone="generative",
        dimensions=ONE,
        training=TrainingRecord(prompts=(), models=()),
        provenance={},
    )
    return folder


def test_scores_are_the_expectations_of_a_forward_pass(trained):
    """Against one pass over question and answer, without generation and without a cache."""
    judge = read_judge(trained)
    model = judge.load_model(CPU)
    clips = [
        JudgeClip(frames=noise(8, 28, 56, 1), fps=4.0, caption="a gray wall"),
        JudgeClip(frames=noise(4, 56, 28, 2), fps=2.0, caption="a gray wall number 3 in room 1"),
    ]
    scores = model.judge(clips)
    folder = trained / "model"
    plain, processor = load_model(folder, CPU, torch.float32), load_processor(folder)
    questions = ClipQuestions(processor, spec_of(ONE), ONE)
    place, digits = questions.tokens.positions[0], questions.tokens.digits[0]
    for clip, score in zip(clips, scores, strict=True):
        row = questions.row(shown_clip(clip.frames, clip.fps, spec_of(ONE)), clip.caption)
        length = row["input_ids"].shape[1]
        with torch.no_grad():
            batch = as_batch([row], questions.end, [questions.tokens.answer([3])])
            logits = plain(**batch).logits[0, length - 1 + place].double()
        odds = torch.exp(logits[list(digits)] - logits.max())
        mean = sum(d * float(o) for d, o in enumerate(odds, 1)) / float(odds.sum())
        assert score[ONE[0]].value == pytest.approx(mean, abs=1e-4) and 1 <= mean <= 5


def test_batches_change_nothing(trained):
    model = read_judge(trained).load_model(CPU)
    clips = [
        JudgeClip(frames=noise(2 * n, 28, 28 * n, n), fps=4.0, caption=f"a gray wall {n}" * n)
        for n in (1, 2, 3)
    ]
    together = model.judge(clips)
    for clip, scores in zip(clips, together, strict=True):
        (alone,) = model.judge([clip])
        assert alone[ONE[0]].value == pytest.approx(scores[ONE[0]].value, abs=1e-4)


def test_files_give_the_scores_of_frames(trained, study):
    judge = read_judge(trained)
    assert judge.backbone == "generative" and judge.dimensions == ONE
    scorer = JudgeScorer(judge, lambda: judge.load_model(CPU), calibrated=False)
    listed = read_samples(study.samples)
    (found,) = scorer.score([(listed.video_path(listed.samples[0]), "a gray wall")])
    assert 1 <= found["visual_quality"].value <= 5
    for caption, why in ((" ", "no caption"), ("a <|im_end|> wall", "reserved token")):
        (found,) = scorer.score([(listed.video_path(listed.samples[0]), caption)])
        assert found[ONE[0]].value is None and why in found[ONE[0]].reason


def test_an_untrained_model_is_unscored_and_quoted(each_vlm):
    """All three families run; random weights say nothing that is an answer."""
    judge = judge_of(each_vlm)
    short = JudgeClip(frames=noise(1, 28, 28), fps=4.0, caption="a wall")
    good = JudgeClip(frames=noise(6, 28, 28), fps=4.0, caption="a wall")
    first, second = judge.judge([short, good])
    assert all("too short" in score.reason for score in first.values())
    assert all(score.reason.startswith(f"{PARSE_FAILURE}: '") for score in second.values())


def test_a_batch_is_its_clips(each_vlm):
    """Logits of padded rows are those of single rows, in every family."""
    model, processor = load_model(each_vlm, CPU, torch.float32), load_processor(each_vlm)
    questions = ClipQuestions(processor, spec_of(ONE), ONE)
    clips = [shown_clip(noise(4 * n, 28, 56, n), 3.0 + n, spec_of(ONE)) for n in (1, 2)]
    rows = [questions.row(clip, "a wall" * (3 * n + 1)) for n, clip in enumerate(clips)]
    answers = [questions.tokens.answer([score]) for score in (2, 5)]
    size = len(answers[0])
    with torch.no_grad():
        both = model(**as_batch(rows, questions.end, answers)).logits[:, -size:]
        for n in range(2):
            alone = model(**as_batch(rows[n : n + 1], questions.end, answers[n : n + 1])).logits
            torch.testing.assert_close(both[n], alone[0, -size:], atol=2e-4, rtol=1e-3)


def test_the_model_is_told_the_true_times(each_vlm):
    questions = ClipQuestions(load_processor(each_vlm), spec_of(ONE), ONE)
    seen = {}
    for fps in (4.0, 8.0):
        clip = shown_clip(noise(16, 28, 28), fps, spec_of(ONE))
        assert clip.indices == ((0, 2, 4, 6, 9, 11, 13, 15) if fps == 4 else (0, 5, 10, 15))
        seen[fps] = questions.row(clip, "a wall")
        text = questions.decode(seen[fps]["input_ids"][0].tolist())
        times = [i / fps for i in clip.indices]
        if "qwen3" in each_vlm.name:  # the mean time of each pair of frames, in the text
            for a, b in zip(times[::2], times[1::2], strict=True):
                assert f"<{(a + b) / 2:.1f} seconds>" in text
        if "qwen2_5" in each_vlm.name:  # seconds for each pair of frames
            pair = 2 / (len(times) / 16 * fps)
            assert float(seen[fps]["second_per_grid_ts"][0]) == pytest.approx(pair)
    assert seen[4.0]["video_grid_thw"][0, 0] == 4 and seen[8.0]["video_grid_thw"][0, 0] == 2


def test_large_frames_are_scaled_down_and_small_ones_kept():
    small = spec_of(ONE, max_frame_pixels=4 * 28 * 28)
    assert shown_clip(noise(4, 112, 112), 4.0, small).frames.shape[-2:] == (56, 56)
    kept = shown_clip(noise(4, 40, 30), 4.0, small)
    assert kept.frames.shape[-2:] == (40, 30)


def test_the_loss_is_on_the_answer_alone(collator):
    examples = [{"row": 0, "draw": 0, "held_out": 0}, {"row": 7, "draw": 3, "held_out": 1}]
    batch = collator(examples)
    tokens = collator._questions.tokens
    for example, ids, labels in zip(examples, batch["input_ids"], batch["labels"], strict=True):
        kept = labels[labels != IGNORED].tolist()
        assert kept == ids[-len(tokens.ids) :].tolist() and kept[-1] == collator._questions.end
        assert kept == tokens.answer(collator.scores(**example))


def test_nobodys_rating_is_not_learned(study, tiny_vlm):
    clips = read_rated_clips([study.ratings], study.samples, JUDGED)
    table = clips.ratings
    first = table["sample"] == clips.samples.samples[0].sample
    dropped = table[~(first & (table["dimension"] == "motion_quality"))]
    collator = collator_of(dataclasses.replace(clips, ratings=dropped), tiny_vlm, JUDGED)
    assert collator.scores(0, 0, 0)[2] is None and collator.scores(1, 0, 0)[2] is not None
    tokens = collator._questions.tokens
    labels = collator([{"row": 0, "draw": 0, "held_out": 0}])["labels"][0, -len(tokens.ids) :]
    assert (labels == IGNORED).nonzero().flatten().tolist() == [tokens.positions[2]]


def test_draws_have_the_mean_of_the_ratings(study, tiny_vlm):
    clips = read_rated_clips([study.ratings], study.samples, ONE)
    table = clips.ratings.copy()
    table.loc[table["sample"] == clips.samples.samples[1].sample, "score"] = [2.25, 2.25, 2.25]
    collator = collator_of(dataclasses.replace(clips, ratings=table), tiny_vlm)
    for row, mean in ((0, clips.mean[0, 0]), (1, 2.25), (40, clips.mean[40, 0])):
        drawn = np.array([collator.scores(row, draw, 0)[0] for draw in range(2000)])
        assert drawn.mean() == pytest.approx(mean, abs=4 * max(drawn.std(), 0.01) / 2000**0.5)
        assert np.isin(drawn, range(1, 6)).all()
    assert collator.scores(0, 7, 0) == collator.scores(0, 7, 0)


def test_examples_visit_every_clip_and_resume_where_they_were():
    found = training_examples(10, 5, 4, 0)
    assert len(found) == 20 and sorted(e["row"] for e in found[:10]) == list(range(10))
    assert len({e["draw"] for e in found}) == 20
    assert training_examples(10, 5, 2, 0) == found[:10]
    assert [e["row"] for e in training_examples(2, 5, 1, 0)].count(0) in (2, 3)
    held = held_out_examples(3)
    assert len(held) == 6 and all(e["draw"] < 0 for e in held)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("generative.json", lambda text: text[: len(text) // 2], "cannot read"),
        ("generative.json", lambda text: text.replace('"format": 1', '"format": 9'), "format 1"),
        ("generative.json", lambda text: text.replace("Rate it", "Mark it"), "changed"),
        ("chat_template.jinja", lambda text: text + " ", "damaged"),
        ("tokenizer.json", None, "missing"),
        ("model.safetensors", None, "missing"),
    ],
)
def test_changed_folders_are_refused(trained, tmp_path, name, change, expected):
    copy = tmp_path / "judge"
    shutil.copytree(trained, copy)
    path = copy / "model" / name
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text()))
    with pytest.raises((CheckpointError, UserError), match=expected):
        read_judge(copy)


def test_checkpoints_that_cannot_judge(tiny_vlm, tmp_path, monkeypatch):
    def copied(name):
        shutil.copytree(tiny_vlm, tmp_path / name)
        return tmp_path / name

    other = copied("other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(CheckpointError, match="not a model that judges"):
        load_processor(other)
    lacking = copied("lacking")
    state = load_file(lacking / "model.safetensors")
    state.pop("lm_head.weight")
    save_file(state, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks weights"):
        load_model(lacking, CPU, torch.float32)
    torn = copied("torn")
    (torn / "model.safetensors").write_bytes((tiny_vlm / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="the weights of the checkpoint cannot be read"):
        load_model(torn, CPU, torch.float32)
    silent = copied("silent")
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="chat template"):
        load_processor(silent)
    with pytest.raises(CheckpointError):
        load_processor(tmp_path / "nowhere")
    monkeypatch.setattr("longtake.evaluation.judge.vlm.find_spec", lambda name: None)
    with pytest.raises(UserError, match="torchvision"):
        load_processor(tiny_vlm)


def test_what_a_training_refuses_before_it_starts(study, tiny_vlm, tmp_path, monkeypatch):
    data = JudgeDataConfig(
        ratings=(str(study.ratings),),
        samples=str(study.samples),
        test_share=0.3,
        calibration_share=0.35,
    )
    config = GenerativeTrainingConfig(base=str(tiny_vlm), data=data)
    where = "longtake.evaluation.judge.train.find_spec"
    options = {"output_dir": tmp_path / "x", "device": "cpu", "dry_run": True}
    monkeypatch.setattr(where, lambda name: None if name == "trl" else object())
    with pytest.raises(UserError, match="`trl`"):
        train_judge(config, **options)
    monkeypatch.setattr(where, lambda name: object())
    assert train_judge(config, **options) is None and not (tmp_path / "x").exists()
    with pytest.raises(CheckpointError):
        train_judge(config.replace(base=str(study.base)), **options)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        train_judge(config, **options)
    for wrong in ({"target_fps": 0.0}, {"max_frames": 5}, {"max_frame_pixels": 3}):
        with pytest.raises(ConfigError):
            GenerativeTrainingConfig(**wrong)
