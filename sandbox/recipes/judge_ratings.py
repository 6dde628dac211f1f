"""Ratings of the sandbox: clips of several qualities rated by simulated people, to train a judge.

A clip whose oracle score in a dimension is s in [0, 1] has the quality 1 + 4 s. A rater sees the
quality plus a bias of its own and noise, and rounds it into 1..5. As in the report's protocol three
raters see each clip, and two more where the first three differ.
"""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longtake.core.video import write_mp4
from longtake.evaluation.csv_rows import write_text
from longtake.evaluation.dimensions import SCALE
from longtake.evaluation.mos_protocol import ProtocolConfig
from longtake.evaluation.records import Rating, append_ratings
from longtake.evaluation.samples import Sample, write_samples
from longtake.evaluation.simulated_raters import SimulatedRater
from longtake.runtime.progress import progress_bar
from longtake.runtime.rng import derive_key
from longtake.sandbox.facts import FPS, Split
from longtake.sandbox.preferences import (
    WRONG_SCENE,
    Candidate,
    PairConfig,
    candidate_pools,
    preference_prompts,
)
from longtake.sandbox.recipes.quality_samples import QUALITIES

ORACLE_OF = {"text_alignment": "alignment", "visual_quality": "visual", "motion_quality": "motion"}
"""Rated dimension -> the oracle behind it."""
ORIGINS = {"clean": "render", "static": "still", WRONG_SCENE: "other-scene"}
"""Origin of a candidate -> its generator in the study; damaged renders are ``damaged``."""
SAMPLES, RATINGS, TRUTH = "samples.csv", "ratings.jsonl", "truth.jsonl"
TEST_PROMPTS = "test_prompts.txt"
PROMPTS_PER_JOB = 8


def quality_name(number: int) -> str:
    """Generator of the samples of quality ``number`` (:data:`QUALITIES`)."""
    quality = QUALITIES[number]
    return f"tiny-steps{quality.num_steps}-cfg{quality.guidance_scale:g}"


@dataclass(frozen=True, kw_only=True)
class RatingConfig:
    """How clips are made and rated."""

    raters: tuple[SimulatedRater, ...]
    """The pool, at least as many as the protocol may ask."""
    damaged: int
    """Damaged renders of a prompt, beside a clean, a still and a wrong one."""
    seed: int
    """Names every draw."""
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    """When more raters are asked."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Prompts ``start`` to ``start + count - 1``: what a worker renders, writes and has rated."""

    out: Path
    split: Split
    start: int
    count: int
    config: RatingConfig
    samples: dict[str, np.ndarray]


Rated = list[tuple[Sample, list[Rating], list[Rating]]]
"""Clips with the ratings of people and the truth."""


def make_ratings(
    out: Path,
    prompts: Mapping[Split, int],
    config: RatingConfig,
    samples: Mapping[str, Tensor],
    workers: int = 0,
) -> None:
    """Write clips, the list of samples, ratings, and the truth behind them.

    ``samples.csv`` is written last: a folder that has it is complete.

    Args:
        out: folder.
        prompts: split -> number of its prompts; those of ``held_out`` are listed as test prompts.
        config: how clips are rated.
        samples: clips of the model by prompt, uint8 [number of qualities, T, 3, H, W].
        workers: processes; 0 is this one. The result does not depend on it.

    Raises:
        UserError: the folder cannot be written.
    """
    for name in (RATINGS, TRUTH):
        (out / name).unlink(missing_ok=True)  # of a run that was killed
    jobs = list(_jobs(out, prompts, config, samples))
    listed: list[Sample] = []
    with progress_bar("ratings", len(jobs)) as bar:
        for done, rated in enumerate(_results(jobs, workers), start=1):
            listed += [item for item, _, _ in rated]
            append_ratings(out / RATINGS, (r for _, given, _ in rated for r in given))
            append_ratings(out / TRUTH, (r for _, _, truth in rated for r in truth))
            bar.update(done)
    held_out = preference_prompts("held_out", 0, prompts.get("held_out", 0), config.seed)
    write_text(out / TEST_PROMPTS, "".join(f"{text}\n" for text in dict.fromkeys(held_out)))
    write_samples(out / SAMPLES, listed)


def _jobs(
    out: Path, prompts: Mapping[Split, int], config: RatingConfig, samples: Mapping[str, Tensor]
) -> Iterator[_Job]:
    for split, total in prompts.items():
        for start in range(0, total, PROMPTS_PER_JOB):
            count = min(PROMPTS_PER_JOB, total - start)
            texts = preference_prompts(split, start, count, config.seed)
            drawn = {text: samples[text].numpy() for text in texts if text in samples}
            yield _Job(out=out, split=split, start=start, count=count, config=config, samples=drawn)


def _results(jobs: Sequence[_Job], workers: int) -> Iterator[Rated]:
    if not workers:
        yield from map(_run, jobs)
        return
    # Forked children of a process with torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(_run, jobs)


def _run(job: _Job) -> Rated:
    samples = {text: torch.from_numpy(clips) for text, clips in job.samples.items()}
    pools = candidate_pools(
        job.split,
        job.start,
        job.count,
        job.config.seed,
        config=PairConfig(damaged=job.config.damaged),
        samples=samples.get,
    )
    rated: Rated = []
    for number, (caption, pool) in enumerate(pools, job.start):
        quality = 0
        for clip in pool:
            model = _generator(clip, quality)
            quality += clip.origin == "model"
            path = f"clips/{clip.name}.mp4"
            write_mp4(clip.video, job.out / path, fps=FPS, lossless=True)
            item = Sample(
                sample=clip.name,
                model=model,
                prompt=f"{job.split}-{number:06d}",
                caption=caption,
                video=path,
            )
            rated.append((item, rate_clip(clip, job.config), _truth(clip)))
    return rated


def _generator(clip: Candidate, quality: int) -> str:
    if clip.origin == "model":
        return quality_name(quality)
    return ORIGINS.get(clip.origin.partition(",")[0], "damaged")


def rate_clip(clip: Candidate, config: RatingConfig) -> list[Rating]:
    """The ratings that the protocol collects for a clip, named by its name and the seed."""
    rng = np.random.default_rng(derive_key(config.seed, "ratings", clip.name))
    protocol = config.protocol
    asked = protocol.first_raters + protocol.extra_raters
    order = rng.permutation(len(config.raters))[:asked]
    quality = np.array([1 + 4 * clip.oracles[name] for name in ORACLE_OF.values()])
    bias = np.array([config.raters[i].bias for i in order])[:, None]
    noise = np.array([config.raters[i].noise for i in order])[:, None]
    seen = quality + bias + noise * rng.normal(size=(asked, len(quality)))
    scores = np.clip(np.round(seen), *SCALE)
    first = scores[: protocol.first_raters]
    if float(np.ptp(first, axis=0).max()) < protocol.threshold:
        scores = first
    return [
        Rating(
            sample=clip.name, dimension=name, rater=config.raters[i].name, score=float(row[column])
        )
        for i, row in zip(order.tolist(), scores, strict=False)
        for column, name in enumerate(ORACLE_OF)
    ]


def _truth(clip: Candidate) -> list[Rating]:
    return [
        Rating(
            sample=clip.name,
            dimension=name,
            rater="truth",
            score=1 + 4 * clip.oracles[oracle],
            kind="automatic",
            provenance={"calibration": "exact"},
        )
        for name, oracle in ORACLE_OF.items()
    ]
