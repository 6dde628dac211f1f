"""Samples of a base model at several qualities: what preference pairs compare beside renders.

A reward that has only seen damaged renders does not know how a model fails. Fewer steps and less
guidance give worse samples of the same model, as earlier checkpoints and other samplers do in real
preference data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from longtake.core.checkpoint import load_checkpoint
from longtake.core.sampler import generate
from longtake.core.video import to_uint8
from longtake.runtime.device import pick_device
from longtake.runtime.progress import progress_bar
from longtake.runtime.rng import derive_key
from longtake.sandbox.facts import FRAME_PX, NUM_FRAMES


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Settings of the sampler."""

    num_steps: int
    guidance_scale: float
    """1 is none."""

    @property
    def generator(self) -> str:
        """Name of the generator in a study."""
        return f"tiny-steps{self.num_steps}-cfg{self.guidance_scale:g}"


# From the quality that GRPO samples at downwards.
QUALITIES = (
    Quality(num_steps=16, guidance_scale=4.0),
    Quality(num_steps=16, guidance_scale=1.5),
    Quality(num_steps=8, guidance_scale=4.0),
    Quality(num_steps=5, guidance_scale=2.5),
)


def sample_qualities(
    checkpoint: str | Path,
    prompts: Sequence[str],
    seed: int,
    *,
    title: str = "samples",
    qualities: Sequence[Quality] = QUALITIES,
    num_frames: int = NUM_FRAMES,
    batch_size: int = 8,
    device: str = "auto",
) -> dict[str, Tensor]:
    """One clip per prompt and quality of the model in ``checkpoint``, with progress.

    Returns prompt -> uint8 [number of qualities, T, 3, H, W] on the CPU; a prompt that stands twice
    is sampled once. The noise is named by the seed and the batch, so ``batch_size`` belongs to the
    result.
    """
    unique = list(dict.fromkeys(prompts))
    clips: dict[str, list[Tensor]] = {prompt: [] for prompt in unique}
    model = load_checkpoint(checkpoint, pick_device(device))
    done = 0
    with progress_bar(title, len(unique) * len(qualities)) as bar:
        for number, quality in enumerate(qualities):
            for start in range(0, len(unique), batch_size):
                part = unique[start : start + batch_size]
                videos = generate(
                    model,
                    part,
                    num_frames,
                    FRAME_PX,
                    FRAME_PX,
                    steps=quality.num_steps,
                    guidance_scale=quality.guidance_scale,
                    seed=derive_key(seed, "quality samples", number, start),
                    batch_size=len(part),
                )
                for prompt, video in zip(part, to_uint8(videos).cpu(), strict=True):
                    clips[prompt].append(video)
                done += len(part)
                bar.update(done)
    return {prompt: torch.stack(made) for prompt, made in clips.items()}
