"""Preference pairs of the sandbox: clips of one prompt at several qualities, and their labels.

Each prompt gets a pool of candidates: the clean render, renders damaged by one corruption at one of
four strengths, a still image (the clean render's first frame repeated), the clean render of another
scene (for text alignment) and, where given, samples of a model. Some candidates change their
saturation, which no caption asks for: it is what a colour bias acts on. Pairs are drawn from the
pool; ``label_pair`` then lets a simulated annotator judge them.

This is the one module on whose way oracle scores reach a training: as labels of annotators and
raters who err (tests/test_import_rules.py).
"""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from longtake.core.video import to_uint8
from longtake.runtime.config import Config
from longtake.runtime.rng import derive_key, generator
from longtake.sandbox.annotators import DIMENSION_ORACLES, Annotator, Word, colourfulness
from longtake.sandbox.captions import SPLIT_ATTRIBUTES, caption
from longtake.sandbox.corruptions import CORRUPTIONS, SATURATION_RANGE, scale_saturation
from longtake.sandbox.facts import Split
from longtake.sandbox.oracles import oracle_scores
from longtake.sandbox.render import render
from longtake.sandbox.scene import Scene, sample_scene

# Strengths of the corruptions; the oracles fall over this range (tests/sandbox).
STRENGTHS = (0.15, 0.35, 0.6, 1.0)
# Origin of the render of another scene.
WRONG_SCENE = "wrong scene"
PROMPTS_PER_JOB = 8

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One clip of a prompt's pool."""

    name: str
    """Unique over splits, prompts and slots for one seed; a file name without suffix."""
    video: Tensor
    """uint8 [T, 3, H, W]."""
    origin: str
    """"clean", "static", "wrong scene", "model", or corruption and strength ("blur 0.35"), followed
    by the saturation factor where it was changed."""
    oracles: dict[str, float]
    """Oracle name -> score in [0, 1], with ``oracles.UNPROMPTED_MOTION``."""
    colourfulness: float
    """See ``annotators.colourfulness``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidatePair:
    """Two clips of one prompt, not yet judged."""

    prompt: str
    a: Candidate
    b: Candidate

    def oracle_difference(self, dimension: str) -> float:
        """Oracle score of A minus B in the dimension, oracle points."""
        oracle = DIMENSION_ORACLES[dimension]
        return self.a.oracles[oracle] - self.b.oracles[oracle]

    @property
    def colour_difference(self) -> float:
        """Colourfulness of A minus B."""
        return self.a.colourfulness - self.b.colourfulness


class PairConfig(Config):
    """How pools and pairs are made."""

    damaged: int = Field(default=3, ge=0)
    """Damaged renders in a pool, beside one clean render, one still image and one wrong scene."""
    pairs_per_prompt: int = Field(default=6, ge=1)
    """Pairs drawn from a pool, each at most once."""
    saturation_share: float = Field(default=0.5, ge=0, le=1)
    """Chance of a candidate (model samples apart) to change its saturation."""


DEFAULT_PAIRS = PairConfig()
# Prompt -> clips of a model, uint8 [M, T, 3, H, W].
Samples = Mapping[str, Tensor]


def preference_prompts(split: Split, start: int, count: int, seed: int) -> list[str]:
    """Prompts ``start`` to ``start + count - 1`` of a split: what a model is to be sampled for.

    Each states shape, colour and motion, which prove its split, so no prompt is in both.
    """
    return [_prompt(_scene(seed, split, i), seed, split, i) for i in range(start, start + count)]


@dataclass(frozen=True, kw_only=True)
class PoolJob:
    """Prompts ``start`` to ``start + count - 1``: what one process renders and judges."""

    split: Split
    start: int
    count: int
    seed: int
    """Names scenes, damage and the choice of pairs."""
    config: PairConfig = DEFAULT_PAIRS
    samples: Mapping[str, np.ndarray] | None = None
    """As :data:`Samples`; arrays, since a tensor would take a file handle in each process."""

    def pools(self) -> Iterator[tuple[int, str, list[Candidate]]]:
        """Number, prompt and clips of each pool; they depend on (split, number, seed) alone.

        The oracle scores of a pool take about 0.1 s on a CPU.
        """
        for index in range(self.start, self.start + self.count):
            prompt = _prompt(_scene(self.seed, self.split, index), self.seed, self.split, index)
            samples = (self.samples or {}).get(prompt)
            drawn = None if samples is None else torch.from_numpy(samples)
            yield index, prompt, _pool(self.split, index, self.seed, self.config, prompt, drawn)

    def pairs(self) -> Iterator[CandidatePair]:
        """Pairs drawn from each pool."""
        for index, prompt, pool in self.pools():
            options = list(combinations(range(len(pool)), 2))
            rng = generator(self.seed, "pairs", self.split, index)
            draws = torch.rand(len(options), 2, generator=rng, dtype=torch.float64)
            for row in draws[:, 0].argsort()[: self.config.pairs_per_prompt].tolist():
                first, second = (pool[slot] for slot in options[row])
                # The pool is ordered; the position in a pair must not tell the quality.
                if draws[row, 1] < 0.5:
                    first, second = second, first
                yield CandidatePair(prompt=prompt, a=first, b=second)


def pool_jobs(
    split: Split, prompts: int, seed: int, config: PairConfig, samples: Samples
) -> list[PoolJob]:
    """Jobs that cover the first prompts of a split, each with the samples of its own prompts."""
    return [
        PoolJob(
            split=split,
            start=start,
            count=(count := min(PROMPTS_PER_JOB, prompts - start)),
            seed=seed,
            config=config,
            samples={
                text: samples[text].numpy()
                for text in preference_prompts(split, start, count, seed)
                if text in samples
            },
        )
        for start in range(0, prompts, PROMPTS_PER_JOB)
    ]


def run_jobs(
    work: Callable[[PoolJob], Result], jobs: list[PoolJob], workers: int
) -> Iterator[Result]:
    """Results of the jobs, in their order, from ``workers`` processes; 0 is this one."""
    if not workers:
        yield from map(work, jobs)
        return
    # Forked children of a process with torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(work, jobs)


def label_pair(pair: CandidatePair, annotator: Annotator, seed: int) -> dict[str, Word]:
    """One annotator's labels of a pair: dimension -> A, same or B.

    The draw is named by the pair's clips and the dimension, so that annotators that differ in one
    setting share their noise.
    """
    colour = annotator.colour_bias * pair.colour_difference
    labels: dict[str, Word] = {}
    for dimension in DIMENSION_ORACLES:
        impression = pair.oracle_difference(dimension) + colour
        rng = generator(seed, "annotator", pair.a.name, pair.b.name, dimension)
        labels[dimension] = annotator.judge(torch.tensor([impression], dtype=torch.float64), rng)[0]
    return labels


def _scene(seed: int, split: Split, index: int) -> Scene:
    return sample_scene(derive_key(seed, "preferences", split), index, split)


def _prompt(scene: Scene, seed: int, split: Split, index: int) -> str:
    key = derive_key(seed, "preference prompt", split, index)
    return caption(scene, key, states=SPLIT_ATTRIBUTES)


def _pool(
    split: Split, index: int, seed: int, config: PairConfig, prompt: str, samples: Tensor | None
) -> list[Candidate]:
    scene = _scene(seed, split, index)
    other = sample_scene(derive_key(seed, "wrong scene", split), index, split)
    clean, wrong = render([scene, other], dtype=torch.float32)  # each [T, 3, H, W]
    clips = [(clean, "clean"), (clean[:1].expand_as(clean), "static"), (wrong, WRONG_SCENE)]
    rng = generator(seed, "damage", split, index)
    catalogue = list(CORRUPTIONS)
    for _ in range(config.damaged):
        u = torch.rand(2, generator=rng).tolist()
        name, strength = catalogue[int(u[0] * len(catalogue))], STRENGTHS[int(u[1] * 4)]
        damaged = CORRUPTIONS[name](clean[None], strength, rng)[0]
        clips.append((damaged, f"{name} {strength:g}"))
    clips = [_saturated(clip, origin, config.saturation_share, rng) for clip, origin in clips]
    origins = [origin for _, origin in clips]
    # The 8-bit clip is what a reward will see, so it is also what is judged.
    video = to_uint8(torch.stack([clip for clip, _ in clips]))
    if samples is not None:
        assert samples.dtype == torch.uint8 and samples.shape[1:] == clean.shape, samples.shape
        video = torch.cat([video, samples])
        origins += ["model"] * len(samples)

    shown = [(other if origin.startswith(WRONG_SCENE) else scene).facts() for origin in origins]
    scores = oracle_scores(video, [prompt] * len(video), shown)
    colours = colourfulness(video)
    return [
        Candidate(
            name=f"{split}_{index:06d}_{slot:02d}",
            video=video[slot],
            origin=origin,
            oracles={name: float(column[slot]) for name, column in scores.items()},
            colourfulness=float(colours[slot]),
        )
        for slot, origin in enumerate(origins)
    ]


def _saturated(clip: Tensor, origin: str, share: float, rng: torch.Generator) -> tuple[Tensor, str]:
    chance, u = torch.rand(2, generator=rng).tolist()
    if chance >= share:
        return clip, origin
    low, high = SATURATION_RANGE
    factor = low + (high - low) * u
    return scale_saturation(clip, factor), f"{origin}, saturation {factor:.2f}"
