"""HPSv3 on clips: one pass for two columns, equal to single frames scored one by one."""

import functools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longtake.rewards import hpsv3
from longtake.rewards.contract import Reward, VideoBatch
from longtake.rewards.hpsv3 import COLUMNS, GENERAL_PROMPT, Column, HPSv3Config, HPSv3Scorer
from longtake.rewards.pixels import HPSV3_PIXELS, PixelConfig, clip_patches
from longtake.rewards.prompt_batches import pad_prompts
from longtake.rewards.qwen2vl import Qwen2VLRewardModel
from longtake.rewards.suite import RewardSuite
from longtake.rewards.template import PromptEncoder
from longtake.runtime.errors import CheckpointError, UserError
from longtake.runtime.rng import generator
from longtake.sandbox.recipes.tiny_vlm import (
    TINY_PIXELS,
    TINY_TEMPLATES,
    tiny_model_config,
    tiny_reward_model,
    tiny_spec,
    write_tiny_reward,
)
from longtake.sandbox.recipes.tokenizer import byte_tokenizer

GENERAL, PERCENTILE = COLUMNS
CAPTIONS = ["A red ball rolls.", "A-hm, two dogs", "a cat {text_prompt} sleeps on the warm roof"]


@pytest.fixture(scope="module")
def models() -> dict[int, Qwen2VLRewardModel]:
    return {seed: tiny_reward_model(tiny_model_config("hpsv3"), seed) for seed in range(2)}


@pytest.fixture
def model(models: dict[int, Qwen2VLRewardModel]) -> Qwen2VLRewardModel:
    return models[0]


@functools.cache
def encoder() -> PromptEncoder:
    template = TINY_TEMPLATES["hpsv3"]
    return PromptEncoder(template, byte_tokenizer(template.reward_tokens), "image")


def scorer(
    model: Qwen2VLRewardModel,
    columns: tuple[Column, ...] = COLUMNS,
    pixels: PixelConfig = TINY_PIXELS["hpsv3"],
    **config: object,
) -> HPSv3Scorer:
    return HPSv3Scorer(
        model,
        encoder(),
        pixels,
        columns=columns,
        config=HPSv3Config(**config),  # type: ignore[arg-type]
    )


def clips(seed: int, num_frames: int = 5, prompts: list[str] = CAPTIONS) -> VideoBatch:
    shape = (len(prompts), num_frames, 3, 40, 60)
    video = torch.randint(0, 256, shape, generator=generator(seed, "clips"), dtype=torch.uint8)
    return VideoBatch(video=video, prompts=prompts, fps=8.0)


@pytest.fixture
def passes(model: Qwen2VLRewardModel) -> Iterator[list[int]]:
    """Patches of every call of the vision tower."""
    calls: list[int] = []
    hook = model.model.visual.register_forward_pre_hook(
        lambda module, args: calls.append(int(args[0].shape[0]))
    )
    yield calls
    hook.remove()


