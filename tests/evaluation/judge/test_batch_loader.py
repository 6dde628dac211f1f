"""Batches of rated clips: the inputs of the plain path, whoever makes them."""

import pytest
import torch

from longtake.core.video import read_video
from longtake.evaluation.judge.batch_loader import loaded_batches, parts
from longtake.evaluation.judge.clip_inputs import model_arguments
from longtake.evaluation.judge.rated_batches import ClipSource, target_scale
from longtake.evaluation.judge.rated_clips import read_rated_clips
from longtake.rewards.pixels import clip_patches, num_tokens
from longtake.rewards.reward_directory import read_reward_directory
from longtake.runtime.errors import UserError

ROWS = [[3, 0, 7, 11, 2], [1, 3, 8]]


@pytest.fixture
def source_of(study):
    def make(cache_bytes=2**20, part=None):
        clips = read_rated_clips([study.ratings], study.samples)
        if part is not None:
            clips = clips.part(part)
        return ClipSource(
            clips, read_reward_directory(study.base), target_scale(clips), cache_bytes
        )

    return make


def plain_inputs(source, study, rows):
    """Each clip read, normalised and only then cut, and its prompt tokenized, one by one."""
    directory = read_reward_directory(study.base)
    encoder, ids, pixels, grids = directory.encoder(), [], [], []
    for row in rows:
        item = source.clips.samples.samples[row]
        frames, fps = read_video(source.clips.samples.video_path(item))
        chosen = frames[directory.spec.sampler.indices(len(frames), fps)]
        patches, grid = clip_patches(chosen, directory.spec.pixels)
        ids.append(encoder.encode(item.caption, num_tokens(grid)))
        pixels.append(patches)
        grids.append(grid)
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    return padded, mask, torch.cat(pixels), torch.tensor(grids)


@pytest.mark.parametrize("loaders", [0, 2])
@pytest.mark.parametrize("cache_bytes", [0, 20_000, 2**20])
def test_inputs_are_those_of_the_plain_path_bit_by_bit(study, source_of, loaders, cache_bytes):
    source = source_of(cache_bytes)
    for _ in range(2):  # the second time from memory, as far as it reaches
        found = list(loaded_batches(source, ROWS, micro_batch=2, loaders=loaders, pin=False))
        assert [rows for rows, _ in found] == ROWS
        for rows, batches in found:
            cut = parts(len(rows), 2)
            assert len(batches) == len(cut)
            for part, batch in zip(cut, batches, strict=True):
                ours = model_arguments(batch, source.pixels, torch.device("cpu"))
                wanted = plain_inputs(source, study, rows[part])
                for a, b in zip(ours, wanted, strict=True):
                    assert a.dtype == b.dtype and torch.equal(a, b)


def test_what_one_process_decodes_is_there_for_all(source_of):
    source = source_of()
    clip = source.frames(5).clone()
    list(loaded_batches(source, ROWS, micro_batch=8, loaders=2, pin=False))
    files = source.clips.samples
    for row in {5, *ROWS[0], *ROWS[1]}:
        files.video_path(files.samples[row]).rename(files.folder / "away.mp4")
        try:
            kept = source.frames(row)  # read nowhere
        finally:
            (files.folder / "away.mp4").rename(files.video_path(files.samples[row]))
        assert kept.shape == clip.shape
    assert torch.equal(source.frames(5), clip)


def test_the_random_state_is_left_alone(source_of):
    before = torch.get_rng_state()
    list(loaded_batches(source_of(), ROWS, micro_batch=4, loaders=1, pin=False))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("loaders", [0, 2])
def test_a_clip_that_cannot_be_read_is_named(source_of, loaders):
    source = source_of()
    path = source.clips.samples.video_path(source.clips.samples.samples[8])
    away = path.with_suffix(".away")
    path.rename(away)
    try:
        path.write_bytes(b"nothing")
        with pytest.raises(UserError) as caught:
            list(loaded_batches(source, ROWS, micro_batch=4, loaders=loaders, pin=False))
    finally:
        away.rename(path)
    assert str(path) in str(caught.value) and "Traceback" not in str(caught.value)
