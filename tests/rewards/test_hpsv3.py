"""HPSv3 on clips: one pass for two columns, equal to single frames scored one by one."""

import functools
import json
import math

import pytest
import torch

from longtake.rewards import hpsv3
from longtake.rewards.contract import Reward, VideoBatch
from longtake.rewards.hpsv3 import GENERAL, GENERAL_PROMPT, PERCENTILE, HPSv3Reward, HPSv3Scorer
from longtake.rewards.model_inputs import PromptEncoder, pad_prompts
from longtake.rewards.pixels import clip_patches
from longtake.rewards.suite import RewardSuite
from longtake.runtime.rng import generator
from longtake.sandbox.recipes.tiny_vlm import TINY_TEMPLATES, byte_tokenizer
from longtake.tests.tiny_reward import (
    TINY_PIXELS,
    tiny_model_config,
    tiny_reward_model,
    tiny_spec,
    write_tiny_reward,
)

COLUMNS = (GENERAL, PERCENTILE)
CAPTIONS = ["A red ball rolls.", "A-hm, two dogs", "a cat {text_prompt} sleeps on the warm roof"]


@pytest.fixture(scope="module")
def model():
    return tiny_reward_model(tiny_model_config("hpsv3"), 0)


@functools.cache
def encoder():
    template = TINY_TEMPLATES["hpsv3"]
    return PromptEncoder(template, byte_tokenizer(template.reward_tokens), "image")


def scorer(
    model, columns=COLUMNS, pixels=TINY_PIXELS["hpsv3"], tokens_per_pass=hpsv3.TOKENS_PER_PASS
):
    return HPSv3Scorer(model, encoder(), pixels, columns, tokens_per_pass)


def rewards_of(ours):
    return {column: HPSv3Reward(ours, column, {}) for column in ours.columns}


def values(reward, batch):
    return torch.tensor([float(score) for score in reward.score(batch)])


def clips(seed, num_frames=5, prompts=CAPTIONS):
    shape = (len(prompts), num_frames, 3, 40, 60)
    video = torch.randint(0, 256, shape, generator=generator(seed, "clips"), dtype=torch.uint8)
    return VideoBatch(video=video, prompts=prompts, fps=8.0)


@pytest.fixture
def passes(model):
    """Patches of every call of the vision tower."""
    calls = []
    hook = model.model.visual.register_forward_pre_hook(
        lambda module, args: calls.append(int(args[0].shape[0]))
    )
    yield calls
    hook.remove()