def one_by_one(model: Qwen2VLRewardModel, video: Tensor, prompt: str) -> Tensor:
    """[F, 2]: mu and raw sigma of each frame of a clip in a pass of its own."""
    rows = []
    for frame in video:
        patches, grid = clip_patches(frame[None], TINY_PIXELS["hpsv3"])
        ids, mask = pad_prompts([encoder().encode(prompt, math.prod(grid) // 4)])
        rows.append(model.score(ids, mask, patches, torch.tensor([grid])))
    return torch.cat(rows)


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_both_columns_equal_frames_scored_one_by_one(
    models: dict[int, Qwen2VLRewardModel],
) -> None:
    for seed, model in models.items():
        batch = clips(seed, num_frames=7)
        rewards = scorer(model).rewards()
        general, percentile = (rewards[column].score(batch) for column in COLUMNS)
        for clip, caption in enumerate(CAPTIONS):
            alone = one_by_one(model, batch.video[clip], GENERAL_PROMPT)
            close(general.aux["per_frame"][clip], alone[:, 0])
            close(general.aux["sigma"][clip].log(), alone[:, 1])
            close(general.score[clip], alone[:, 0].mean())
            alone = one_by_one(model, batch.video[clip], caption)
            close(percentile.aux["per_frame"][clip], alone[:, 0])
            close(percentile.aux["sigma"][clip].log(), alone[:, 1])
            best_two = sorted(alone[:, 0].tolist())[-2:]  # floor(0.3 * 7) = 2
            close(percentile.score[clip], torch.tensor(sum(best_two) / 2))
        # Or the comparison would say nothing.
        assert float(general.aux["per_frame"].std()) > 0.05
        assert float((general.aux["per_frame"] - percentile.aux["per_frame"]).abs().min()) > 1e-4


def test_one_pass_equals_two_independent_ones(model: Qwen2VLRewardModel) -> None:
    batch = clips(3)
    together = scorer(model).rewards()
    for column in COLUMNS:
        alone = scorer(model, (column,)).rewards()
        assert list(alone) == [column]
        close(alone[column].score(batch).score, together[column].score(batch).score)


def test_scores_do_not_depend_on_the_batch(model: Qwen2VLRewardModel) -> None:
    batch = clips(4)
    rewards = scorer(model).rewards()
    for column in COLUMNS:
        whole = rewards[column].score(batch)
        for clip in range(3):
            close(rewards[column].score(batch.select([clip])).score[0], whole.score[clip])
        turned = rewards[column].score(batch.select([2, 0, 1]))
        close(turned.score, whole.score[[2, 0, 1]])


def test_scores_do_not_depend_on_the_token_bound(
    model: Qwen2VLRewardModel, passes: list[int]
) -> None:
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
            close(result.scores[column], expected.scores[column])


def test_the_second_reward_finds_the_scores_of_the_first(
    model: Qwen2VLRewardModel, passes: list[int]
) -> None:
    batch = clips(6)
    suite = RewardSuite({n: (r, 1.0) for n, r in scorer(model).rewards().items()})
    scores = suite.score(batch)
    assert len(passes) == 1 and bool(scores.valid.all())
    copy = VideoBatch(video=batch.video / 255.0, prompts=list(CAPTIONS), fps=30.0)
    assert torch.equal(suite.score(copy).scores, scores.scores)
    assert len(passes) == 1  # equal frames and captions; neither reward looks at the frame rate


def test_other_frames_or_captions_are_never_given_the_kept_scores(
    model: Qwen2VLRewardModel, passes: list[int]
) -> None:
    batch = clips(7)
    ours = scorer(model)
    first = ours.score(batch)
    batch.video[1, 2, 0, 5, 5] ^= 255  # in place: the same object with other content
    second = ours.score(batch)
    assert len(passes) == 2
    assert float((first.scores[GENERAL][1, 2] - second.scores[GENERAL][1, 2]).abs().max()) > 1e-4
    other = VideoBatch(video=batch.video, prompts=[*CAPTIONS[:2], "another"], fps=8.0)
    ours.score(other)
    ours.score(VideoBatch(video=batch.video.transpose(-1, -2), prompts=CAPTIONS, fps=8.0))
    assert len(passes) == 4
    ours.score(batch)  # only the last batch is kept
    assert len(passes) == 5


def test_a_failed_pass_leaves_no_scores_behind(
    model: Qwen2VLRewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, batch = scorer(model), clips(8)
    expected = ours.score(clips(9)).scores[GENERAL]

    def out_of_memory(*args: object) -> list[Tensor]:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(hpsv3, "score_variants", out_of_memory)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of memory"):
                ours.score(batch)
    assert not torch.equal(ours.score(batch).scores[GENERAL], expected)


def test_equal_frames_are_scored_once(model: Qwen2VLRewardModel, passes: list[int]) -> None:
    batch = clips(10, prompts=["one", "one", "two"])
    video = batch.video.clone()
    video[0] = video[0, :1]  # still
    video[1, 3] = video[0, 0]
    video[2, 1] = video[0, 0]
    ours = scorer(model)
    result = ours.score(VideoBatch(video=video, prompts=batch.prompts, fps=8.0))
    # 1 frame of the still clip, 4 new ones of the second, and all 5 of the third: other caption.
    assert result.num_passed == 10 and sum(passes) % 10 == 0
    assert result.repeated.tolist() == [4, 0, 0]
    for column in COLUMNS:
        scores = result.scores[column]
        assert torch.equal(scores[0], scores[0, :1].expand(5, 2))
        assert torch.equal(scores[1, 3], scores[0, 0])
        prompt = GENERAL_PROMPT if column == GENERAL else "two"
        close(scores[2], one_by_one(model, video[2], prompt))
    rewards = ours.rewards()
    aux = rewards[GENERAL].score(VideoBatch(video=video, prompts=batch.prompts, fps=8.0)).aux
    assert aux["repeated_frames"].tolist() == [4, 0, 0]
    # Without the percentile the caption is not read, and the third clip shares its frame as well.
    alone = scorer(model, (GENERAL,)).score(VideoBatch(video=video, prompts=CAPTIONS, fps=8.0))
    assert alone.num_passed == 9


def test_unusable_samples_are_unscored_with_the_reason(model: Qwen2VLRewardModel) -> None:
    good = clips(11)
    video = torch.cat([good.video, good.video]) / 255.0
    video[3, 2, 0, 1, 1] = math.nan
    video[4, 0] = 3.0
    prompts = [CAPTIONS[0], "say <|Reward|>", CAPTIONS[2], "x", "y", "a <|image_pad|> z"]
    batch = VideoBatch(video=video, prompts=prompts, fps=8.0)
    rewards = scorer(model).rewards()
    direct = {column: rewards[column].score(batch) for column in COLUMNS}
    suite = RewardSuite({n: (r, 1.0) for n, r in rewards.items()}).score(batch)
    for k, column in enumerate(COLUMNS):
        output = direct[column]
        broken = [3, 4] if column == GENERAL else [1, 3, 4, 5]
        assert (~output.valid).nonzero().flatten().tolist() == broken
        assert bool(output.aux["per_frame"][broken].isnan().all())
        assert [i for i, reason in enumerate(output.reasons) if reason] == broken
        assert "not finite" in str(output.reasons[3]) and "span" in str(output.reasons[4])
        assert suite.reasons[k] == tuple(output.reasons)
        torch.testing.assert_close(suite.scores[k], output.score, rtol=0, atol=1e-5, equal_nan=True)
        close(output.score[[0, 2]], rewards[column].score(good).score[[0, 2]])
    assert "<|Reward|>" in str(direct[PERCENTILE].reasons[1])
    assert "<|image_pad|>" in str(direct[PERCENTILE].reasons[5])


def test_a_batch_without_a_usable_sample(model: Qwen2VLRewardModel, passes: list[int]) -> None:
    video = torch.full((2, 3, 3, 40, 60), math.nan)
    output = (
        scorer(model).rewards()[GENERAL].score(VideoBatch(video=video, prompts=["a", "b"], fps=8.0))
    )
    assert not bool(output.valid.any()) and all(output.reasons)
    alone = scorer(model, (PERCENTILE,)).rewards()[PERCENTILE]
    refused = alone.score(clips(0, prompts=["<|Reward|>", "<|im_end|>"]))
    assert not bool(refused.valid.any()) and not passes


def test_a_score_that_is_not_finite_is_unscored(model: Qwen2VLRewardModel) -> None:
    ours = scorer(tiny_reward_model(model.config, 5))
    with torch.no_grad():
        ours.model.rm_head[5].bias[0] = math.inf
    output = ours.rewards()[GENERAL].score(clips(12))
    assert output.reasons == ["the score is inf"] * 3 and not bool(output.valid.any())


def test_only_the_percentile_depends_on_the_caption(model: Qwen2VLRewardModel) -> None:
    batch = clips(13)
    other = VideoBatch(video=batch.video, prompts=["x", "yy", "zzz"], fps=8.0)
    rewards = scorer(model).rewards()
    moved = {c: rewards[c].score(batch).score - rewards[c].score(other).score for c in COLUMNS}
    assert float(moved[GENERAL].abs().max()) <= 1e-5
    assert float(moved[PERCENTILE].abs().min()) > 1e-3
    same = VideoBatch(video=batch.video, prompts=[GENERAL_PROMPT] * 3, fps=8.0)
    result = scorer(model).score(same)
    close(result.scores[PERCENTILE], result.scores[GENERAL])


def test_a_stride_scores_every_nth_frame(model: Qwen2VLRewardModel) -> None:
    batch = clips(14, num_frames=7)
    whole = scorer(model).rewards()[GENERAL].score(batch)
    output = scorer(model, stride=3).rewards()[GENERAL].score(batch)
    assert output.aux["frame_idx"].tolist() == [[0, 3, 6]] * 3
    close(output.aux["per_frame"], whole.aux["per_frame"][:, [0, 3, 6]])
    close(output.score, whole.aux["per_frame"][:, [0, 3, 6]].mean(1))
    assert whole.aux["frame_idx"].tolist() == [list(range(7))] * 3


def test_fraction_and_rounding_choose_the_frames(model: Qwen2VLRewardModel) -> None:
    batch = clips(15)
    for config, count in (({"fraction": 0.5}, 2), ({"fraction": 0.5, "rounding": "ceil"}, 3)):
        output = scorer(model, **config).rewards()[PERCENTILE].score(batch)
        best = output.aux["per_frame"].sort(dim=1).values[:, -count:]
        close(output.score, best.mean(1))


OPENED: list[str] = []
WATCHED: list[bool] = []


def _watch(event: str, args: tuple[object, ...]) -> None:
    if WATCHED and event == "open":
        OPENED.append(str(args[0]))


def test_a_long_clip_is_scored_at_published_size_without_any_file(
    model: Qwen2VLRewardModel, passes: list[int]
) -> None:
    rewards = scorer(model, pixels=HPSV3_PIXELS, tokens_per_pass=4096).rewards()
    # 93 frames at the published size, of which 8 differ, so that the test is quick.
    draw = generator(0, "long clip")
    frames = torch.randint(0, 256, (8, 3, 15, 26), generator=draw, dtype=torch.uint8)
    frames = frames.repeat_interleave(32, -1).repeat_interleave(32, -2)
    shown = torch.arange(93) // 12
    video = frames[shown][None]
    assert video.shape == (1, 93, 3, 480, 832)
    rewards[GENERAL].score(clips(0))  # imports are over
    passes.clear()
    sys.addaudithook(_watch)
    WATCHED.append(True)
    batch = VideoBatch(video=video, prompts=["a long take"], fps=15.0)
    outputs = {column: reward.score(batch) for column, reward in rewards.items()}
    WATCHED.clear()
    assert OPENED == []
    assert sum(passes) == 8 * 24 * 42  # 336 x 588 pixels, 252 tokens after the merger
    for column in COLUMNS:
        output = outputs[column]
        per_frame = output.aux["per_frame"]
        assert per_frame.shape == (1, 93) and bool(output.valid.all())
        assert torch.equal(per_frame[0], per_frame[0, ::12][shown])
        assert len(per_frame.unique()) == 8
        count = 93 if column == GENERAL else 27
        close(output.score, per_frame.sort(dim=1).values[:, -count:].mean(1))
        assert output.aux["repeated_frames"].tolist() == [85]


def test_rewards_of_a_directory(model: Qwen2VLRewardModel, tmp_path: Path) -> None:
    directory = write_tiny_reward(tmp_path / "hpsv3", tiny_spec("hpsv3"), seed=0)
    batch = clips(16)
    expected = scorer(model).score(batch).scores
    for source in (directory, directory.path, str(directory.path)):
        rewards = hpsv3.load_hpsv3(source)
        assert tuple(rewards) == COLUMNS
        for column, reward in rewards.items():
            assert isinstance(reward, Reward) and reward.name == column
            assert reward.needs_prompt == (column == PERCENTILE) and not reward.needs_time
            assert reward.to("cpu") is reward
            close(reward.score(batch).aux["per_frame"], expected[column][..., 0])
    half = hpsv3.load_hpsv3(directory, columns=(PERCENTILE,), dtype=torch.bfloat16)
    assert list(half) == [PERCENTILE]
    assert bool(half[PERCENTILE].score(batch).valid.all())
    assert half[PERCENTILE].fingerprint()["dtype"] == "torch.bfloat16"


def test_fingerprints_hold_what_moves_the_scores(tmp_path: Path) -> None:
    directory = write_tiny_reward(tmp_path / "hpsv3", tiny_spec("hpsv3"), seed=0)
    general, percentile = hpsv3.load_hpsv3(directory).values()
    record = directory.fingerprint()
    for reward in (general, percentile):
        assert record.items() <= reward.fingerprint().items()
    prints = [general.fingerprint(), percentile.fingerprint()]
    for config in ({"fraction": 0.5}, {"rounding": "ceil"}, {"stride": 2}):
        changed = hpsv3.load_hpsv3(directory, config=HPSv3Config(**config))  # type: ignore[arg-type]
        prints.append(changed[PERCENTILE].fingerprint())
    texts = [json.dumps(fields, sort_keys=True) for fields in prints]
    assert len(set(texts)) == len(texts)
    bounded = hpsv3.load_hpsv3(directory, config=HPSv3Config(tokens_per_pass=7))
    assert bounded[PERCENTILE].fingerprint() == percentile.fingerprint()


def test_misuse_is_explained(model: Qwen2VLRewardModel, tmp_path: Path) -> None:
    other = write_tiny_reward(tmp_path / "va", tiny_spec("videoreward"), seed=0)
    with pytest.raises(CheckpointError, match="another kind of reward"):
        hpsv3.load_hpsv3(other)
    for columns in ((), ("general",)):
        with pytest.raises(UserError, match="columns of HPSv3"):
            scorer(model, columns)  # type: ignore[arg-type]
    for field, value in (("stride", 0), ("tokens_per_pass", 0), ("fraction", 0.0)):
        with pytest.raises(UserError):
            HPSv3Config(**{field: value})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="rounding"):
        HPSv3Config(rounding="up")  # type: ignore[arg-type]
