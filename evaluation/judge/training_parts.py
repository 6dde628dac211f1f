"""What every training of a judge shares: its data in parts, and what a run records of them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from longtake.evaluation.judge.coefficients import pearson, spearman
from longtake.evaluation.judge.leakage import TrainingRecord
from longtake.evaluation.judge.rated_clips import RatedClips, read_rated_clips, with_paths_from
from longtake.evaluation.judge.split import PARTS, Part, split_clips
from longtake.evaluation.judge.train_config import JudgeDataConfig
from longtake.evaluation.ratings import write_samples
from longtake.rewards.template import prompt_key
from longtake.runtime.errors import ConfigError, UserError
from longtake.runtime.progress import result_table
from longtake.runtime.provenance import collect
from longtake.runtime.run_directory import RunDirectory
from longtake.runtime.statistics import FloatArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingParts:
    """Rated clips and their parts."""

    clips: RatedClips
    """Everything that was rated."""
    parts: Mapping[Part, RatedClips]
    """Parts with clips."""

    def table(self) -> Table:
        """Clips, prompts, models and ratings of each part."""
        rows: list[list[str | float | int | None]] = []
        for name, part in self.parts.items():
            listed = part.samples.samples
            prompts = len({prompt_key(item.caption) for item in listed})
            models = len(part.samples.models)
            rows.append([name, len(listed), prompts, models, len(part.ratings)])
        columns = ["part", "clips", "prompts", "models", "ratings"]
        return result_table(f"judge of {', '.join(self.clips.dimensions)}", columns, rows)

    def show(self, console: Console) -> None:
        """Print the table and everything irregular."""
        console.print(self.table())
        for finding in self.clips.findings:
            console.print(f"! {finding}", markup=False, highlight=False, soft_wrap=True)

    def seen(self) -> TrainingRecord:
        """What the judge sees: the training part, and the part that chooses and calibrates."""
        parts = [self.parts[name] for name in ("train", "calibration") if name in self.parts]
        return TrainingRecord(
            prompts=_unique(item.caption for p in parts for item in p.samples.samples),
            models=_unique(item.model for p in parts for item in p.samples.samples),
        )


def training_parts(data: JudgeDataConfig, dimensions: Sequence[str], seed: int) -> TrainingParts:
    """Read, check and split ratings.

    Args:
        data: which ratings.
        dimensions: what is learned.
        seed: names the split.

    Raises:
        UserError: data that cannot be used, or shares that leave a part empty.
    """
    check_given(**{"data.ratings": data.ratings})
    clips = read_rated_clips(
        [Path(file) for file in data.ratings],
        Path(data.samples) if data.samples else None,
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
    return TrainingParts(clips=clips, parts={n: clips.part(names[n]) for n in PARTS if names[n]})


_WANTED = {"base": "a directory to start from", "data.ratings": "files of ratings"}


def check_given(**settings: object) -> None:
    """Refuse settings without which nothing can be trained.

    Raises:
        ConfigError: an empty one; names it.
    """
    for name, value in settings.items():
        if not value:
            raise ConfigError(
                f"{name} is not set",
                expected=_WANTED[name],
                remedy=f"pass it on the command line or with --set {name}=...",
            )


def record_inputs(
    run: RunDirectory, data: JudgeDataConfig, parts: TrainingParts, base: Mapping[str, Any]
) -> None:
    """Write ``provenance.json`` and the lists of the parts that are not trained on.

    Args:
        run: the run.
        data: files of the ratings.
        parts: of the data.
        base: what fixes the model that the training starts from.
    """
    files = [*data.ratings, *([data.samples] if data.samples else [])]
    record = collect({name: Path(name) for name in files})
    run.write_json("provenance.json", {**record, "base": base})
    for name in ("calibration", "test", "test_new_models"):
        part = parts.parts.get(name)
        if part is not None:
            write_samples(
                run.path / f"{name}.csv", with_paths_from(part.samples, run.path.absolute())
            )


def agreement(part: RatedClips, scores: FloatArray) -> dict[str, dict[str, float]]:
    """PLCC, SRCC and n of each dimension over clips that are rated and scored.

    Args:
        part: n rated clips.
        scores: [n, D]; NaN = unscored.
    """
    found = {}
    for column, name in enumerate(part.dimensions):
        used = (part.count[:, column] > 0) & ~np.isnan(scores[:, column])
        human, judge = part.mean[used, column], scores[used, column]
        found[name] = {
            "plcc": pearson(judge, human),
            "srcc": spearman(judge, human),
            "n": int(used.sum()),
        }
    return found


def print_agreement(console: Console, summary: Mapping[str, Any]) -> None:
    """Print what a training reached on the part that chose it.

    Args:
        console: where.
        summary: of a run, with ``judge``, ``calibration_part`` and ``not_calibrated``.
    """
    rows: list[list[str | float | int | None]] = [
        [name, found["plcc"], found["srcc"], int(found["n"])]
        for name, found in summary["calibration_part"].items()
    ]
    title = f"{summary['judge']} on the calibration part (no claim: it chose the update)"
    console.print(result_table(title, ["dimension", "PLCC", "SRCC", "n"], rows))
    if summary["not_calibrated"]:
        text = f"! not calibrated: {summary['not_calibrated']}"
        console.print(text, markup=False, soft_wrap=True)


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
