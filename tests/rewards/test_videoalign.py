import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longtake.rewards.contract import Reward, RewardOutput, VideoBatch
from longtake.rewards.frame_sampling import FrameSampler
from longtake.rewards.grayscale import to_grayscale
from longtake.rewards.pixels import normalize, patchify, resize, resized_size
from longtake.rewards.reward_directory import RewardDirectory, write_reward_directory
from longtake.rewards.reward_spec import ColorMode, Normalization
from longtake.rewards.suite import RewardSuite
from longtake.rewards.template import chat_text
from longtake.rewards.videoalign import Dimension, VideoAlignReward, load_videoalign
from longtake.runtime.errors import UserError
from longtake.sandbox.recipes.tiny_vlm import tiny_spec, write_tiny_reward

SCALES = {
    "VQ": Normalization(mean=0.3, std=2.0),
    "MQ": Normalization(mean=-0.7, std=0.5),
    "TA": Normalization(mean=1.5, std=3.0),
}
CAPTIONS = ["a red dog runs", "two blue squares", "rain {on} a roof, été"]
BOUND = 1e-5


@pytest.fixture(scope="module")
def gray_directory(tmp_path_factory: pytest.TempPathFactory) -> RewardDirectory:
    spec = tiny_spec("videoreward", color_mode="bt601", normalization=SCALES)
    return write_tiny_reward(tmp_path_factory.mktemp("r") / "gray", spec, 1)


@pytest.fixture(scope="module")
def color_directory(tmp_path_factory: pytest.TempPathFactory) -> RewardDirectory:
    spec = tiny_spec("videoreward", normalization=SCALES)
    return write_tiny_reward(tmp_path_factory.mktemp("r") / "rgb", spec, 2)


def load(
    directory: RewardDirectory, dimension: Dimension, mode: ColorMode | None = None, **options: int
) -> VideoAlignReward:
    rewards = load_videoalign(
        directory.path,
        [dimension],
        color_mode=mode,
        **options,  # type: ignore[arg-type]
    )
    return next(iter(rewards.values()))


@pytest.fixture(scope="module")
def motion(gray_directory: RewardDirectory) -> VideoAlignReward:
    return load(gray_directory, "MQ")


@pytest.fixture(scope="module")
def alignment(color_directory: RewardDirectory) -> VideoAlignReward:
    return load(color_directory, "TA")


def clips(seed: int, count: int = 3, frames: int = 9, size: tuple[int, int] = (70, 90)) -> Tensor:
    shape = (count, frames, 3, *size)
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def batch(
    video: Tensor, captions: Sequence[str] = CAPTIONS, fps: float | Tensor = 3.0
) -> VideoBatch:
    return VideoBatch(video=video, prompts=list(captions)[: video.shape[0]], fps=fps)


