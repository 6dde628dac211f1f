"""Samples of a base model at several qualities: what preference pairs compare beside renders.

A reward that has only seen damaged renders does not know how a model fails. Fewer steps and less
guidance give worse samples of the same model, as earlier checkpoints and other samplers do in real
preference data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.core.checkpoint import Checkpoint
from longtake.core.sampler import generate
from longtake.runtime.rng import derive_key


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Settings of the sampler.

    Args:
        num_steps: Euler steps.
        guidance_scale: strength of the guidance; 1 is none.
    """

    num_steps: int
    guidance_scale: float


QUALITIES = (
    Quality(num_steps=16, guidance_scale=4.0),
    Quality(num_steps=16, guidance_scale=1.5),
    Quality(num_steps=8, guidance_scale=4.0),
    Quality(num_steps=5, guidance_scale=2.5),
)
"""From the quality that GRPO samples at downwards."""


def sample_qualities(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    num_frames: int,
    side: int,
    seed: int,
    *,
    qualities: Sequence[Quality] = QUALITIES,
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """One clip per prompt and quality.

    Args:
        checkpoint: the model.
        prompts: captions; a repeated one is sampled once.
        num_frames: frames of a clip, 4k + 1.
        side: height and width, pixels.
        seed: names the noise.
        qualities: settings of the sampler.
        batch_size: clips sampled at a time (memory).
        on_progress: called with the number of clips made.

    Returns:
        Prompt -> uint8 [number of qualities, T, 3, H, W] on the CPU.
    """
    unique = list(dict.fromkeys(prompts))
    clips: dict[str, list[Tensor]] = {prompt: [] for prompt in unique}
    done = 0
    for number, quality in enumerate(qualities):
        for start in range(0, len(unique), batch_size):
            part = unique[start : start + batch_size]
            video = generate(
                checkpoint,
                part,
                num_frames,
                side,
                side,
                steps=quality.num_steps,
                guidance_scale=quality.guidance_scale,
                seed=derive_key(seed, "quality samples", number, start),
                batch_size=batch_size,
            )
            for prompt, clip in zip(part, video.mul(255).round().to(torch.uint8), strict=True):
                clips[prompt].append(clip)
            done += len(part)
            if on_progress is not None:
                on_progress(done)
    return {prompt: torch.stack(made) for prompt, made in clips.items()}
