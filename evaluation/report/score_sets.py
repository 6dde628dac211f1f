"""Scores of videos by people and by judges, from the studies of the inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from longtake.evaluation.csv_rows import read_csv_rows
from longtake.evaluation.dimensions import DIMENSIONS
from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.jsonl import read_jsonl
from longtake.evaluation.mos import video_scores
from longtake.evaluation.rating_checks import CheckSettings, check_ratings
from longtake.evaluation.report.inputs import Study
from longtake.evaluation.samples import SampleList, read_samples
from longtake.evaluation.study_files import read_all
from longtake.runtime.errors import UserError

PEOPLE = "people"
_NOT_DIMENSIONS = {
    *("sample", "rater", "reason", "kind", "model", "prompt", "cluster", "time", "dimension"),
    *("score", "caption", "video", "image", "left", "right"),
}
"""Columns of sheets that are no dimension."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreSet:
    """Scores of videos by one kind of rater."""

    by: str
    """``people``, or the name of a judge."""
    table: pd.DataFrame
    """Columns dimension, model, prompt, cluster, sample, score, n_ratings."""
    dimensions: tuple[str, ...]
    raters: frozenset[str]
    """Who rated."""
    samples: SampleList | None
    """The list of samples, which knows texts and videos."""
    files: tuple[Path, ...]
    """Where the scores come from."""

    @property
    def models(self) -> tuple[str, ...]:
        """Models with a score."""
        return tuple(sorted(set(self.table["model"])))


def study_files(study: Study, logs: Sequence[Path]) -> tuple[Path, ...]:
    """The files of a study that numbers from ``logs`` stand on."""
    return (*logs, *((study.samples,) if study.samples is not None else ()))


def rated_dimensions(paths: Sequence[Path]) -> tuple[str, ...]:
    """The dimensions that occur in logs and sheets: the report's in its order, then your own.

    Raises:
        UserError: a file cannot be read.
    """
    names: dict[str, None] = {}
    for path in paths:
        if path.suffix.lower() == ".csv":
            columns, rows, _ = read_csv_rows(path, ())
            if "dimension" in columns and "score" in columns:
                names |= dict.fromkeys(row["dimension"] for _, row in rows)
            else:
                names |= dict.fromkeys(c for c in columns if c not in _NOT_DIMENSIONS)
        else:
            records, _ = read_jsonl(path)
            found = (record.get("dimension") for _, record in records)
            names |= dict.fromkeys(name.strip() for name in found if isinstance(name, str))
    names.pop("", None)
    return (*(n for n in DIMENSIONS if n in names), *(n for n in names if n not in DIMENSIONS))


def read_score_sets(study: Study) -> tuple[list[ScoreSet], tuple[Finding, ...]]:
    """Scores by people and by each judge of a study, and everything irregular about them.

    A part that cannot be used becomes a finding; the others are still read.
    """
    findings = Findings()
    sets: list[ScoreSet] = []
    samples = None
    try:
        if study.samples is not None:
            samples = read_samples(study.samples)
            findings = Findings(samples.findings)
        if study.ratings:
            sets.append(_score_set(study, study.ratings, PEOPLE, samples, findings))
    except UserError as error:
        findings.add("ratings that cannot be used", "no result", [one_line(error)])
    try:
        for judge in _judges(study.automatic):
            sets.append(_score_set(study, study.automatic, judge, samples, findings))
    except UserError as error:
        findings.add("scores of a judge that cannot be used", "no result", [one_line(error)])
    return sets, tuple(dict.fromkeys(findings.all()))


def one_line(error: UserError) -> str:
    """An error as the text of a finding."""
    return "; ".join(line.strip() for line in str(error).splitlines())


def _judges(paths: Sequence[Path]) -> list[str]:
    ratings, _ = read_all(paths, ())
    return sorted({rating.rater for rating in ratings})


def _score_set(
    study: Study, paths: Sequence[Path], by: str, samples: SampleList | None, findings: Findings
) -> ScoreSet:
    """Check one kind of rater; what the checks say is added to ``findings``."""
    dimensions = rated_dimensions(paths)
    ratings, irregular = read_all(paths, dimensions)
    if by == PEOPLE:
        settings = CheckSettings(dimensions=dimensions)
        automatic = [str(rating) for rating in ratings if rating.kind != "human"]
        findings.add("score of a judge among the ratings of people", "set aside", automatic)
        ratings = [rating for rating in ratings if rating.kind == "human"]
    else:  # a judge may have a scale of its own
        infinite = float("inf")
        settings = CheckSettings(dimensions=dimensions, scale=(-infinite, infinite), whole=False)
        ratings = [rating for rating in ratings if rating.rater == by]
    checked = check_ratings(ratings, settings, samples, irregular)
    for item in checked.findings:
        findings.add(item.kind, item.effect, item.items)
    return ScoreSet(
        by=by,
        table=video_scores(checked.table),
        dimensions=dimensions,
        raters=frozenset(checked.table["rater"]),
        samples=samples,
        files=study_files(study, paths),
    )
