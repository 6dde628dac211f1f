"""Analytic rewards: protocol, independence of the batch, use against the oracles, known hacks."""

import ast
import inspect
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr

from longtake import rewards as rewards_package
from longtake.rewards import REWARDS, load_reward, load_suite
from longtake.rewards.analytic import AnalyticReward
from longtake.rewards.contract import VideoBatch
from longtake.rewards.random_feature import RandomFeature
from longtake.rewards.sprite_features import cells, colour_moments, colour_track
from longtake.runtime.rng import generator
from longtake.sandbox.captions import caption
from longtake.sandbox.corruptions import CORRUPTIONS, wild_clip
from longtake.sandbox.oracles import oracle_scores
from longtake.sandbox.render import render
from longtake.sandbox.scene import sample_scenes

NAMES = tuple(REWARDS)
STATES = ("colour", "motion")
NUM_WILD = 96


def scenes_and_captions(seed, num):
    scenes = sample_scenes(seed, 0, num)
    return scenes, [caption(scene, i, states=STATES) for i, scene in enumerate(scenes)]


def batch_of(video, prompts, fps=8.0):
    return VideoBatch(video=video, prompts=prompts, fps=fps)


def truth(name):
    """The reward without its frozen error."""
    reward = load_reward(name)
    return AnalyticReward(
        name, reward._terms, replace(reward.config, noise_amplitude=0.0),
        needs_prompt=reward.needs_prompt, needs_time=reward.needs_time,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wild():
    """Damaged clips, a quarter of them with the caption of another clip, with oracle scores."""
    scenes, prompts = scenes_and_captions(7, NUM_WILD)
    video = wild_clip(render(scenes, dtype=torch.float32), generator(7, "wild"), share=0.8)
    _, others = scenes_and_captions(8, NUM_WILD)
    prompts = [others[i] if i % 4 == 0 else own for i, own in enumerate(prompts)]
    batch = batch_of(video, prompts)
    return batch, load_suite(dict.fromkeys(NAMES, 1.0)).score(batch), oracle_scores(video, prompts)


def test_every_clip_is_scored_on_a_common_scale(wild):
    _, scores, _ = wild
    assert scores.unscored() == dict.fromkeys(NAMES, 0)
    for column in scores.columns.values():
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
    _, scores, oracles = wild
    rho = spearmanr(scores.columns[name].numpy(), oracles[oracle].numpy()).statistic
    assert least < rho < 0.95


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_the_batch(wild, name):
    batch, scores, _ = wild
    part = batch.select([12, 3, 5])
    again = load_reward(name).score(part).score
    assert torch.equal(again, scores.columns[name][[12, 3, 5]])


@pytest.mark.parametrize("name", NAMES)
def test_larger_passes_agree_up_to_rounding(wild, name):
    batch, scores, _ = wild
    reward = load_reward(name)
    reward.config = replace(reward.config, clips_per_pass=7)
    again = reward.score(batch.select(range(20))).score
    torch.testing.assert_close(again, scores.columns[name][:20], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_uint8_and_float_clips_agree(name):
    scenes, prompts = scenes_and_captions(3, 4)
    eight_bit = render(scenes)
    reward = load_reward(name)
    first = reward.score(batch_of(eight_bit, prompts)).score
    second = reward.score(batch_of(eight_bit.float() / 255, prompts)).score
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1, 3, 64, 64), (1, 5, 3, 32, 48), (1, 2, 3, 9, 7)])
def test_other_sizes_and_lengths_are_scored(name, shape):
    video = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    output = load_reward(name).score(batch_of(video, ["a small red circle moves left slowly"]))
    assert output.valid.all()


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_clip_is_unscored_alone(name):
    scenes, prompts = scenes_and_captions(3, 3)
    video = render(scenes, dtype=torch.float32)
    video[1, 4] = math.nan
    output = load_reward(name).score(batch_of(video, prompts))
    assert output.valid.tolist() == [True, False, True]
    assert output.score[1].isnan() and output.reasons[1]


@pytest.mark.parametrize("name", NAMES)
def test_needs_prompt_is_honest(name):
    scenes, prompts = scenes_and_captions(3, 6)
    video = render(scenes)
    reward = load_reward(name)
    own = reward.score(batch_of(video, prompts)).score
    swapped = reward.score(batch_of(video, prompts[::-1])).score
    assert torch.equal(own, swapped) == (not reward.needs_prompt)


