"""Samples of the tiny model at several qualities."""

import torch

from longtake.core.generation import TINY_CHECKPOINT
from longtake.sandbox.recipes.samples import Quality, sample_qualities


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
