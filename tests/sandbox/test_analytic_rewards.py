"""Analytic rewards: independence of the batch, use against the oracles, known hacks."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from longtake.rewards.contract import VideoBatch
from longtake.rewards.suite import RewardSuite
from longtake.runtime.rng import generator
from longtake.sandbox.analytic_rewards import (
    AnalyticReward,
    FrozenError,
    General,
    MotionQuality,
    Percentile,
    TextAlignment,
)
from longtake.sandbox.analytic_terms import (
    ClipView,
    alignment_terms,
)
from longtake.sandbox.captions import caption, parse_caption
from longtake.sandbox.corruptions import CORRUPTIONS, wild_clip
from longtake.sandbox.oracles import oracle_scores
from longtake.sandbox.render import render
from longtake.sandbox.scene import sample_scenes

REWARDS = (General, Percentile, MotionQuality, TextAlignment)
NUM_WILD = 96


def scenes_and_captions(seed, num):
    scenes = sample_scenes(seed, 0, num)
    return scenes, [caption(s, i, states=("colour", "motion")) for i, s in enumerate(scenes)]


def values(reward, video, prompts, fps=8.0):
    scores = reward.score(VideoBatch(video=video, prompts=prompts, fps=fps))
    return torch.tensor([float(score) for score in scores])


@pytest.fixture(scope="module")
def wild():
    """Damaged clips, a quarter of them with the caption of another clip, with oracle scores."""
    scenes, prompts = scenes_and_captions(7, NUM_WILD)
    video = render(scenes, dtype=torch.float32)
    damaged = 4 * NUM_WILD // 5
    video[:damaged] = wild_clip(video[:damaged], generator(7, "wild"))
    _, others = scenes_and_captions(8, NUM_WILD)
    prompts = [others[i] if i % 4 == 0 else own for i, own in enumerate(prompts)]
    suite = RewardSuite({kind.name: (kind(), 1.0) for kind in REWARDS})
    batch = VideoBatch(video=video, prompts=prompts, fps=8.0)
    return batch, suite.score(batch).columns, oracle_scores(video, prompts)


def test_every_clip_is_scored_on_a_common_scale(wild):
    for column in wild[1].values():
        assert abs(column.mean()) < 0.5 and 0.7 < column.std() < 1.5


@pytest.mark.parametrize(
    ("name", "oracle", "least"),
    [
        ("general", "visual", 0.45),
        ("percentile", "alignment", 0.4),
        ("motion_quality", "motion", 0.4),
        ("text_alignment", "alignment", 0.5),
    ],
)
def test_each_reward_follows_its_oracle_but_not_exactly(wild, name, oracle, least):
    _, columns, oracles = wild
    rho = spearmanr(columns[name].numpy(), oracles[oracle].numpy()).statistic
    assert least < rho < 0.95


@pytest.mark.parametrize("kind", REWARDS)
def test_scores_do_not_depend_on_the_batch_and_need_what_they_say(wild, kind):
    batch, columns, _ = wild
    part, reward = batch.select([12, 3, 5]), kind()
    own = values(reward, part.video, part.prompts)
    assert torch.equal(own, columns[kind.name][[12, 3, 5]])
    swapped = values(reward, part.video, part.prompts[::-1])
    assert torch.equal(own, swapped) == (not kind.needs_prompt)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(1))
    truth = kind(noise_amplitude=0.0)
    own = values(truth, part.video, part.prompts)
    mixed = values(truth, part.video[:, order], part.prompts)
    slower = values(truth, part.video, part.prompts, fps=4.0)
    if kind.needs_time:
        assert (own - mixed).abs().max() > 0.3 and not torch.allclose(own, slower)
    else:
        torch.testing.assert_close(own, mixed, atol=1e-5, rtol=0)
        assert torch.equal(own, slower)


@pytest.mark.parametrize("kind", REWARDS)
def test_other_sizes_lengths_dtypes_and_captions_are_scored(kind):
    reward = kind()
    for shape in ((1, 1, 3, 64, 64), (1, 5, 3, 32, 48), (1, 2, 3, 9, 7)):
        video = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        assert values(reward, video, ["a red circle moves left"]).isfinite().all()
    scenes, prompts = scenes_and_captions(3, 4)
    video = render(scenes)
    torch.testing.assert_close(
        values(reward, video, prompts), values(reward, video.float() / 255, prompts),
        atol=1e-5, rtol=0,
    )  # fmt: skip
    assert values(reward, video, ["", "a dog on the beach", "x", "<|y|>"]).isfinite().all()
    broken = video.float() / 255
    broken[1, 4] = math.nan
    assert values(reward, broken, prompts).isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("kind", "defects"),
    [
        (General, ("blur", "noise", "clutter", "vanish", "ghost", "melt")),
        (Percentile, ("blur", "noise", "colour_drift", "clutter")),
        (MotionQuality, ("flicker", "jitter", "teleport", "vanish", "freeze", "noise")),
        (TextAlignment, ("colour_drift", "vanish", "teleport", "flicker")),
    ],
)
def test_defects_lower_the_score(kind, defects):
    scenes, prompts = scenes_and_captions(11, 24)
    video = render(scenes, dtype=torch.float32)
    reward: AnalyticReward = kind(noise_amplitude=0.0)
    clean = values(reward, video, prompts)
    for defect in defects:
        damaged = CORRUPTIONS[defect](video, 0.8, generator(0, defect))
        assert (clean - values(reward, damaged, prompts)).mean() > 0.15, defect


@pytest.mark.parametrize("kind", [MotionQuality, TextAlignment])
def test_a_repeated_frame_scores_lower(kind):
    """Static-clip probe (report Figure 9): motion quality must resist collapse to stills."""
    scenes, prompts = scenes_and_captions(11, 80)
    moving = [i for i, s in enumerate(scenes) if any(p.motion != "still" for p in s.sprites)]
    video, prompts = render([scenes[i] for i in moving]), [prompts[i] for i in moving]
    reward = kind(noise_amplitude=0.0)
    still = values(reward, video[:, :1].expand_as(video), prompts)
    assert (values(reward, video, prompts) - still).mean() > 0.3


def plain(colour=(0.05, 0.05, 0.06), num_frames=17):
    return torch.tensor(colour)[None, None, :, None, None].expand(1, num_frames, 3, 64, 64).clone()


def with_block(video, colour, size, left, top=20):
    region = video[:, :, :, top : top + size, left : left + size]
    region.copy_(torch.tensor(colour)[None, None, :, None, None].expand_as(region))
    return video


def test_hack_general_likes_large_saturated_blocks():
    scenes, prompts = scenes_and_captions(11, 40)
    reward = General(noise_amplitude=0.0)
    block = with_block(plain(), (0.98, 0.88, 0.08), 44, 10, 10)
    assert values(reward, block, [""]) > values(reward, render(scenes), prompts).quantile(0.9)


def test_hack_percentile_ignores_the_worst_frames():
    clip = with_block(plain(), (0.90, 0.12, 0.14), 13, 20)
    short = plain()
    short[:, 6:11] = clip[:, 6:11]
    reward, prompts = Percentile(noise_amplitude=0.0), ["a red square moves left"]
    torch.testing.assert_close(values(reward, clip, prompts), values(reward, short, prompts))


def test_hack_motion_quality_likes_a_smooth_brightness_drift():
    still = with_block(plain((0.2, 0.2, 0.2)), (0.9, 0.9, 0.9), 13, 20)
    drift = (still + torch.linspace(0, 0.1, 17)[None, :, None, None, None]).clamp(0, 1)
    reward = MotionQuality(noise_amplitude=0.0)
    assert values(reward, drift, [""]) - values(reward, still, [""]) > 0.3


def test_hack_text_alignment_takes_a_cross_fade_for_motion():
    fade = torch.linspace(0, 1, 17)[None, :, None, None, None]
    first, last = (with_block(plain(), (0.90, 0.12, 0.14), 13, left) for left in (36, 20))
    facts = parse_caption("a red square moves left")
    faked, still = (
        float(alignment_terms(ClipView(video[0]), facts, 8.0)["motion"])
        for video in (torch.lerp(first, last, fade), first)
    )
    assert faked > still + 0.3


def test_the_error_is_frozen_centred_of_unit_size_and_smooth(wild):
    video, error = wild[0].video, FrozenError(0, "x")
    table = torch.tensor([[float(error(v, f"caption {k}")) for v in video] for k in range(20)])
    assert abs(table.mean()) < 0.1 and abs(table.std() - 1) < 0.1
    again = torch.tensor([float(FrozenError(0, "x")(v, "caption 0")) for v in video])
    assert torch.equal(table[0], again)
    other = torch.tensor([float(FrozenError(1, "x")(v, "caption 0")) for v in video])
    assert not torch.allclose(table[0], other)
    near = torch.tensor([float(error(v + 1e-4, "caption 0")) for v in video])
    far = torch.tensor([float(error(v + 0.2, "caption 0")) for v in video])
    assert (table[0] - near).abs().max() < 0.1
    assert abs(torch.corrcoef(torch.stack([table[0], far]))[0, 1]) < 0.5
