"""Did the judge see the benchmark? Prompts and models of its training among those it is tested on.

A judge that was trained on a prompt knows how hard it is, and a correlation over videos rewards
that. Prompts are compared without case and spaces, and by their 3-grams of words.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from longtake.evaluation.benchmark import trigrams
from longtake.evaluation.ratings import Sample
from longtake.rewards.template import prompt_key

NEAR = 0.6
"""Jaccard index of the sets of word 3-grams above which two prompts are near duplicates."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a judge has seen."""

    prompts: tuple[str, ...]
    """Texts of the prompts of its training and calibration clips."""
    models: tuple[str, ...]
    """Models of these clips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leakage:
    """What training and benchmark share."""

    checked: bool
    """False: what the judge was trained on is not known."""
    n_prompts: int
    """Prompts of the benchmark."""
    same_prompts: tuple[str, ...] = ()
    """Those that the judge was trained on."""
    near_prompts: tuple[str, ...] = ()
    """Those that are nearly a training prompt, without the same ones."""
    shared_models: tuple[str, ...] = ()
    """Models whose videos the judge was trained on."""

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.checked:
            return "not checked: the training prompts of the judge are not known"
        if self.same_prompts:
            return f"{len(self.same_prompts)} of {self.n_prompts} prompts were trained on"
        if self.near_prompts:
            return f"{len(self.near_prompts)} of {self.n_prompts} prompts are near a trained one"
        return f"none of {self.n_prompts} prompts was trained on"


def check_leakage(samples: Sequence[Sample], training: TrainingRecord | None) -> Leakage:
    """Compare a benchmark with what a judge was trained on.

    Args:
        samples: of the benchmark, with captions.
        training: of the judge; None when it is not known.
    """
    captions = {prompt_key(item.caption): item.caption for item in samples if item.caption}
    if training is None:
        return Leakage(checked=False, n_prompts=len(captions))
    trained = {prompt_key(text) for text in training.prompts}
    same = tuple(text for key, text in captions.items() if key in trained)
    others = [text for key, text in captions.items() if key not in trained]
    models = {item.model for item in samples}
    return Leakage(
        checked=True,
        n_prompts=len(captions),
        same_prompts=same,
        near_prompts=tuple(_near(others, sorted(trained))),
        shared_models=tuple(sorted(models & set(training.models))),
    )


def _near(texts: Sequence[str], trained: Sequence[str]) -> list[str]:
    """The texts with a trained one that shares more than :data:`NEAR` of their 3-grams."""
    grams = [trigrams(text) for text in trained]
    owners: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, found in enumerate(grams):
        for gram in found:
            owners[gram].append(index)
    near = []
    for text in texts:
        own = trigrams(text)
        shared: dict[int, int] = defaultdict(int)
        for gram in own:
            for index in owners.get(gram, ()):
                shared[index] += 1
        if any(n / (len(own) + len(grams[i]) - n) > NEAR for i, n in shared.items()):
            near.append(text)
    return near