def reference(
    directory: RewardDirectory, clip: Tensor, caption: str, fps: float, mode: ColorMode
) -> Tensor:
    """Raw VQ, MQ, TA of one clip as the public scorer computes them: the whole prompt at once."""
    spec = directory.spec
    chosen = clip[FrameSampler().indices(len(clip), fps)]
    frames = chosen if mode == "rgb" else to_grayscale(chosen, mode)
    size = resized_size(*clip.shape[-2:], spec.pixels.min_pixels, spec.pixels.max_pixels)
    pixels = patchify(normalize(resize(frames, size, "torch"), spec.pixels))
    grid = torch.tensor([[len(chosen) // 2, size[0] // 14, size[1] // 14]])
    text = chat_text(directory.template.text.format(text_prompt=caption), "video")
    text = text.replace("<|video_pad|>", "<|video_pad|>" * (int(grid.prod()) // 4))
    ids = torch.tensor([directory.tokenizer()(text, add_special_tokens=False)["input_ids"]])
    scores: Tensor = directory.load_model().score(ids, torch.ones_like(ids), pixels, grid)
    return scores[0]


@pytest.mark.parametrize(("index", "dimension"), [(0, "VQ"), (1, "MQ"), (2, "TA")])
def test_scores_are_those_of_the_whole_prompt(
    color_directory: RewardDirectory, gray_directory: RewardDirectory, index: int, dimension: str
) -> None:
    directory = gray_directory if dimension == "MQ" else color_directory
    reward = load(directory, dimension)  # type: ignore[arg-type]
    video = clips(index)
    output = reward.score(batch(video))
    scale = SCALES[dimension]
    for row, caption in enumerate(CAPTIONS):
        raw = reference(directory, video[row], caption, 3.0, directory.spec.color_mode)[index]
        assert abs(output.aux["raw"][row] - raw) < BOUND
        assert abs(output.score[row] - (raw - scale.mean) / scale.std) < BOUND / scale.std
    assert output.score.std() > 1e-2
    assert output.aux["num_frames"].tolist() == [6.0] * 3


def test_names_needs_and_fingerprint(motion: VideoAlignReward, alignment: VideoAlignReward) -> None:
    assert isinstance(motion, Reward) and isinstance(alignment, Reward)
    assert (motion.name, motion.needs_prompt, motion.needs_time) == ("videoalign_mq", False, True)
    assert (alignment.name, alignment.needs_prompt) == ("videoalign_ta", True)
    assert motion.fingerprint()["scored_in"] == "bt601"
    assert motion.fingerprint() != alignment.fingerprint()
    assert motion.fingerprint()["weights_sha256"] != alignment.fingerprint()["weights_sha256"]


def test_motion_quality_does_not_see_the_caption(motion: VideoAlignReward) -> None:
    video = clips(3)
    first = motion.score(batch(video)).score
    others = motion.score(batch(video, ["", "<|im_end|> reserved", "long " * 200])).score
    assert torch.equal(first, others)


def test_a_template_with_the_caption_first_shows_it_to_every_dimension(
    gray_directory: RewardDirectory, tmp_path: Path
) -> None:
    text = "{text_prompt}: <|VQ_reward|> <|MQ_reward|> <|TA_reward|>"
    template = dataclasses.replace(gray_directory.template, text=text)
    state = gray_directory.load_model().state_dict()
    tokenizer = gray_directory.tokenizer()
    first = write_reward_directory(
        tmp_path / "first", gray_directory.spec, template, tokenizer, state
    )
    reward = load(first, "MQ")
    video = clips(3, 1).expand(3, -1, -1, -1, -1)
    assert reward.needs_prompt
    assert reward.score(batch(video)).score.unique().numel() == 3


def test_text_alignment_does(alignment: VideoAlignReward) -> None:
    video = clips(3, 1).expand(3, -1, -1, -1, -1)
    scores = alignment.score(batch(video)).score
    assert scores.unique().numel() == 3


def test_motion_quality_does_not_see_the_colour(motion: VideoAlignReward) -> None:
    video = clips(4)
    assert torch.equal(
        motion.score(batch(video)).score, motion.score(batch(to_grayscale(video))).score
    )
    # Not because it sees nothing: a brighter clip has another score.
    assert not torch.equal(
        motion.score(batch(video)).score, motion.score(batch(video // 2 + 90)).score
    )


def test_text_alignment_sees_the_colour(alignment: VideoAlignReward) -> None:
    video = clips(4)
    gray = alignment.score(batch(to_grayscale(video))).score
    assert (alignment.score(batch(video)).score - gray).abs().min() > 1e-4


@pytest.mark.parametrize("dimension", ["MQ", "TA"])
def test_scores_do_not_depend_on_the_batch(
    gray_directory: RewardDirectory, color_directory: RewardDirectory, dimension: str
) -> None:
    directory = gray_directory if dimension == "MQ" else color_directory
    captions = ["a dog", "", "a long caption " * 9, "été", "two squares"]
    video, fps = clips(5, 5, 12), torch.tensor([3.0, 2.0, 12.0, 5.0, 3.0])
    whole = load(directory, dimension).score(batch(video, captions, fps)).score  # type: ignore[arg-type]
    single = load(directory, dimension, tokens_per_pass=1)  # type: ignore[arg-type]
    assert (single.score(batch(video, captions, fps)).score - whole).abs().max() <= BOUND
    order = [3, 1, 4, 0, 2]
    shuffled = batch(video, captions, fps).select(order)
    assert (single.score(shuffled).score - whole[order]).abs().max() <= BOUND
    assert whole.unique().numel() == 5


def test_the_playback_rate_decides_what_is_seen(motion: VideoAlignReward) -> None:
    video = clips(6, 1, 24).expand(2, -1, -1, -1, -1)
    output = motion.score(batch(video, fps=torch.tensor([8.0, 2.4])))
    assert output.aux["num_frames"].tolist() == [6.0, 20.0]
    assert output.score[0] != output.score[1]


def test_float_and_8_bit_clips_score_the_same(motion: VideoAlignReward) -> None:
    video = clips(7)
    assert torch.equal(
        motion.score(batch(video)).score, motion.score(batch(video.float() / 255)).score
    )


def test_bad_samples_are_unscored_and_the_others_scored(alignment: VideoAlignReward) -> None:
    video = clips(8, 5).float() / 255
    captions = ["a dog", "a <|TA_reward|> cat", "rain", "sun", "a <|video_pad|>"]
    good = alignment.score(batch(video, ["a dog", "", "rain", "sun", ""]))
    video[2, 0, 0, 0, 0] = torch.nan
    video[3, 1, 2, 5, 5] = 7.0
    output = alignment.score(batch(video, captions))
    assert output.valid.tolist() == [True, False, False, False, False]
    assert output.score.isnan().tolist() == [False, True, True, True, True]
    assert abs(output.score[0] - good.score[0]) <= BOUND
    reasons = [reason or "" for reason in output.reasons]
    assert reasons[0] == "" and "<|TA_reward|>" in reasons[1] and "<|video_pad|>" in reasons[4]
    assert "not finite" in reasons[2] and "[0, 1]" in reasons[3]


def test_a_clip_of_one_frame_is_unscored(motion: VideoAlignReward) -> None:
    output = motion.score(batch(clips(9, 2, 1)))
    assert not output.valid.any() and "too short" in (output.reasons[0] or "")
    assert motion.score(batch(clips(9, 2, 3))).aux["num_frames"].tolist() == [2.0, 2.0]


def test_the_suite_takes_them(motion: VideoAlignReward, alignment: VideoAlignReward) -> None:
    suite = RewardSuite({"mq": (motion, 1.0), "ta": (alignment, 1.0)})
    video = clips(10)
    scores = suite.score(batch(video, ["a dog", "<|im_start|>", "sun"]))
    assert scores.unscored() == {"mq": 0, "ta": 1}
    direct: RewardOutput = motion.score(batch(video))
    assert torch.equal(scores.columns["mq"], direct.score)


def test_another_colour_mode_is_refused_unless_forced(
    color_directory: RewardDirectory, gray_directory: RewardDirectory
) -> None:
    with pytest.raises(UserError, match="scoring in bt601"):
        load(color_directory, "MQ")  # the report's MQ is gray, these weights are not
    with pytest.raises(UserError, match="scoring in rgb"):
        load(gray_directory, "TA")
    video = clips(11)
    public = load(color_directory, "MQ", "rgb")  # as published
    forced = load(color_directory, "MQ", force_color_mode=True)
    assert public.fingerprint()["scored_in"] == "rgb"
    assert forced.fingerprint()["scored_in"] == "bt601"
    colored, gray = (reward.score(batch(video)).score for reward in (public, forced))
    assert (colored - gray).abs().min() > 1e-4
    assert torch.equal(public.score(batch(to_grayscale(video))).score, gray)


def test_dimensions_of_one_directory_share_their_weights(
    color_directory: RewardDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    original = RewardDirectory.load_model
    monkeypatch.setattr(
        RewardDirectory, "load_model", lambda *args: loads.append(1) or original(*args)
    )
    rewards = load_videoalign(color_directory.path, ["VQ", "TA"])
    assert list(rewards) == ["videoalign_vq", "videoalign_ta"] and len(loads) == 1


def test_raw_scores_can_be_asked_for(color_directory: RewardDirectory) -> None:
    reward = next(iter(load_videoalign(color_directory.path, ["TA"], normalize=False).values()))
    output = reward.score(batch(clips(12)))
    assert torch.equal(output.score, output.aux["raw"])
    assert reward.fingerprint()["normalized"] is False


def test_other_rewards_are_refused(color_directory: RewardDirectory, tmp_path: Path) -> None:
    still = write_tiny_reward(tmp_path / "still", tiny_spec("hpsv3"), 0)
    with pytest.raises(UserError, match="hpsv3 directory"):
        load_videoalign(still.path, ["TA"])
    with pytest.raises(UserError, match="XQ"):
        load_videoalign(color_directory.path, ["XQ"])  # type: ignore[list-item]


def test_scoring_leaves_the_clips_alone(motion: VideoAlignReward) -> None:
    video = clips(13).float() / 255
    copy = video.clone()
    motion.score(batch(video))
    assert torch.equal(video, copy)
