"""Samples of a base model at several qualities: what preference pairs compare beside renders.

A reward that has only seen damaged renders does not know how a model fails. Fewer steps and less
guidance give worse samples of the same model, as earlier checkpoints and other samplers do in real
preference data.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtake.core.checkpoint import Checkpoint, load_checkpoint
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


QUALITIES = (
    Quality(num_steps=16, guidance_scale=4.0),
    Quality(num_steps=16, guidance_scale=1.5),
    Quality(num_steps=8, guidance_scale=4.0),
    Quality(num_steps=5, guidance_scale=2.5),
)
"""From the quality that GRPO samples at downwards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """Clips that are sampled at a time."""

    prompts: list[str]
    quality: Quality
    num_frames: int
    seed: int


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
    """One clip per prompt and quality, sampled on all GPUs that there are, with progress.

    Args:
        checkpoint: directory of the model.
        prompts: captions; a repeated one is sampled once.
        seed: names the noise; the number of GPUs changes nothing.
        title: of the progress bar.
        qualities: settings of the sampler.
        num_frames: frames of a clip, 4k + 1.
        batch_size: clips sampled at a time (memory).
        device: "auto", "cpu" or "cuda".

    Returns:
        Prompt -> uint8 [number of qualities, T, 3, H, W] on the CPU.
    """
    unique = list(dict.fromkeys(prompts))
    jobs = [
        _Job(
            prompts=unique[start : start + batch_size],
            quality=quality,
            num_frames=num_frames,
            seed=derive_key(seed, "quality samples", number, start),
        )
        for number, quality in enumerate(qualities)
        for start in range(0, len(unique), batch_size)
    ]
    clips: dict[str, list[Tensor]] = {prompt: [] for prompt in unique}
    done = 0
    with progress_bar(title, len(unique) * len(qualities)) as bar:
        for job, videos in zip(jobs, _results(str(checkpoint), jobs, device), strict=True):
            for prompt, video in zip(job.prompts, videos, strict=True):
                clips[prompt].append(torch.from_numpy(video))
            done += len(job.prompts)
            bar.update(done)
    return {prompt: torch.stack(made) for prompt, made in clips.items()}


def _results(checkpoint: str, jobs: Sequence[_Job], device: str) -> Iterator[NDArray[np.uint8]]:
    """Clips of the jobs, in their order."""
    names = devices(pick_device(device))
    if len(names) == 1:
        yield from (_sample(checkpoint, names[0], job) for job in jobs)
        _model.cache_clear()  # what is trained next needs the memory
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    pools = [ProcessPoolExecutor(1, mp_context=context) for _ in names]
    try:
        waiting = [
            pools[i % len(names)].submit(_sample, checkpoint, names[i % len(names)], job)
            for i, job in enumerate(jobs)
        ]
        for future in waiting:
            yield future.result()
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)  # after an error nothing more is sampled


def devices(device: torch.device) -> list[str]:
    """All GPUs for ``cuda``, else the device itself."""
    if str(device) == "cuda":
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [str(device)]


@cache
def _model(checkpoint: str, device: str) -> Checkpoint:
    """The model of a process, loaded once."""
    return load_checkpoint(checkpoint, torch.device(device))


def _sample(checkpoint: str, device: str, job: _Job) -> NDArray[np.uint8]:
    """uint8 [B, T, 3, H, W]."""
    video = generate(
        _model(checkpoint, device),
        job.prompts,
        job.num_frames,
        FRAME_PX,
        FRAME_PX,
        steps=job.quality.num_steps,
        guidance_scale=job.quality.guidance_scale,
        seed=job.seed,
        batch_size=len(job.prompts),
    )
    pixels: NDArray[np.uint8] = to_uint8(video).cpu().numpy()
    return pixels