@pytest.mark.parametrize("name", NAMES)
def test_needs_time_is_honest(name):
    scenes, prompts = scenes_and_captions(3, 6)
    video = render(scenes)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(1))
    reward = truth(name)
    own = reward.score(batch_of(video, prompts)).score
    mixed = reward.score(batch_of(video[:, order], prompts)).score
    slower = reward.score(batch_of(video, prompts, fps=4.0)).score
    if reward.needs_time:
        assert (own - mixed).abs().max() > 0.3 and not torch.allclose(own, slower)
    else:
        torch.testing.assert_close(own, mixed, atol=1e-5, rtol=0)
        torch.testing.assert_close(own, slower)


@pytest.mark.parametrize("text", ["", "a dog on the beach", "something moves"])
@pytest.mark.parametrize("name", ["percentile", "text_alignment"])
def test_captions_without_colours_leave_the_caption_free_part(name, text):
    scenes, _ = scenes_and_captions(3, 3)
    output = truth(name).score(batch_of(render(scenes), [text] * 3))
    assert output.valid.all()
    free = {"percentile": "term.palette", "text_alignment": "term.lasting"}[name]
    for key, column in output.aux.items():
        if key.startswith("term."):
            assert (column.std() < 1e-6) == (key != free)


@pytest.mark.parametrize(
    ("name", "defects"),
    [
        ("general", ("blur", "noise", "clutter", "vanish", "ghost", "melt")),
        ("percentile", ("blur", "noise", "colour_drift", "clutter")),
        ("motion_quality", ("flicker", "jitter", "teleport", "vanish", "freeze", "noise")),
        ("text_alignment", ("colour_drift", "vanish", "teleport", "flicker")),
    ],
)
def test_defects_lower_the_score(name, defects):
    scenes, prompts = scenes_and_captions(11, 24)
    video = render(scenes, dtype=torch.float32)
    reward = truth(name)
    clean = reward.score(batch_of(video, prompts)).score
    for defect in defects:
        damaged = CORRUPTIONS[defect](video, 0.8, generator(0, defect))
        drop = clean - reward.score(batch_of(damaged, prompts)).score
        assert drop.mean() > 0.15, defect


def test_a_repeated_frame_has_less_motion_quality():
    """Static-clip probe (report Figure 9): motion quality must resist collapse to stills."""
    scenes, prompts = scenes_and_captions(11, 80)
    keep = [i for i, s in enumerate(scenes) if any(p.motion != "still" for p in s.sprites)]
    video = render([scenes[i] for i in keep])
    prompts = [prompts[i] for i in keep]
    still = video[:, :1].expand_as(video)
    for name in ("motion_quality", "text_alignment"):
        reward = truth(name)
        drop = reward.score(batch_of(video, prompts)).score
        drop = drop - reward.score(batch_of(still, prompts)).score
        assert drop.mean() > 0.3, name


