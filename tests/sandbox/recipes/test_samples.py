"""Samples of the tiny model at several qualities."""

import torch

from longtake.core.generation import TINY_CHECKPOINT
from longtake.sandbox.recipes import samples
from longtake.sandbox.recipes.samples import Quality, devices, sample_qualities


def test_one_clip_per_prompt_and_quality():
    prompts = ["a red circle moves left", "a blue square stands still", "a red circle moves left"]
    qualities = (Quality(num_steps=1, guidance_scale=1.0), Quality(num_steps=2, guidance_scale=3.0))
    kwargs = {"qualities": qualities, "num_frames": 5, "batch_size": 2, "device": "cpu"}
    clips = sample_qualities(TINY_CHECKPOINT, prompts, 0, **kwargs)
    assert list(clips) == prompts[:2]
    for made in clips.values():
        assert made.shape == (2, 5, 3, 64, 64) and made.dtype == torch.uint8
        assert not torch.equal(made[0], made[1])
    again = sample_qualities(TINY_CHECKPOINT, prompts, 0, **kwargs)
    other = sample_qualities(TINY_CHECKPOINT, prompts, 1, **kwargs)
    for prompt, made in clips.items():
        assert torch.equal(made, again[prompt]) and not torch.equal(made, other[prompt])


def test_several_devices_make_the_same_clips(monkeypatch):
    prompts = [f"a red circle moves {way}" for way in ("left", "right", "up", "down", "diagonally")]
    quick = (Quality(num_steps=1, guidance_scale=1.0),)
    kwargs = {"qualities": quick, "num_frames": 5, "batch_size": 2, "device": "cpu"}
    alone = sample_qualities(TINY_CHECKPOINT, prompts, 0, **kwargs)
    monkeypatch.setattr(samples, "devices", lambda place: ["cpu", "cpu"])
    shared = sample_qualities(TINY_CHECKPOINT, prompts, 0, **kwargs)
    assert list(shared) == list(alone)
    for prompt, made in alone.items():
        assert (made.int() - shared[prompt].int()).abs().max() <= 1  # other numbers of threads


def test_devices_are_all_gpus_unless_one_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices(torch.device("cuda")) == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices(torch.device("cuda:1")) == ["cuda:1"]
    assert devices(torch.device("cpu")) == ["cpu"]