def one_by_one(model, video, prompt):
    """[F, 2]: mu and raw sigma of each frame of a clip in a pass of its own."""
    rows = []
    for frame in video:
        patches, grid = clip_patches(frame[None], TINY_PIXELS["hpsv3"])
        ids, mask = pad_prompts([encoder().encode(prompt, math.prod(grid) // 4)])
        rows.append(model.score(ids, mask, patches, torch.tensor([grid])))
    return torch.cat(rows)


def close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_both_columns_equal_frames_scored_one_by_one(model):
    batch = clips(0, num_frames=7)
    ours = scorer(model)
    frames, rewards = ours.score(batch), rewards_of(ours)
    general, percentile = (values(rewards[column], batch) for column in COLUMNS)
    for clip, caption in enumerate(CAPTIONS):
        alone = one_by_one(model, batch.video[clip], GENERAL_PROMPT)
        close(frames[GENERAL][clip], alone)
        close(general[clip], alone[:, 0].mean())
        alone = one_by_one(model, batch.video[clip], caption)
        close(frames[PERCENTILE][clip], alone)
        best_two = sorted(alone[:, 0].tolist())[-2:]  # floor(0.3 * 7) = 2
        close(percentile[clip], torch.tensor(sum(best_two) / 2))
    # Or the comparison would say nothing.
    assert float(frames[GENERAL][..., 0].std()) > 0.05
    assert float((frames[GENERAL] - frames[PERCENTILE])[..., 0].abs().min()) > 1e-4


def test_scores_do_not_depend_on_the_token_bound(model, passes):
    batch = clips(5)
    expected = scorer(model, tokens_per_pass=1_000_000).score(batch)
    assert len(passes) == 1
    patches = passes[0] // 15  # of one of 3 x 5 frames
    longest = max(len(encoder().encode(caption, patches // 4)) for caption in CAPTIONS)
    for tokens, first_passes in ((1, [1] * 15), (4 * longest, [4])):
        passes.clear()
        result = scorer(model, tokens_per_pass=tokens).score(batch)
        frames = [count / patches for count in passes]
        assert sum(frames) == 15 and frames[: len(first_passes)] == first_passes
        for column in COLUMNS:
            close(result[column], expected[column])


def test_the_second_reward_finds_the_scores_of_the_first(model, passes):
    batch = clips(6)
    suite = RewardSuite({n: (r, 1.0) for n, r in rewards_of(scorer(model)).items()})
    scores = suite.score(batch)
    assert len(passes) == 1 and bool(scores.scores.isfinite().all())
    copy = VideoBatch(video=batch.video / 255.0, prompts=list(CAPTIONS), fps=30.0)
    assert torch.equal(suite.score(copy).scores, scores.scores)
    assert len(passes) == 1  # equal frames and captions; neither reward looks at the frame rate


def test_other_frames_or_captions_are_never_given_the_kept_scores(model, passes):
    batch = clips(7)
    ours = scorer(model)
    first = ours.score(batch)[GENERAL]
    batch.video[1, 2, 0, 5, 5] ^= 255  # in place: the same object with other content
    second = ours.score(batch)[GENERAL]
    assert len(passes) == 2
    assert float((first[1, 2] - second[1, 2]).abs().max()) > 1e-4
    other = VideoBatch(video=batch.video, prompts=[*CAPTIONS[:2], "another"], fps=8.0)
    ours.score(other)
    ours.score(VideoBatch(video=batch.video.transpose(-1, -2), prompts=CAPTIONS, fps=8.0))
    assert len(passes) == 4
    ours.score(batch)  # only the last batch is kept
    assert len(passes) == 5


def test_a_failed_pass_leaves_no_scores_behind(model, monkeypatch):
    ours, batch = scorer(model), clips(8)
    expected = ours.score(clips(9))[GENERAL]

    def out_of_memory(*args):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(hpsv3, "score_variants", out_of_memory)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                ours.score(batch)
    assert not torch.equal(ours.score(batch)[GENERAL], expected)


def test_equal_frames_are_scored_once(model, passes):
    video = clips(10).video
    video[0] = video[0, :1]  # still
    video[1, 3] = video[0, 0]
    video[2, 1] = video[0, 0]
    result = scorer(model).score(VideoBatch(video=video, prompts=["one", "one", "two"], fps=8.0))
    patches, _ = clip_patches(video[0, :1], TINY_PIXELS["hpsv3"])
    # 1 frame of the still clip, 4 new ones of the second, and all 5 of the third: other caption.
    assert sum(passes) == 10 * len(patches)
    for column in COLUMNS:
        scores = result[column]
        assert torch.equal(scores[0], scores[0, :1].expand(5, 2))
        assert torch.equal(scores[1, 3], scores[0, 0])
        prompt = GENERAL_PROMPT if column == GENERAL else "two"
        close(scores[2], one_by_one(model, video[2], prompt))
    passes.clear()
    # Without the percentile the caption is not read, and the third clip shares its frame as well.
    scorer(model, (GENERAL,)).score(VideoBatch(video=video, prompts=CAPTIONS, fps=8.0))
    assert sum(passes) == 9 * len(patches)


def test_unusable_samples_are_unscored_with_the_reason(model):
    good = clips(11)
    video = torch.cat([good.video, good.video]) / 255.0
    video[3, 2, 0, 1, 1] = math.nan
    video[4, 0] = 3.0
    prompts = [CAPTIONS[0], "say <|Reward|>", CAPTIONS[2], "x", "y", "a <|image_pad|> z"]
    rewards = rewards_of(scorer(model))
    suite = RewardSuite({n: (r, 1.0) for n, r in rewards.items()})
    scores = suite.score(VideoBatch(video=video, prompts=prompts, fps=8.0))
    for column, row in scores.rows.items():
        broken = [3, 4] if column == GENERAL else [1, 3, 4, 5]
        assert [i for i, score in enumerate(row) if score.reason] == broken
        assert "not finite" in str(row[3].reason) and "span" in str(row[4].reason)
        close(scores.columns[column][[0, 2]], values(rewards[column], good)[[0, 2]])
    assert "<|Reward|>" in str(scores.rows[PERCENTILE][1].reason)
    assert "<|image_pad|>" in str(scores.rows[PERCENTILE][5].reason)


def test_rewards_of_a_directory(model, tmp_path):
    directory = write_tiny_reward(tmp_path / "hpsv3", tiny_spec("hpsv3"), seed=0)
    batch = clips(16)
    rewards = hpsv3.load_hpsv3(directory, COLUMNS)
    for column, reward in rewards_of(scorer(model)).items():
        loaded = rewards[column]
        assert isinstance(loaded, Reward) and loaded.to("cpu") is loaded
        assert loaded.needs_prompt == (column == PERCENTILE) and not loaded.needs_time
        close(values(loaded, batch), values(reward, batch))
        assert directory.fingerprint().items() <= loaded.fingerprint().items()
    half = hpsv3.load_hpsv3(directory, [PERCENTILE], dtype=torch.bfloat16)
    assert bool(values(half[PERCENTILE], batch).isfinite().all())
    prints = [r.fingerprint() for r in (*rewards.values(), *half.values())]
    assert len({json.dumps(fields, sort_keys=True) for fields in prints}) == 3
