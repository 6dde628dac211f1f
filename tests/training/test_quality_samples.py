"""Samples of the tiny model at several qualities."""

import torch

from longtake.core.checkpoint import load_checkpoint
from longtake.core.generation import TINY_CHECKPOINT
from longtake.training.quality_samples import QUALITIES, Quality, sample_qualities


def test_one_clip_per_prompt_and_quality():
    model = load_checkpoint(TINY_CHECKPOINT)
    prompts = ["a red circle moves left", "a blue square stands still", "a red circle moves left"]
    qualities = (Quality(num_steps=1, guidance_scale=1.0), Quality(num_steps=2, guidance_scale=3.0))
    seen: list[int] = []
    kwargs = {"qualities": qualities, "batch_size": 2}
    clips = sample_qualities(model, prompts, 5, 64, 0, on_progress=seen.append, **kwargs)
    assert list(clips) == prompts[:2] and seen == [2, 4]
    for made in clips.values():
        assert made.shape == (2, 5, 3, 64, 64) and made.dtype == torch.uint8
        assert not torch.equal(made[0], made[1])
    again = sample_qualities(model, prompts, 5, 64, 0, **kwargs)
    other = sample_qualities(model, prompts, 5, 64, 1, **kwargs)
    for prompt, made in clips.items():
        assert torch.equal(made, again[prompt]) and not torch.equal(made, other[prompt])


def test_qualities_are_different_settings():
    assert len(set(QUALITIES)) == len(QUALITIES)
