"""The shipped model and prompt lists: complete, small, recorded, and able to draw what is asked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from longtake.core.checkpoint import Checkpoint, load_checkpoint
from longtake.core.sampler import generate
from longtake.core.video import to_uint8
from longtake.evaluation.judge.directory import JudgeClip, read_judge
from longtake.grpo.config import PRESETS
from longtake.rewards.contract import VideoBatch
from longtake.rewards.directory import read_reward_directory
from longtake.rewards.registry import TINY_REWARDS, load_suite
from longtake.rewards.suite import RewardSuite
from longtake.runtime.files import digest
from longtake.sandbox.captions import SPLIT_ATTRIBUTES, caption, prompts
from longtake.sandbox.corruptions import CORRUPTIONS
from longtake.sandbox.oracles import oracle_scores
from longtake.sandbox.render import render
from longtake.sandbox.scene import sample_scenes

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "checkpoints" / "tiny"
LISTS = ROOT / "benchmarks_data" / "sandbox_prompts"


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return load_checkpoint(TINY, "cpu", torch.float32)


def test_files_are_small_and_their_digests_are_recorded() -> None:
    size = sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file())
    assert size <= 40 * 2**20
    record = json.loads((TINY / "provenance.json").read_text(encoding="utf-8"))
    from longtake.runtime.files import digest

    for part, recorded in record["digests"].items():
        assert digest(TINY / part) == recorded, part
    assert record["config"]["vae"] and record["config"]["base"] and record["seconds"]


def test_samples_of_held_out_prompts_show_what_was_asked(tiny: Checkpoint) -> None:
    asked = prompts("held_out", 12)
    video = generate(tiny, asked, 17, 64, 64, steps=16, guidance_scale=4.0, seed=3)
    matched = oracle_scores(video, asked)
    swapped = oracle_scores(video, asked[1:] + asked[:1])
    assert matched["alignment"].mean() > swapped["alignment"].mean() + 0.3
    # 0.79 on 96 prompts (README); twelve clips scatter by 0.06 around it.
    assert torch.stack(list(matched.values())).mean() > 0.6


@pytest.fixture(scope="module")
def learned() -> RewardSuite:
    config = PRESETS["tiny"]().rewards
    return load_suite(config.reward_weights, config.sources)


def test_learned_rewards_are_complete_and_those_of_the_preset(learned: RewardSuite) -> None:
    assert learned.names == ("hpsv3_general", "hpsv3_percentile", "videoalign_mq", "videoalign_ta")
    folders = sorted((TINY / "rewards").iterdir())
    assert [folder.name for folder in folders] == sorted(
        {Path(folder).name for folder in TINY_REWARDS.values()}
    )
    for folder in folders:
        reward = read_reward_directory(folder)
        for name, sha in reward.digests.items():
            assert digest(folder / name) == sha, name
        assert reward.provenance["training"]["updates"] >= 1500
        assert (reward.spec.color_mode == "bt601") == (folder.name == "videoalign_mq")


def test_learned_rewards_prefer_what_they_should(learned: RewardSuite) -> None:
    scenes = sample_scenes(77, 0, 16, "held_out")
    texts = [caption(scene, i, states=SPLIT_ATTRIBUTES) for i, scene in enumerate(scenes)]
    clean = render(scenes, dtype=torch.float32)

    def share(better: Tensor, worse: Tensor, name: str, captions: list[str]) -> float:
        """Of the clips: how often the reward agrees."""
        suite = RewardSuite({name: (learned.rewards[name], 1.0)})
        high, low = (
            suite.score(VideoBatch(video=video, prompts=prompts, fps=8.0)).scores[0]
            for video, prompts in ((better, texts), (worse, captions))
        )
        return float((high > low).double().mean())

    def damaged(name: str) -> Tensor:
        return CORRUPTIONS[name](clean, 0.8, torch.Generator().manual_seed(0))

    assert share(clean, damaged("blur"), "hpsv3_general", texts) >= 0.8
    for name in ("flicker", "jitter", "vanish"):
        assert share(clean, damaged(name), "videoalign_mq", texts) >= 0.8
    moves = [all(s.motion != "still" for s in scene.facts().sprites) for scene in scenes]
    assert sum(moves) >= 8
    stopped = clean[:, :1].expand_as(clean)
    keep = torch.tensor(moves)
    suite = RewardSuite({"mq": (learned.rewards["videoalign_mq"], 1.0)})
    high, low = (
        suite.score(VideoBatch(video=video[keep], prompts=[""] * sum(moves), fps=8.0)).scores[0]
        for video in (clean, stopped)
    )
    assert (high > low).double().mean() >= 0.8
    assert share(clean, clean, "videoalign_ta", texts[1:] + texts[:1]) >= 0.8


def test_the_judge_is_calibrated_and_sees_what_is_wrong() -> None:
    judge = read_judge(TINY / "judge")
    calibration = judge.calibration
    assert calibration is not None
    assert not set(judge.training.prompts) & set(prompts("held_out", 256))
    scenes = sample_scenes(78, 0, 24, "held_out")
    texts = [caption(scene, i, states=SPLIT_ATTRIBUTES) for i, scene in enumerate(scenes)]
    clean = render(scenes, dtype=torch.float32)
    damaged = {
        name: CORRUPTIONS[name](clean, 0.9, torch.Generator().manual_seed(0))
        for name in ("flicker", "jitter", "noise", "blur")
    }
    model = judge.load_model(torch.device("cpu"))

    def mean(video: Tensor, captions: list[str], dimension: str) -> float:
        frames = to_uint8(video)
        verdicts = model.judge(
            [
                JudgeClip(frames=clip, fps=8.0, caption=text)
                for clip, text in zip(frames, captions, strict=True)
            ]
        )
        raw = np.array([float(scores[dimension]) for scores in verdicts])
        return float(calibration.curves[dimension](raw).mean())

    for dimension in judge.dimensions:
        assert mean(clean, texts, dimension) > 4
    for name in ("flicker", "jitter"):
        assert mean(damaged[name], texts, "motion_quality") < 2.5
    for name in ("noise", "blur"):
        assert mean(damaged[name], texts, "visual_quality") < 3
    assert mean(clean, texts[1:] + texts[:1], "text_alignment") < 3.5


@pytest.mark.parametrize("split, count", [("train", 1024), ("held_out", 256)])
def test_prompt_lists_are_those_of_the_splits(split: str, count: int) -> None:
    stored = (LISTS / f"{split}.txt").read_text(encoding="utf-8").splitlines()
    assert stored == prompts(split, count)  # type: ignore[arg-type]


def test_prompt_lists_are_disjoint() -> None:
    train, held_out = (
        set((LISTS / f"{s}.txt").read_text().splitlines()) for s in ("train", "held_out")
    )
    assert not train & held_out