def test_motion_quality_sees_gray_only():
    gray = torch.rand(1, 6, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    red, green = gray / 0.299, gray / 0.587
    zero = torch.zeros_like(gray)
    reward = truth("motion_quality")
    as_red = reward.score(batch_of(torch.cat([red * 0.5, zero, zero], 2), [""])).score
    as_green = reward.score(batch_of(torch.cat([zero, green * 0.5, zero], 2), [""])).score
    torch.testing.assert_close(as_red, as_green, atol=0.03, rtol=0)


def plain(colour=(0.05, 0.05, 0.06), num_frames=17):
    return torch.tensor(colour)[None, None, :, None, None].expand(1, num_frames, 3, 64, 64).clone()


def with_block(video, colour, size, left, top=20, frames=slice(None)):
    region = video[:, frames, :, top : top + size, left : left + size]
    region.copy_(torch.tensor(colour)[None, None, :, None, None].expand_as(region))
    return video


def test_hack_general_likes_large_saturated_blocks():
    scenes, prompts = scenes_and_captions(11, 40)
    clean = truth("general").score(batch_of(render(scenes), prompts)).score
    block = with_block(plain(), (0.98, 0.88, 0.08), 44, 10, 10)
    assert truth("general").score(batch_of(block, [""])).score.item() > clean.quantile(0.9)


def test_hack_percentile_ignores_the_worst_frames():
    clip = with_block(plain(), (0.90, 0.12, 0.14), 13, 20)
    short = plain()
    short[:, 6:11] = clip[:, 6:11]
    reward = truth("percentile")
    prompts = ["a small red square on a black background"]
    torch.testing.assert_close(
        reward.score(batch_of(clip, prompts)).score, reward.score(batch_of(short, prompts)).score
    )


def test_hack_motion_quality_likes_a_smooth_brightness_drift():
    still = with_block(plain((0.2, 0.2, 0.2)), (0.9, 0.9, 0.9), 13, 20)
    drift = (still + torch.linspace(0, 0.1, 17)[None, :, None, None, None]).clamp(0, 1)
    reward = truth("motion_quality")
    gain = reward.score(batch_of(drift, [""])).score - reward.score(batch_of(still, [""])).score
    assert gain.item() > 0.3


def test_hack_text_alignment_takes_a_cross_fade_for_motion():
    fade = torch.linspace(0, 1, 17)[None, :, None, None, None]
    red = (0.90, 0.12, 0.14)
    first, last = with_block(plain(), red, 13, 36), with_block(plain(), red, 13, 20)
    prompts = ["a red square moves left slowly"]
    reward = truth("text_alignment")
    faked = reward.score(batch_of(torch.lerp(first, last, fade), prompts)).aux["term.motion"]
    still = reward.score(batch_of(first, prompts)).aux["term.motion"]
    assert faked.item() > still.item() + 0.3


def test_error_is_frozen_centred_and_of_unit_size(wild):
    batch, scores, _ = wild
    error = RandomFeature(0, "x")
    values = torch.stack(
        [error(batch.video, [f"caption {k}"] * batch.num_samples) for k in range(20)]
    )
    assert torch.equal(values[0], RandomFeature(0, "x")(batch.video, ["caption 0"] * NUM_WILD))
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1
    other = RandomFeature(1, "x")(batch.video, ["caption 0"] * NUM_WILD)
    assert not torch.allclose(values[0], other)
    for name in NAMES:
        amplitude = load_reward(name).config.noise_amplitude
        assert 0.5 < scores.aux[name]["error"].std() / amplitude < 1.6


def test_error_varies_smoothly_with_the_pixels():
    video = torch.rand(64, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    error = RandomFeature(0, "x", num_cosines=256)
    base = error(video, [""] * 64)
    near = error(video + 1e-4, [""] * 64)
    far = error(video + 0.2, [""] * 64)
    assert (base - near).abs().max() < 0.1
    assert abs(torch.corrcoef(torch.stack([base, far]))[0, 1]) < 0.5


def test_fingerprint_names_every_parameter():
    for name in NAMES:
        reward = load_reward(name)
        first = reward.fingerprint()
        assert json.loads(json.dumps(first)) == first
        reward.config = replace(reward.config, noise_seed=5)
        assert reward.fingerprint() != first
    assert load_reward("percentile").fingerprint()["fraction"] == 0.3
    assert load_reward("motion_quality").fingerprint()["gray_mode"] == "bt601"


def test_cells_are_block_means():
    video = torch.rand(1, 2, 3, 65, 96, generator=torch.Generator().manual_seed(0)).double()
    grid = cells(video)
    assert grid.shape == (1, 2, 3, 32, 48)
    torch.testing.assert_close(grid[0, 1, 2, 5, 7], video[0, 1, 2, 10:12, 14:16].mean())


def test_moments_of_a_rectangle():
    share = torch.zeros(1, 1, 32, 32)
    share[0, 0, 8:16, 4:20] = 1.0  # height 8, width 16 cells of 1/32
    moments = colour_moments(share)
    assert moments.mass.item() == pytest.approx(128 / 1024)
    assert colour_track(share)[0, 0].tolist() == pytest.approx([12 / 32, 12 / 32], abs=1e-4)
    assert moments.box[0, 0].tolist() == pytest.approx([16 / 32, 8 / 32])
    assert moments.lean.item() == pytest.approx(0.0, abs=1e-3)


def test_rewards_never_import_the_sandbox():
    folder = Path(inspect.getfile(rewards_package)).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert not [name for name in names if "sandbox" in name], path
