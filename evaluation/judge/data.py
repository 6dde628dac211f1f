"""What a judge learns from and is checked against: rated clips, their split, and the leakage check.

A judge is asked about prompts and models that it has never seen, so both are held out. Prompts fall
into three parts by their text; clips of a held-out model are never trained on:

                    training prompts   calibration prompts   test prompts
    other models    train              calibration           test
    held-out models unused             unused                test_new_models
"""

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np
import pandas as pd

from longtake.evaluation.benchmark import trigrams
from longtake.evaluation.checks import CheckSettings, RaterRules, check_ratings
from longtake.evaluation.dimensions import DIMENSIONS
from longtake.evaluation.ratings import (
    Finding,
    Findings,
    Sample,
    SampleList,
    read_ratings,
    read_samples,
)
from longtake.runtime.errors import ConfigError, UserError
from longtake.runtime.files import prompt_key
from longtake.runtime.rng import derive_key
from longtake.runtime.statistics import FloatArray

if TYPE_CHECKING:
    from torch import Tensor

    from longtake.evaluation.judge.config import JudgeDataConfig

T = TypeVar("T")

JUDGED = tuple(name for name, item in DIMENSIONS.items() if item.judged)
"""What a judge scores (report section 5.1): text alignment, visual quality, motion quality."""
NEAR = 0.6
"""Jaccard index of the sets of word 3-grams above which two prompts are near duplicates."""
Part = Literal["train", "calibration", "test", "test_new_models", "unused"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatedClips:
    """Clips, each with a caption and a video, and the mean of the raters."""

    samples: SampleList
    dimensions: tuple[str, ...]
    mean: FloatArray
    """[n, D] mean ratings of n samples in D dimensions; NaN where nobody rated."""
    count: FloatArray
    """[n, D] number of ratings behind each mean."""
    ratings: pd.DataFrame
    """The single ratings: columns sample, model, prompt, cluster, dimension, rater, score."""
    findings: tuple[Finding, ...]

    def part(self, names: Sequence[str]) -> "RatedClips":
        """Only the samples with these ids, in the order of the list."""
        ids = set(names)
        rows = [i for i, item in enumerate(self.samples.samples) if item.sample in ids]
        listed = tuple(self.samples.samples[i] for i in rows)
        return dataclasses.replace(
            self,
            samples=SampleList(samples=listed, folder=self.samples.folder),
            mean=self.mean[rows],
            count=self.count[rows],
            ratings=self.ratings[self.ratings["sample"].isin(ids)],
        )

    def prepared(self, row: int, prepare: "Callable[[Tensor, float], T]") -> "T":
        """What ``prepare`` makes of the frames uint8 [T, 3, H, W] and the rate of a clip."""
        from longtake.core.video import read_video  # with torch, which a report card does without

        path = self.samples.video_path(self.samples.samples[row])
        assert path is not None
        try:
            return prepare(*read_video(path))
        except UserError as error:
            raise UserError(
                f"a rated clip cannot be used: {error.what}",
                received=str(path),
                remedy="remove the sample from the list",
            ) from error

    def require_usable(self, problem: Callable[[str], str | None]) -> None:
        """Tell before the first update what would end the training hours later.

        ``problem`` says why a caption cannot be used, or None.
        """
        missing = list(self.samples.missing_videos().values())
        if missing:
            raise UserError(
                "videos of rated samples are missing",
                received=f"{len(missing)}: {'; '.join(missing[:3])}",
                expected="paths relative to the list of samples",
            )
        for item in self.samples.samples:
            reason = problem(item.caption)
            if reason:
                raise UserError(
                    "a caption of the rated samples cannot be used",
                    received=f"{item.sample}: {reason}",
                    remedy="rewrite the caption or remove the sample",
                )


def read_rated_clips(
    ratings: Sequence[Path],
    samples: Path,
    dimensions: Sequence[str] = JUDGED,
    *,
    exclude_raters: Sequence[str] = (),
) -> RatedClips:
    """Read, check and average the log or sheets of a study with its list of samples."""
    listed = read_samples(samples)
    given, irregular = read_ratings(ratings, dimensions)
    # People rate dimensions that no judge scores, and a list is often a part of a study.
    ids, others = listed.by_id, set(DIMENSIONS) - set(dimensions)
    given = [r for r in given if r.sample in ids and r.dimension not in others]
    # Imported ratings may be means of several people, so scores need not be whole.
    rules = RaterRules(exclude_raters=tuple(exclude_raters))
    settings = CheckSettings(dimensions=tuple(dimensions), whole=False, rules=rules)
    checked = check_ratings(given, settings, listed, [*listed.findings, *irregular])
    rated = set(checked.table["sample"])
    items = [item for item in listed.samples if item.sample in rated]
    usable = {item.sample: item for item in items if item.video and item.caption}
    findings = Findings(checked.findings)
    findings.add(
        "rated sample without a caption or a video in the list",
        "not used",
        [item.sample for item in items if item.sample not in usable],
    )
    table = checked.table[checked.table["sample"].isin(usable)].reset_index(drop=True)
    if table.empty:
        raise UserError(
            "no rated clip is left",
            received=f"ratings of {len(rated)} samples",
            expected="ratings of samples whose list names caption and video",
        )
    mean, count = (
        table.pivot_table(values="score", index="sample", columns="dimension", aggfunc=how)
        .reindex(index=list(usable), columns=list(dimensions))
        .to_numpy(dtype=np.float64)
        for how in ("mean", "count")
    )
    return RatedClips(
        samples=SampleList(samples=tuple(usable.values()), folder=listed.folder),
        dimensions=tuple(dimensions),
        mean=mean,
        count=np.nan_to_num(count),
        ratings=table,
        findings=tuple(findings),
    )


def with_paths_from(samples: SampleList, folder: Path) -> list[Sample]:
    """The samples with video and image paths relative to another folder, for a list put there."""

    def moved(name: str) -> str:
        return os.path.relpath(samples.folder / name, folder) if name else ""

    return [
        dataclasses.replace(item, video=moved(item.video), image=moved(item.image))
        for item in samples.samples
    ]


def split_clips(
    samples: Sequence[Sample],
    *,
    calibration_share: float,
    test_share: float,
    held_out_models: Sequence[str] = (),
    test_prompts: Sequence[str] = (),
    seed: int = 0,
) -> dict[Part, list[str]]:
    """Ids of the samples of each part.

    The part of a prompt depends on its text and the seed alone (case and spaces aside): more data
    do not move it. The shares are those that are expected; ``test_prompts`` test whatever the draw.
    """
    if calibration_share + test_share >= 1:
        raise UserError(
            "the shares of the split leave nothing to train on",
            received=f"calibration {calibration_share:g}, test {test_share:g}",
            expected="together below 1",
        )
    models = {item.model for item in samples}
    unknown = sorted(set(held_out_models) - models)
    if unknown:
        raise UserError(
            "a held-out model has no rated clip",
            received=", ".join(unknown),
            expected=f"some of: {', '.join(sorted(models))}",
        )
    always = {prompt_key(text) for text in test_prompts}
    parts: dict[Part, list[str]] = {part: [] for part in PARTS}
    for item in samples:
        key = prompt_key(item.caption)
        # By the text and not by position: more data must not move a prompt out of the test part.
        draw = derive_key(seed, "judge split", key) / 2**63
        new_model = item.model in held_out_models
        part: Part
        if key in always or draw < test_share:
            part = "test_new_models" if new_model else "test"
        elif new_model:
            part = "unused"
        else:
            part = "calibration" if draw < test_share + calibration_share else "train"
        parts[part].append(item.sample)
    empty = [part for part in ("train", "calibration") if not parts[part]]
    if not parts["test"] and not parts["test_new_models"]:
        empty.append("test")
    if empty:
        raise UserError(
            "the split by prompt and model leaves a part empty",
            received=f"{', '.join(empty)} of {len(samples)} clips, "
            f"{len({prompt_key(item.caption) for item in samples})} prompts",
            expected="clips in every part",
            remedy="add prompts, hold out fewer models, or change the shares or the seed",
        )
    return parts


def split_ratings(
    data: "JudgeDataConfig", dimensions: Sequence[str], seed: int
) -> tuple[Mapping[Part, RatedClips], tuple[Finding, ...]]:
    """Read, check and split ratings: the parts that have clips, and everything irregular."""
    if not data.ratings or data.samples is None:
        raise ConfigError(
            "data.ratings or data.samples is not set",
            expected="files of ratings and a list of samples",
            remedy="pass them with --ratings and --samples",
        )
    clips = read_rated_clips(
        [Path(file) for file in data.ratings],
        Path(data.samples),
        dimensions,
        exclude_raters=data.exclude_raters,
    )
    fixed: list[str] = []
    if data.test_prompts:
        try:
            fixed = Path(data.test_prompts).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read the test prompts: {error}", received=data.test_prompts
            ) from error
    names = split_clips(
        clips.samples.samples,
        calibration_share=data.calibration_share,
        test_share=data.test_share,
        held_out_models=data.held_out_models,
        test_prompts=fixed,
        seed=seed,
    )
    return {part: clips.part(names[part]) for part in PARTS if names[part]}, clips.findings


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a judge has seen: its training part, and the part that chose and calibrated it."""

    prompts: tuple[str, ...]
    models: tuple[str, ...]

    @classmethod
    def of(cls, parts: Mapping[Part, RatedClips]) -> "TrainingRecord":
        """Prompts and models of these two parts, each once."""
        items = [item for p in ("train", "calibration") for item in parts[p].samples.samples]
        return cls(
            prompts=tuple(dict.fromkeys(item.caption for item in items)),
            models=tuple(dict.fromkeys(item.model for item in items)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Leakage:
    """What training and benchmark share."""

    checked: bool
    """False: what the judge was trained on is not known."""
    n_prompts: int
    same_prompts: tuple[str, ...] = ()
    near_prompts: tuple[str, ...] = ()
    """Without the same ones."""
    shared_models: tuple[str, ...] = ()

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
    """Compare a benchmark with what a judge was trained on; None when that is not known.

    A judge that was trained on a prompt knows how hard it is, and a correlation over videos rewards
    that. Prompts are compared without case and spaces, and by their 3-grams of words.
    """
    captions = {prompt_key(item.caption): item.caption for item in samples if item.caption}
    if training is None:
        return Leakage(checked=False, n_prompts=len(captions))
    # As the split compares them, so that a judge's own test part never counts as leaked.
    trained = dict.fromkeys(sorted(map(prompt_key, training.prompts)))
    grams = [trigrams(text) for text in trained]
    owners: dict[tuple[str, ...], list[int]] = defaultdict(list)  # most pairs share no 3-gram
    for index, own in enumerate(grams):
        for gram in own:
            owners[gram].append(index)
    same, near = [], []
    for key, text in captions.items():
        own = trigrams(text)
        shared = Counter(index for gram in own for index in owners.get(gram, ()))
        if key in trained:
            same.append(text)
        elif any(n / (len(own) + len(grams[i]) - n) > NEAR for i, n in shared.items()):
            near.append(text)
    return Leakage(
        checked=True,
        n_prompts=len(captions),
        same_prompts=tuple(same),
        near_prompts=tuple(near),
        shared_models=tuple(sorted({item.model for item in samples} & set(training.models))),
    )
