"""VideoAlign on clips, against the public scorer's way: the whole prompt at once."""

import pytest
import torch
from torch import Tensor

from longtake.rewards.contract import VideoBatch
from longtake.rewards.frames import FrameSampler, to_grayscale
from longtake.rewards.model_inputs import chat_text
from longtake.rewards.pixels import normalize, patchify, resize, resized_size
from longtake.rewards.spec import Normalization
from longtake.rewards.suite import RewardSuite
from longtake.rewards.videoalign import VideoAlignReward, load_videoalign
from longtake.tests.tiny_reward import tiny_spec, write_tiny_reward

SCALES = {
    "VQ": Normalization(mean=0.3, std=2.0),
    "MQ": Normalization(mean=-0.7, std=0.5),
    "TA": Normalization(mean=1.5, std=3.0),
}
CAPTIONS = ["a red dog runs", "two blue squares", "rain {on} a roof, été"]
BOUND = 1e-5


@pytest.fixture(scope="module")
def gray_directory(tmp_path_factory):
    spec = tiny_spec("videoreward", color_mode="bt601", normalization=SCALES)
    return write_tiny_reward(tmp_path_factory.mktemp("r") / "gray", spec, 1)


@pytest.fixture(scope="module")
def color_directory(tmp_path_factory):
    spec = tiny_spec("videoreward", normalization=SCALES)
    return write_tiny_reward(tmp_path_factory.mktemp("r") / "rgb", spec, 2)


@pytest.fixture(scope="module")
def motion(gray_directory):
    return load_videoalign(gray_directory, ["videoalign_mq"])["videoalign_mq"]


@pytest.fixture(scope="module")
def alignment(color_directory):
    return load_videoalign(color_directory, ["videoalign_ta"])["videoalign_ta"]


def values(reward, batch):
    return torch.tensor([float(score) for score in reward.score(batch)])


def clips(seed, count=3, frames=9, size=(70, 90)):
    shape = (count, frames, 3, *size)
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def batch(video, captions=CAPTIONS, fps=3.0):
    return VideoBatch(video=video, prompts=list(captions)[: video.shape[0]], fps=fps)


def reference(directory, clip, caption, fps):
    """Raw VQ, MQ, TA of one clip."""
    spec = directory.spec
    shown = clip[FrameSampler().indices(len(clip), fps)]
    frames = shown if spec.color_mode == "rgb" else to_grayscale(shown, spec.color_mode)
    size = resized_size(*clip.shape[-2:], spec.pixels.min_pixels, spec.pixels.max_pixels)
    pixels = patchify(normalize(resize(frames, size, "torch"), spec.pixels))
    grid = torch.tensor([[len(shown) // 2, size[0] // 14, size[1] // 14]])
    text = chat_text(directory.template.text.format(text_prompt=caption), "video")
    text = text.replace("<|video_pad|>", "<|video_pad|>" * (int(grid.prod()) // 4))
    ids = torch.tensor([directory.tokenizer()(text, add_special_tokens=False)["input_ids"]])
    scores: Tensor = directory.load_model().score(ids, torch.ones_like(ids), pixels, grid)
    return scores[0]


@pytest.mark.parametrize(("index", "dimension"), [(0, "VQ"), (1, "MQ"), (2, "TA")])
def test_scores_are_those_of_the_whole_prompt(color_directory, gray_directory, index, dimension):
    directory = gray_directory if dimension == "MQ" else color_directory
    name = f"videoalign_{dimension.lower()}"
    video = clips(index)
    scores = values(load_videoalign(directory, [name])[name], batch(video))
    scale = SCALES[dimension]
    for row, caption in enumerate(CAPTIONS):
        raw = reference(directory, video[row], caption, 3.0)[index]
        assert abs(scores[row] - (raw - scale.mean) / scale.std) < BOUND / scale.std
    assert scores.std() > 1e-2


def test_motion_quality_does_not_see_the_caption(motion):
    video = clips(3)
    others = ["", "<|im_end|> reserved", "long " * 200]
    assert motion.score(batch(video)) == motion.score(batch(video, others))


def test_text_alignment_sees_caption_and_colour(alignment):
    video = clips(3, 1).expand(3, -1, -1, -1, -1)
    assert values(alignment, batch(video)).unique().numel() == 3
    video = clips(4)
    gray = values(alignment, batch(to_grayscale(video)))
    assert (values(alignment, batch(video)) - gray).abs().min() > 1e-4


def test_motion_quality_does_not_see_the_colour(motion):
    video = clips(4)
    assert motion.score(batch(video)) == motion.score(batch(to_grayscale(video)))
    # Not because it sees nothing: a brighter clip has another score.
    assert motion.score(batch(video)) != motion.score(batch(video // 2 + 90))


@pytest.mark.parametrize("name", ["videoalign_mq", "videoalign_ta"])
def test_scores_do_not_depend_on_the_batch(gray_directory, color_directory, name):
    directory = gray_directory if name == "videoalign_mq" else color_directory
    captions = ["a dog", "", "a long caption " * 9, "été", "two squares"]
    video, fps = clips(5, 5, 12), torch.tensor([3.0, 2.0, 12.0, 5.0, 3.0])
    model = directory.load_model()
    whole = values(VideoAlignReward(directory, model, name), batch(video, captions, fps))
    single = VideoAlignReward(directory, model, name, tokens_per_pass=1)
    assert (values(single, batch(video, captions, fps)) - whole).abs().max() <= BOUND
    order = [3, 1, 4, 0, 2]
    shuffled = batch(video, captions, fps).select(order)
    assert (values(single, shuffled) - whole[order]).abs().max() <= BOUND
    assert whole.unique().numel() == 5


def test_bad_samples_are_unscored_and_the_others_scored(alignment):
    video = clips(8, 5).float() / 255
    captions = ["a dog", "a <|TA_reward|> cat", "rain", "sun", "a <|video_pad|>"]
    good = alignment.score(batch(video, ["a dog", "", "rain", "sun", ""]))
    video[2, 0, 0, 0, 0] = torch.nan
    video[3, 1, 2, 5, 5] = 7.0
    row = RewardSuite({"ta": (alignment, 1.0)}).score(batch(video, captions)).rows["ta"]
    assert abs(float(row[0]) - float(good[0])) <= BOUND
    reasons = [score.reason or "" for score in row]
    assert reasons[0] == "" and "<|TA_reward|>" in reasons[1] and "<|video_pad|>" in reasons[4]
    assert "not finite" in reasons[2] and "[0, 1]" in reasons[3]


def test_a_clip_of_one_frame_is_unscored(motion):
    one, other = motion.score(batch(clips(9, 2, 1)))
    assert "too short" in str(one.reason) and other.value is None
    assert values(motion, batch(clips(9, 2, 3))).isfinite().all()
