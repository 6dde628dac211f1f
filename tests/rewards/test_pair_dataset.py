"""Pairs as model inputs: what the model is shown, and the memory that loaders share."""

import copy
import dataclasses
import multiprocessing

import pytest
import torch

from longtake.core.video import write_png
from longtake.rewards.directory import read_reward_directory
from longtake.rewards.hpsv3 import GENERAL_PROMPT
from longtake.rewards.pair_dataset import FrameCache, PairDataset, collate_pairs
from longtake.rewards.pairs import A_WINS, B_WINS, OVERALL, TIE, read_pairs
from longtake.rewards.pixels import clip_patches, normalize_patches
from longtake.runtime.errors import UserError


def dataset(folder, reward, dimensions=("MQ",), *, pairs=None, **options):
    pairs = pairs or read_pairs(folder / "pairs.csv")
    options = {"keep_ties": True, **options}
    return PairDataset(pairs, dimensions, reward.spec, reward.encoder(), folder, **options)


def test_clips_give_an_image_head_one_row_per_frame(pair_folder):
    reward = read_reward_directory(pair_folder / "hpsv3")
    data = dataset(pair_folder, reward, frames_per_clip=3)
    assert len(data) == 48 and [data[i].pair for i in range(4)] == [0, 0, 0, 1]
    assert not torch.equal(data[0].a.patches, data[1].a.patches)
    assert data[0].a.grid[0] == 1 and len(set(data.clip_keys())) == 48


def test_every_second_frame_can_be_shown_with_the_general_prompt(pair_folder):
    reward = read_reward_directory(pair_folder / "hpsv3")
    plain = dataset(pair_folder, reward, frames_per_clip=3)
    data = dataset(pair_folder, reward, frames_per_clip=3, general_prompt=GENERAL_PROMPT)
    for row in range(6):
        for key, other in zip(data.clip_keys()[row], plain.clip_keys()[row], strict=True):
            assert key.prompt == (GENERAL_PROMPT if row % 3 == 1 else other.prompt)
    assert data.rows_of_prompts() == plain.rows_of_prompts()
    ids = reward.encoder().encode(GENERAL_PROMPT, data[1].a.patches.shape[0] // 4, None)
    assert data[1].a.ids == ids and data[0].a.ids == plain[0].a.ids != ids


def test_training_sees_the_pixels_of_scoring(pair_folder, tmp_path):
    reward = read_reward_directory(pair_folder / "hpsv3")
    generator = torch.Generator().manual_seed(3)
    # Resized to 112x140; resizing that once more would give 84x112.
    frames = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8, generator=generator)
    pairs = read_pairs(pair_folder / "pairs.json")[:1]
    for name, frame in zip("ab", frames, strict=True):
        write_png(frame.permute(1, 2, 0), tmp_path / f"{name}.png")
    pair = dataclasses.replace(pairs[0], path_a="a.png", path_b="b.png")
    data = PairDataset([pair], (OVERALL,), reward.spec, reward.encoder(), tmp_path, keep_ties=True)
    for clip, frame in zip((data[0].a, data[0].b), frames, strict=True):
        patches, grid = clip_patches(frame[None], reward.spec.pixels)
        assert clip.grid == grid == (1, 8, 10)
        assert torch.equal(normalize_patches(clip.patches, reward.spec.pixels), patches)


def test_the_cache_changes_nothing(pair_folder):
    reward = read_reward_directory(pair_folder / "videoreward")
    plain, cached = dataset(pair_folder, reward), dataset(pair_folder, reward, cache_bytes=10**6)
    for _ in range(2):
        for i in (0, 5):
            assert torch.equal(plain[i].b.patches, cached[i].b.patches)
        cached._recent.clear()  # the second time frames come from the cache
    assert cached._cache.get(("5b.mp4", 2.0)) is not None
    assert plain._cache.get(("5b.mp4", 2.0)) is None


def test_batches_hold_each_clip_once(pair_folder):
    reward = read_reward_directory(pair_folder / "videoreward")
    data = dataset(pair_folder, reward, ("TA", "MQ"))
    batch = collate_pairs([data[0], data[1]])
    assert batch["labels"].tolist() == [[TIE, A_WINS], [-100, B_WINS]]
    assert batch["pairs"].tolist() == [0, 1]
    assert batch["clips"].tolist() == [[0, 2], [1, 3]]
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["grid_thw"].tolist() == [[2, 4, 4]] * 4
    assert torch.equal(batch["pixel_values"][:32], data[0].a.patches)
    assert torch.equal(batch["pixel_values"][32:64], data[0].b.patches)
    assert torch.equal(batch["pixel_values"][64:96], data[1].a.patches)
    again = collate_pairs([data[1], data[0], data[1]])  # a row that appears twice shares both clips
    assert again["clips"].tolist() == [[0, 2, 0], [1, 3, 1]] and len(again["grid_thw"]) == 4
    without_ties = dataset(pair_folder, reward, ("TA", "MQ"), keep_ties=False)
    assert without_ties[0].labels == [-100, A_WINS]


def test_prompts_with_reserved_tokens_are_refused(pair_folder):
    reward = read_reward_directory(pair_folder / "videoreward")
    pairs = read_pairs(pair_folder / "pairs.csv")
    bad = dataclasses.replace(pairs[3], prompt="a <|video_pad|> cat")
    with pytest.raises(UserError, match="reserved token"):
        PairDataset([bad], ["MQ"], reward.spec, reward.encoder(), pair_folder, keep_ties=True)
    image = dataclasses.replace(pairs[3], fps_a=None)
    with pytest.raises(UserError, match="no playback rate"):
        PairDataset([image], ["MQ"], reward.spec, reward.encoder(), pair_folder, keep_ties=True)


def frames(seed, count=3):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 4, 6), generator=draw, dtype=torch.uint8)


def test_what_does_not_fit_is_left_out_and_smaller_ones_still_fit():
    cache = FrameCache(range(5), 3 * 72 + 2 * 72)
    assert cache.get(0) is None
    for key, count in ((0, 3), (1, 3), (2, 2)):
        cache.put(key, frames(key, count))
    cache.put(0, frames(9))  # there already
    assert cache.get(1) is None and cache.get(3) is None
    assert torch.equal(cache.get(0), frames(0)) and torch.equal(cache.get(2), frames(2, 2))
    other = copy.deepcopy(cache)  # as a loader that is not forked gets it
    assert other.get(0) is None
    other.put(0, frames(1))
    assert torch.equal(other.get(0), frames(1)) and torch.equal(cache.get(0), frames(0))
    with pytest.raises(UserError, match="lower cache_mib"):
        FrameCache(["a"], 1 << 50)


def fill(cache, part):
    for key in range(part, 60):  # the parts overlap
        cache.put(key, frames(key))


def test_processes_share_the_cache():
    cache = FrameCache(range(60), 60 * 216)
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=fill, args=(cache, part)) for part in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert all(torch.equal(cache.get(key), frames(key)) for key in range(60))
