"""How often rewards judge preference pairs like the annotators, with intervals by prompt.

Every reward is compared with every labelled dimension: the rows show what a reward follows, and
also what it should not follow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from longtake.rewards.losses import (
    accuracy_with_ties,
    accuracy_without_ties,
    is_decided,
    is_labelled,
)
from longtake.rewards.pairs import LABELS, UNLABELLED, PreferencePair, read_pairs
from longtake.rewards.score_files import ScoreInput, score_clips
from longtake.runtime.statistics import paired_bootstrap

Clip = tuple[str, float | None, str]
"""Path, playback rate and prompt: what a score follows from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairAgreement:
    """Agreement of one reward with the labels of one dimension."""

    reward: str
    dimension: str
    accuracy: float
    """Share of decided pairs judged alike; NaN without any."""
    ci_low: float
    """Of the 95 % interval (bootstrap over prompts); NaN below two prompts."""
    ci_high: float
    decided: int
    """Pairs in ``accuracy``: labelled A or B, both clips scored."""
    accuracy_with_ties: float
    """Tie-calibrated accuracy over all labelled pairs."""
    labelled: int
    """Pairs in ``accuracy_with_ties``."""
    unscored: int
    """Labelled pairs left out because a clip has no score."""


def evaluate_pairs(
    pairs: Path,
    reward_names: Sequence[str],
    *,
    root: Path | None = None,
    output: Path | None = None,
    device: str = "auto",
) -> list[PairAgreement]:
    """Score the clips of a CSV of pairs (VideoAlign's columns), each once, and compare with labels.

    Paths are relative to ``root``, by default the folder of the file. ``output`` is the table of
    scores by clip, resumed from.
    """
    table = read_pairs(pairs)
    folder = pairs.parent if root is None else root
    clips = list(dict.fromkeys(clip for pair in table for clip in _clips(pair)))
    inputs = [ScoreInput(name=p, path=folder / p, prompt=text, fps=fps) for p, fps, text in clips]
    report = score_clips(inputs, reward_names, output=output, device=device)
    number = {clip: index for index, clip in enumerate(clips)}
    a, b = (torch.tensor([number[_clips(pair)[side]] for pair in table]) for side in (0, 1))
    prompts = [pair.prompt for pair in table]
    agreements = []
    for name in report.names:
        column = [math.nan if (score := row.scores[name]) is None else score for row in report.rows]
        scores = torch.tensor(column, dtype=torch.float64)
        for dimension in LABELS:
            if any(dimension in pair.labels for pair in table):
                labels = torch.tensor([pair.label(dimension) for pair in table])
                margins = scores[a] - scores[b]
                agreements.append(_agreement(name, dimension, margins, labels, prompts))
    return agreements


def _clips(pair: PreferencePair) -> tuple[Clip, Clip]:
    return (pair.path_a, pair.fps_a, pair.prompt), (pair.path_b, pair.fps_b, pair.prompt)


def _agreement(
    reward: str, dimension: str, margins: Tensor, labels: Tensor, prompts: Sequence[str]
) -> PairAgreement:
    scored = margins.isfinite()
    unscored = int((is_labelled(labels) & ~scored).sum())
    # A pair with an unscored clip says nothing about the reward, unlike a tie.
    labels, margins = labels.where(scored, torch.tensor(UNLABELLED)), margins.where(scored, 0.0)
    plain, ties = accuracy_without_ties(margins, labels), accuracy_with_ties(margins, labels)
    decided = is_decided(labels)
    clusters = [prompt for prompt, used in zip(prompts, decided.tolist(), strict=True) if used]
    right = (margins[decided].sign() == labels[decided]).double().tolist()
    interval = paired_bootstrap([0.0] * len(right), right, clusters)
    return PairAgreement(
        reward=reward,
        dimension=dimension,
        accuracy=plain.value,
        ci_low=interval.ci_low,
        ci_high=interval.ci_high,
        decided=plain.count,
        accuracy_with_ties=ties.value,
        labelled=ties.count,
        unscored=unscored,
    )
