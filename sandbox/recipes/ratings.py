"""Ratings of the sandbox: clips of several qualities rated by simulated people, to train a judge.

A clip whose oracle score in a dimension is s in [0, 1] has the quality 1 + 4 s. A rater sees the
quality plus a bias of its own and noise, and rounds it into 1..5. As in the report's protocol three
raters see each clip, and two more where the first three differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from longtake.core.video import write_mp4
from longtake.evaluation.dimensions import SCALE
from longtake.evaluation.protocol import ProtocolConfig
from longtake.evaluation.ratings import Rating, Sample, append_ratings, write_samples
from longtake.runtime.files import write_text
from longtake.runtime.progress import progress_bar
from longtake.runtime.rng import derive_key
from longtake.sandbox.facts import FPS, Split
from longtake.sandbox.preferences import (
    WRONG_SCENE,
    Candidate,
    PairConfig,
    PoolJob,
    Samples,
    pool_jobs,
    preference_prompts,
    run_jobs,
)
from longtake.sandbox.raters import SimulatedRater
from longtake.sandbox.recipes.samples import QUALITIES

# Rated dimension -> the oracle behind it.
ORACLE_OF = {"text_alignment": "alignment", "visual_quality": "visual", "motion_quality": "motion"}
# Origin of a candidate -> its generator in the study; damaged renders are `damaged`.
ORIGINS = {"clean": "render", "static": "still", WRONG_SCENE: "other-scene"}
SAMPLES, RATINGS, TRUTH = "samples.csv", "ratings.jsonl", "truth.jsonl"
TEST_PROMPTS = "test_prompts.txt"


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


def make_ratings(
    out: Path,
    prompts: Mapping[Split, int],
    config: RatingConfig,
    samples: Samples,
    workers: int = 0,
) -> None:
    """Write clips, the list of samples, ratings, and the truth behind them.

    ``samples.csv`` is written last: a folder that has it is complete. ``prompts`` counts those of
    each split; the held-out ones are listed as test prompts. ``samples`` of the model are in the
    order of :data:`QUALITIES`. The result does not depend on the number of worker processes.
    """
    for name in (RATINGS, TRUTH):
        (out / name).unlink(missing_ok=True)  # of a run that was killed
    pools = PairConfig(damaged=config.damaged)
    jobs = [
        job
        for split, total in prompts.items()
        for job in pool_jobs(split, total, config.seed, pools, samples)
    ]
    listed: list[Sample] = []
    with progress_bar("ratings", len(jobs)) as bar:
        work = partial(_rate, out=out, config=config)
        for done, rated in enumerate(run_jobs(work, jobs, workers), start=1):
            listed += [item for item, _, _ in rated]
            append_ratings(out / RATINGS, (r for _, given, _ in rated for r in given))
            append_ratings(out / TRUTH, (r for _, _, truth in rated for r in truth))
            bar.update(done)
    held_out = preference_prompts("held_out", 0, prompts.get("held_out", 0), config.seed)
    write_text(out / TEST_PROMPTS, "".join(f"{text}\n" for text in dict.fromkeys(held_out)))
    write_samples(out / SAMPLES, listed)


def _rate(
    job: PoolJob, out: Path, config: RatingConfig
) -> list[tuple[Sample, list[Rating], list[Rating]]]:
    """Render and write the clips of a job; each with the ratings of people and the truth."""
    rated = []
    for number, caption, pool in job.pools():
        quality = 0
        for clip in pool:
            model = _generator(clip, quality)
            quality += clip.origin == "model"
            path = f"clips/{clip.name}.mp4"
            write_mp4(clip.video, out / path, fps=FPS, lossless=True)
            sample = Sample(
                sample=clip.name,
                model=model,
                prompt=f"{job.split}-{number:06d}",
                caption=caption,
                video=path,
            )
            rated.append((sample, rate_clip(clip, config), _truth(clip)))
    return rated


def _generator(clip: Candidate, quality: int) -> str:
    if clip.origin == "model":
        return QUALITIES[quality].generator
    return ORIGINS.get(clip.origin.partition(",")[0], "damaged")


def rate_clip(clip: Candidate, config: RatingConfig) -> list[Rating]:
    """The ratings that the protocol collects for a clip, named by its name and the seed."""
    # Named by the clip: ratings do not depend on the number of workers.
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
