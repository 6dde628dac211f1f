"""Samples of a base model at several qualities: what preference pairs compare beside renders.

A reward that has only seen damaged renders does not know how a model fails. Fewer steps and less
guidance give worse samples of the same model, as earlier checkpoints and other samplers do in real
preference data.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """Clips that are sampled at a time."""

    prompts: list[str]
    quality: Quality
    num_frames: int
    side: int
    seed: int


def sample_qualities(
    checkpoint: str | Path,
    prompts: Sequence[str],
    num_frames: int,
    side: int,
    seed: int,
    *,
    qualities: Sequence[Quality] = QUALITIES,
    batch_size: int = 8,
    device: str = "auto",
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """One clip per prompt and quality, sampled on all GPUs that there are.

    Args:
        checkpoint: directory of the model.
        prompts: captions; a repeated one is sampled once.
        num_frames: frames of a clip, 4k + 1.
        side: height and width, pixels.
        seed: names the noise; the number of GPUs changes nothing.
        qualities: settings of the sampler.
        batch_size: clips sampled at a time (memory).
        device: "auto", "cpu" or "cuda".
        on_progress: called with the number of clips made.

    Returns:
        Prompt -> uint8 [number of qualities, T, 3, H, W] on the CPU.
    """
    unique = list(dict.fromkeys(prompts))
    jobs = [
        _Job(
            prompts=unique[start : start + batch_size],
            quality=quality,
            num_frames=num_frames,
            side=side,
            seed=derive_key(seed, "quality samples", number, start),
        )
        for number, quality in enumerate(qualities)
        for start in range(0, len(unique), batch_size)
    ]
    clips: dict[str, list[Tensor]] = {prompt: [] for prompt in unique}
    done = 0
    for job, videos in zip(jobs, _results(str(checkpoint), jobs, device), strict=True):
        for prompt, video in zip(job.prompts, videos, strict=True):
            clips[prompt].append(torch.from_numpy(video))
        done += len(job.prompts)
        if on_progress is not None:
            on_progress(done)
    return {prompt: torch.stack(made) for prompt, made in clips.items()}


def _results(checkpoint: str, jobs: Sequence[_Job], device: str) -> Iterator[NDArray[np.uint8]]:
    """Clips of the jobs, in their order."""
    places = devices(pick_device(device))
    count = len(places)
    if count == 1:
        model = load_checkpoint(checkpoint, torch.device(places[0]))
        yield from (_sample(model, job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    pools = [ProcessPoolExecutor(1, mp_context=context) for _ in places]
    try:
        waiting = [
            pools[i % count].submit(_sample_at, checkpoint, places[i % count], job)
            for i, job in enumerate(jobs)
        ]
        for future in waiting:
            yield future.result()
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)  # after an error nothing more is sampled


def devices(place: torch.device) -> list[str]:
    """All GPUs for ``cuda``, else the device itself."""
    if str(place) == "cuda":
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [str(place)]


@cache
def _loaded(checkpoint: str, place: str) -> Checkpoint:
    """The model of a worker process, loaded once."""
    return load_checkpoint(checkpoint, torch.device(place))


def _sample_at(checkpoint: str, place: str, job: _Job) -> NDArray[np.uint8]:
    return _sample(_loaded(checkpoint, place), job)


def _sample(model: Checkpoint, job: _Job) -> NDArray[np.uint8]:
    """uint8 [B, T, 3, H, W]."""
    video = generate(
        model,
        job.prompts,
        job.num_frames,
        job.side,
        job.side,
        steps=job.quality.num_steps,
        guidance_scale=job.quality.guidance_scale,
        seed=job.seed,
        batch_size=len(job.prompts),
    )
    pixels: NDArray[np.uint8] = to_uint8(video).cpu().numpy()
    return pixels
