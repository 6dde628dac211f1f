"""Preference pairs of the sandbox: clips of one prompt at several qualities, and their labels.

Each prompt gets a pool of candidates: the clean render, renders damaged by one corruption at one of
four strengths, a still image (the clean render's first frame repeated), the clean render of another
scene (for text alignment) and, where given, samples of a model. Some candidates change their
saturation, which no caption asks for: it is what a colour bias acts on. Pairs are drawn from the
pool; ``label_pair`` then lets a simulated annotator judge them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from longtake.core.video import to_uint8
from longtake.runtime.errors import UserError
from longtake.runtime.rng import derive_key, generator
from longtake.sandbox.annotators import (
    DIMENSION_ORACLES,
    Annotator,
    LabelStatistics,
    Word,
    colourfulness,
    label_statistics,
)
from longtake.sandbox.captions import SPLIT_ATTRIBUTES, caption
from longtake.sandbox.corruptions import CORRUPTIONS, SATURATION_RANGE, scale_saturation
from longtake.sandbox.facts import Split
from longtake.sandbox.oracles import oracle_scores
from longtake.sandbox.render import render
from longtake.sandbox.scene import Scene, sample_scene

STRENGTHS = (0.15, 0.35, 0.6, 1.0)
"""Strengths of the corruptions; the oracles fall over this range (tests/sandbox)."""

WRONG_SCENE = "wrong scene"
"""Origin of the render of another scene."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One clip of a prompt's pool.

    Args:
        name: unique over splits, prompts and slots for one seed; a file name without suffix.
        video: uint8 [T, 3, H, W].
        origin: "clean", "static", "wrong scene", "model", or corruption and strength ("blur 0.35"),
            followed by the saturation factor where it was changed.
        oracles: oracle name -> score in [0, 1], with ``oracles.UNPROMPTED_MOTION``.
        colourfulness: see ``annotators.colourfulness``.
    """

    name: str
    video: Tensor
    origin: str
    oracles: dict[str, float]
    colourfulness: float


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


@dataclass(frozen=True, kw_only=True, slots=True)
class PairConfig:
    """How pools and pairs are made.

    Args:
        damaged: damaged renders in a prompt's pool, beside one clean render, one still image and
            one wrong scene.
        pairs_per_prompt: pairs drawn from a pool, each at most once.
        saturation_share: chance of a candidate (model samples apart) to change its saturation.
    """

    damaged: int = 3
    pairs_per_prompt: int = 6
    saturation_share: float = 0.5

    def __post_init__(self) -> None:
        if self.damaged < 0 or self.pairs_per_prompt < 1:
            raise UserError(
                "numbers of a prompt's pool cannot be used",
                received=f"damaged {self.damaged}, pairs_per_prompt {self.pairs_per_prompt}",
                expected="damaged >= 0 and pairs_per_prompt >= 1",
            )
        if not 0 <= self.saturation_share <= 1:
            raise UserError(
                "saturation_share cannot be used",
                received=self.saturation_share,
                expected="a chance from 0 to 1",
            )


DEFAULT_PAIRS = PairConfig()
SampleSource = Callable[[str], Tensor | None]
"""Model samples of a prompt, uint8 or float [M, T, 3, H, W], or None; ``dict.get`` fits."""


def preference_prompts(split: Split, start: int, count: int, seed: int) -> list[str]:
    """Prompts ``start`` to ``start + count - 1`` of a split: what a model is to be sampled for.

    Each states shape, colour and motion, which prove its split, so no prompt is in both.

    Raises:
        UserError: unknown split.
    """
    return [_prompt(_scene(seed, split, i), seed, split, i) for i in range(start, start + count)]


def candidate_pools(
    split: Split,
    start: int,
    count: int,
    seed: int,
    *,
    config: PairConfig = DEFAULT_PAIRS,
    samples: SampleSource | None = None,
) -> Iterator[tuple[str, list[Candidate]]]:
    """Prompts ``start`` to ``start + count - 1``, each with its pool of clips.

    Arguments and errors as :func:`candidate_pairs`, which draws its pairs from these pools.
    """
    for index in range(start, start + count):
        prompt = _prompt(_scene(seed, split, index), seed, split, index)
        yield prompt, _pool(split, index, seed, config, samples)


def candidate_pairs(
    split: Split,
    start: int,
    count: int,
    seed: int,
    *,
    config: PairConfig = DEFAULT_PAIRS,
    samples: SampleSource | None = None,
) -> Iterator[CandidatePair]:
    """Pairs of the prompts ``start`` to ``start + count - 1``, prompt by prompt.

    A prompt's pairs depend on (split, number of the prompt, seed), the config and its samples
    alone. Oracle scores of a pool take about 0.1 s on a CPU.

    Args:
        split: "train" or "held_out"; scenes and wrong scenes are of this split only.
        start: number of the first prompt.
        count: number of prompts.
        seed: names scenes, damage and the choice of pairs.
        config: sizes of pool and choice.
        samples: clips of a model by prompt, added to its pool.

    Raises:
        UserError: unknown split, or samples that are no clips.
    """
    pools = candidate_pools(split, start, count, seed, config=config, samples=samples)
    for index, (prompt, pool) in enumerate(pools, start):
        chosen = list(combinations(range(len(pool)), 2))
        draws = torch.rand(
            len(chosen), 2, generator=generator(seed, "pairs", split, index), dtype=torch.float64
        )
        for row in draws[:, 0].argsort()[: config.pairs_per_prompt].tolist():
            first, second = (pool[slot] for slot in chosen[row])
            if draws[row, 1] < 0.5:  # the pool is ordered; the position must not tell the quality
                first, second = second, first
            yield CandidatePair(prompt=prompt, a=first, b=second)


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


def preference_statistics(
    judged: Sequence[tuple[CandidatePair, Mapping[str, Word]]], annotator: Annotator
) -> dict[str, LabelStatistics]:
    """Share of ties, agreement with the oracle and preference for colour, by dimension.

    Raises:
        UserError: no pair.
    """
    return {
        dimension: label_statistics(
            [
                (labels[dimension], pair.oracle_difference(dimension), pair.colour_difference)
                for pair, labels in judged
            ],
            annotator,
        )
        for dimension in DIMENSION_ORACLES
    }


def _scene(seed: int, split: Split, index: int) -> Scene:
    return sample_scene(derive_key(seed, "preferences", split), index, split)


def _prompt(scene: Scene, seed: int, split: Split, index: int) -> str:
    key = derive_key(seed, "preference prompt", split, index)
    return caption(scene, key, states=SPLIT_ATTRIBUTES)


def _pool(
    split: Split, index: int, seed: int, config: PairConfig, samples: SampleSource | None
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

    prompt = _prompt(scene, seed, split, index)
    drawn = samples(prompt) if samples is not None else None
    if drawn is not None:
        pixels = drawn.float() / 255 if drawn.dtype == torch.uint8 else drawn.float().clamp(0, 1)
        if pixels.ndim != 5 or pixels.shape[1:] != clean.shape:
            raise UserError(
                "model samples are no clips of the sandbox",
                received=f"{tuple(drawn.shape)} for {prompt!r}",
                expected=f"[M, {', '.join(map(str, clean.shape))}]",
                remedy="decode the samples to pixels at the size of the sandbox",
            )
        clips += [(clip, "model") for clip in pixels.cpu()]

    # The 8-bit clip is what a reward will see, so it is also what is judged.
    video = to_uint8(torch.stack([clip for clip, _ in clips]))
    shown = [(other if origin.startswith(WRONG_SCENE) else scene).facts() for _, origin in clips]
    scores = oracle_scores(video, [prompt] * len(clips), shown)
    colours = colourfulness(video)
    return [
        Candidate(
            name=f"{split}_{index:06d}_{slot:02d}",
            video=video[slot],
            origin=origin,
            oracles={name: float(column[slot]) for name, column in scores.items()},
            colourfulness=float(colours[slot]),
        )
        for slot, (_, origin) in enumerate(clips)
    ]


def _saturated(clip: Tensor, origin: str, share: float, rng: torch.Generator) -> tuple[Tensor, str]:
    chance, u = torch.rand(2, generator=rng).tolist()
    if chance >= share:
        return clip, origin
    low, high = SATURATION_RANGE
    factor = low + (high - low) * u
    return scale_saturation(clip, factor), f"{origin}, saturation {factor:.2f}"
