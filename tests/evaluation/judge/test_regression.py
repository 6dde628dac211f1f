"""Training on a study whose truth is the brightness of a clip, up to the scores of files."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from longtake.core.video import read_video
from longtake.evaluation.judge import score as scoring
from longtake.evaluation.judge.calibration import CalibrationSettings
from longtake.evaluation.judge.card import CONTROLS, report_card_from_files
from longtake.evaluation.judge.config import JudgeDataConfig, JudgeTrainingConfig
from longtake.evaluation.judge.data import JUDGED, read_rated_clips
from longtake.evaluation.judge.directory import read_judge
from longtake.evaluation.judge.regression import RatedDataset, collate_rated, target_scale
from longtake.evaluation.judge.score import JudgeScorer, score_samples, shuffle_captions
from longtake.evaluation.judge.train import train_judge
from longtake.evaluation.mos_merge import check_judge
from longtake.evaluation.ratings import read_ratings, read_samples
from longtake.rewards.directory import read_reward_directory
from longtake.rewards.pixels import clip_patches, normalize_patches, num_tokens
from longtake.rewards.train import HeadTrainer
from longtake.runtime.errors import CheckpointError, ConfigError, RunDirectoryError, UserError
from longtake.runtime.files import digest

CPU = torch.device("cpu")


def settings(study, **changes):
    plain = JudgeTrainingConfig(
        base=str(study.base),
        data=JudgeDataConfig(
            ratings=(str(study.ratings),),
            samples=str(study.samples),
            held_out_models=("C",),
            test_share=0.3,
            calibration_share=0.35,
        ),
        calibration=CalibrationSettings(min_points=10, min_prompts=2, folds=2),
        method="full",
        learning_rate=3e-3,
        updates=60,
        batch_clips=8,
        micro_batch=8,
        eval_every=20,
        precision="float32",
        seed=4,
    )
    return plain.replace(**changes)


@pytest.fixture(scope="module")
def run(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("judge") / "run"
    train_judge(settings(study), output_dir=out, device="cpu")
    return out


def test_it_learns_brightness_and_is_calibrated(run):
    summary = json.loads((run / "summary.json").read_text())
    assert all(found["plcc"] > 0.8 for found in summary["calibration_part"].values()), summary
    assert summary["calibrated"] and summary["not_calibrated"] == ""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in metrics if "loss" in row]
    assert len(losses) == 60 and np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])
    judge = read_judge(run / "judge")
    assert judge.dimensions == JUDGED and set(judge.training.models) == {"A", "B"}
    test = read_samples(run / "test.csv")
    assert not test.missing_videos() and set(test.models) == {"A", "B"}
    assert set(read_samples(run / "test_new_models.csv").models) == {"C"}
    assert not {item.caption for item in test.samples} & set(judge.training.prompts)


def test_scores_controls_and_report_card(run, study, tmp_path):
    judge = read_judge(run / "judge")
    listed = read_samples(run / "test_new_models.csv")
    reports = score_samples(listed, judge, tmp_path, device=CPU, controls=CONTROLS)
    n = len(listed.samples)
    assert all(r.scored == 3 * n and r.unscored == 0 for r in reports.values())
    again = score_samples(listed, judge, tmp_path, device=CPU, controls=["blank"])
    assert all(report.kept == 3 * n and report.scored == 0 for report in again.values())
    card = report_card_from_files(
        [study.ratings],
        run / "test_new_models.csv",
        tmp_path / "scores.jsonl",
        controls=tmp_path / "controls.jsonl",
        judge=run / "judge",
    )
    assert card.calibrated and card.leakage.checked and not card.leakage.same_prompts
    assert card.leakage.shared_models == ()
    found = {(c.control, c.dimension): c for c in card.controls}
    # A clip of one level is the same frozen, reversed or again; the verdict says so of `frozen`.
    for control in ("frozen", "reversed", "repeat"):
        assert found[control, "motion_quality"].spread == 0
    assert found["frozen", "motion_quality"].verdict == "not as expected"
    # The log is what the merge with human scores asks for; the controls stay out of it.
    check_judge(read_ratings([tmp_path / "scores.jsonl"])[0])
    # The caption says nothing of the brightness: another one changes little.
    raters = {item.rater for item in read_ratings([tmp_path / "controls.jsonl"])[0]}
    assert {name.partition("+")[2] for name in raters} == set(CONTROLS)
    assert found["shuffled_prompt", "text_alignment"].spread < 0.5


def test_unusable_clips_are_unscored_with_a_reason(run, tmp_path):
    judge = read_judge(run / "judge")
    scorer = JudgeScorer(judge, lambda: judge.load_model(CPU))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    video = read_samples(run / "test.csv")
    good = video.video_path(video.samples[0])
    for path, caption in ((broken, "a wall"), (good, ""), (good, "a <|MQ_reward|> wall")):
        for score in scorer.score([(path, caption)])[0].values():
            assert score.value is None and score.reason
    assert all(1 <= s.value <= 5 for s in scorer.score([(good, "a gray wall")])[0].values())
    with pytest.raises(UserError, match="control"):
        score_samples(video, judge, tmp_path, device=CPU, controls=["upside_down"])


def test_clips_are_scored_together_as_alone(run, tmp_path, monkeypatch):
    judge = read_judge(run / "judge")
    model = judge.load_model(CPU)
    listed = read_samples(run / "test.csv")
    clips = [(listed.video_path(item), item.caption) for item in listed.samples]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    clips[2:2] = [(broken, "a wall"), (clips[0][0], "")]
    calls = []

    class Counted:
        def judge(self, shown):
            calls.append(len(shown))
            return model.judge(shown)

    scorer = JudgeScorer(judge, Counted)
    alone = [scorer.score([clip])[0] for clip in clips]
    size = 4 * 3 * 28 * 28
    for num_bytes in (scoring.BATCH_BYTES, 3 * size, 1):
        monkeypatch.setattr(scoring, "BATCH_BYTES", num_bytes)
        calls.clear()
        together = scorer.score(clips)
        assert max(calls) == min(len(clips) - 1, max(1, num_bytes // size))
        for a, b in zip(together, alone, strict=True):
            assert a.keys() == b.keys() and [s.reason for s in a.values()] == [
                s.reason for s in b.values()
            ]
            assert [float(s) for s in a.values()] == pytest.approx(
                [float(s) for s in b.values()], abs=1e-5, nan_ok=True
            )


def test_calibrated_scores_are_the_curve_of_the_raw_ones(run):
    judge = read_judge(run / "judge")
    model = judge.load_model(CPU)
    listed = read_samples(run / "test.csv")
    raw, mapped = (JudgeScorer(judge, lambda: model, calibrated=c) for c in (False, True))
    assert raw.calibration == "" and mapped.calibration == judge.calibration.digest
    assert raw.name == judge.name and mapped.name.startswith(f"{judge.name}/")
    for item in listed.samples[:3]:
        path = listed.video_path(item)
        (before,), (after,) = (s.score([(path, item.caption)]) for s in (raw, mapped))
        for name, curve in judge.calibration.curves.items():
            expected = curve(np.array([before[name].value]))[0]
            assert after[name].value == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_run_continues_bit_by_bit(study, tmp_path, monkeypatch, optimizer):
    config = settings(
        study, optimizer=optimizer, updates=8, eval_every=4, batch_clips=4, micro_batch=2
    )
    whole = train_judge(config, output_dir=tmp_path / "whole", device="cpu")
    compute = HeadTrainer.compute_loss

    def stop(self, *arguments, **options):
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        return compute(self, *arguments, **options)

    monkeypatch.setattr(HeadTrainer, "compute_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        train_judge(config, output_dir=tmp_path / "cut", device="cpu")
    monkeypatch.undo()
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        train_judge(config, output_dir=tmp_path / "cut", device="cpu")
    resumed = train_judge(config, output_dir=tmp_path / "cut", resume=True, device="cpu")
    assert read_judge(resumed).digest == read_judge(whole).digest
    assert (tmp_path / "cut/metrics.jsonl").read_text() == (
        tmp_path / "whole/metrics.jsonl"
    ).read_text()


@pytest.mark.parametrize(
    ("method", "precision", "tolerance"),
    [("full", "float32", 1e-4), ("lora", "float32", 1e-4), ("lora", "bfloat16", 0.05)],
)
def test_the_judge_scores_in_points_what_the_training_predicted(
    study, tmp_path, monkeypatch, method, precision, tolerance
):
    """Export, merged LoRA, normalisation and the path from files, against the model in training."""
    from longtake.evaluation.judge import train

    heads, scored = [], []

    class Seen(train.HeadTraining):
        def run(self, *arguments):
            heads.append(super().run(*arguments))
            return heads[0]

    fit = train.fit_curves
    monkeypatch.setattr(train, "HeadTraining", Seen)
    monkeypatch.setattr(train, "fit_curves", lambda c, s, o: (scored.append(s), fit(c, s, o))[1])
    config = settings(study, method=method, precision=precision, updates=4, eval_every=4)
    judge = read_judge(train_judge(config, output_dir=tmp_path / "run", device="cpu"))
    scales = read_reward_directory(judge.path / "model").spec.normalization
    for column, token in enumerate(("TA", "VQ", "MQ")):
        points = (heads[0].outputs[:, column] - scales[token].mean) / scales[token].std
        assert scored[0][:, column] == pytest.approx(points.numpy(), abs=tolerance)


def test_too_few_clips_leave_it_uncalibrated_and_say_so(study, tmp_path):
    config = settings(study, updates=1, eval_every=1, calibration=CalibrationSettings())
    judge = read_judge(train_judge(config, output_dir=tmp_path / "run", device="cpu"))
    assert judge.calibration is None
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert "too few rated videos" in summary["not_calibrated"]
    with pytest.raises(UserError, match="not calibrated"):
        score_samples(read_samples(study.samples), judge, tmp_path, device=CPU)


def test_changed_judges_are_refused(run, tmp_path):
    for name, expected in (
        ("training.json", "changed"),
        ("model/template.txt", "cannot be used"),
        ("judge.json", "cannot read"),
        ("calibration.json", "calibration"),
    ):
        copy = tmp_path / name.replace("/", "_")
        shutil.copytree(run / "judge", copy)
        assert digest(copy) == digest(run / "judge")
        text = (copy / name).read_text()
        (copy / name).write_text(text[: len(text) // 2])
        with pytest.raises(CheckpointError, match=expected):
            read_judge(copy)
    other = tmp_path / "other"
    shutil.copytree(run / "judge", other)
    record = json.loads((other / "calibration.json").read_text())
    (other / "calibration.json").write_text(json.dumps({**record, "judge": "f" * 64}))
    with pytest.raises(CheckpointError, match="does not belong"):
        read_judge(other)
    with pytest.raises(CheckpointError):
        read_judge(tmp_path / "nowhere")


def test_settings_that_cannot_work(study, tmp_path):
    for wrong in ({"updates": 0}, {"batch_clips": 3, "micro_batch": 2}, {"method": "magic"}):
        with pytest.raises(ConfigError):
            settings(study, **wrong)
    with pytest.raises(ConfigError, match="base is not set"):
        train_judge(settings(study, base=""), output_dir=tmp_path / "x")
    with pytest.raises(UserError, match="cannot score"):
        train_judge(
            settings(study, dimensions=("overall",)), output_dir=tmp_path / "x", dry_run=False
        )
    assert train_judge(settings(study), output_dir=tmp_path / "x", dry_run=True) is None


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_inputs_are_those_of_the_plain_path_bit_by_bit(study, cache_bytes):
    """Each clip read, normalised and only then cut, and its prompt tokenized, one by one."""
    clips, directory = (
        read_rated_clips([study.ratings], study.samples),
        read_reward_directory(study.base),
    )
    scale, spec, encoder = target_scale(clips), directory.spec, directory.encoder()
    data = RatedDataset(clips, directory, scale, cache_bytes)
    for rows in ([3, 0, 7], [3, 8]):  # one of them from memory
        batch = collate_rated([data[row] for row in rows])
        pixels, grids = [], []
        for number, row in enumerate(rows):
            item = clips.samples.samples[row]
            frames, fps = read_video(clips.samples.video_path(item))
            patches, grid = clip_patches(
                frames[spec.sampler.indices(len(frames), fps)], spec.pixels
            )
            ids = encoder.encode(item.caption, num_tokens(grid))
            assert batch["input_ids"][number, : len(ids)].tolist() == ids
            assert batch["attention_mask"][number].sum() == len(ids)
            pixels.append(patches)
            grids.append(grid)
            mean, deviation = torch.tensor(list(scale.values())).T
            points = batch["ratings"][number] * deviation + mean
            assert points.tolist() == pytest.approx(clips.mean[row].tolist(), abs=1e-5)
        found = normalize_patches(batch["pixel_values"], spec.pixels)
        assert torch.equal(found, torch.cat(pixels)) and batch["grid_thw"].tolist() == [
            list(grid) for grid in grids
        ]


def test_unusable_clips_are_named_before_the_training(study, tmp_path):
    clips, directory = (
        read_rated_clips([study.ratings], study.samples),
        read_reward_directory(study.base),
    )
    away = dataclasses.replace(clips.samples, folder=tmp_path)
    with pytest.raises(UserError, match="videos of rated samples are missing"):
        RatedDataset(dataclasses.replace(clips, samples=away), directory, target_scale(clips), 0)
    data = RatedDataset(clips, directory, target_scale(clips), 0)
    (tmp_path / "clips").mkdir()
    (tmp_path / clips.samples.samples[8].video).write_bytes(b"nothing")
    data._clips = dataclasses.replace(clips, samples=away)
    with pytest.raises(UserError, match="a rated clip cannot be used") as caught:
        data[8]
    assert clips.samples.samples[8].video in str(caught.value)


def test_target_scale_is_weighted(study):
    clips = read_rated_clips([study.ratings], study.samples)
    scale = target_scale(clips)
    scores = clips.ratings[clips.ratings["dimension"] == "visual_quality"]
    mean, deviation = scale["visual_quality"]
    assert mean == pytest.approx(scores["score"].mean())  # the mean of all single ratings
    assert deviation == pytest.approx(clips.mean[:, 1].std())
    flat = dataclasses.replace(clips, mean=np.full_like(clips.mean, 3.0))
    with pytest.raises(UserError, match="cannot be learned"):
        target_scale(flat)


def test_shuffled_captions_are_those_of_other_prompts(study):
    listed = read_samples(study.samples)
    moved = shuffle_captions(listed)
    pairs = {(a.caption, b.caption) for a, b in zip(listed.samples, moved.samples, strict=True)}
    assert len(pairs) == 20 and all(a != b for a, b in pairs)
    assert sorted(b for _, b in pairs) == sorted(a for a, _ in pairs)
    assert shuffle_captions(listed).samples == moved.samples
    one = dataclasses.replace(listed, samples=listed.samples[:2])
    with pytest.raises(UserError, match="shuffled"):
        shuffle_captions(one)
