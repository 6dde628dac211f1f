"""From the files of a study to its result: read, check, aggregate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longtake.evaluation.findings import Finding
from longtake.evaluation.gsb import GsbResult, aggregate_gsb, pairs_as_samples, read_answer
from longtake.evaluation.gsb_plan import read_key
from longtake.evaluation.model_comparison import ComparisonSettings
from longtake.evaluation.mos import MosResult, MosSettings, aggregate_mos
from longtake.evaluation.mos_merge import check_judge
from longtake.evaluation.rating_checks import (
    CheckSettings,
    Contradictions,
    RatingTable,
    check_ratings,
)
from longtake.evaluation.rating_sheets import ReadCell, read_ratings
from longtake.evaluation.records import Rating, read_score
from longtake.evaluation.samples import SampleList, read_samples
from longtake.runtime.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """What of the files counts."""

    models: tuple[str, ...] = ()
    """The models that exist; empty: those of the list of samples, else any."""
    contradictions: Contradictions = "last"
    """What counts of two scores of one rater for one sample and dimension."""
    exclude_raters: tuple[str, ...] = ()
    """Raters whose ratings are set aside."""


def read_all(
    paths: Sequence[Path], dimensions: Sequence[str], read_cell: ReadCell = read_score
) -> tuple[list[Rating], list[Finding]]:
    """The ratings of several files, one after the other, and what in them is no rating.

    Raises:
        UserError: a file that cannot be read.
    """
    ratings: list[Rating] = []
    findings: list[Finding] = []
    for path in paths:
        found, irregular = read_ratings(path, dimensions, read_cell)
        ratings += found
        findings += irregular
    return ratings, findings


def mos_from_files(
    ratings: Sequence[Path],
    settings: MosSettings,
    *,
    samples: Path | None = None,
    automatic: Path | None = None,
    acceptance: Acceptance | None = None,
) -> MosResult:
    """Aggregate the files of a MOS study.

    Args:
        ratings: logs or sheets of human ratings, in the order in which they were made.
        settings: dimensions, protocol, intervals, weights.
        samples: the list of samples; without it the ratings must name model and prompt.
        automatic: scores of one calibrated judge, merged 2:1.
        acceptance: what of the files counts.

    Raises:
        UserError: a file that cannot be used, or nothing left to aggregate.
    """
    listed = read_samples(samples) if samples is not None else None
    people, irregular = read_all(ratings, settings.dimensions)
    models = [rating for rating in people if rating.kind != "human"]
    if models:
        raise UserError(
            f"{len(models)} records among the human ratings are automatic",
            received=str(models[0]),
            expected="records of people",
            remedy="keep the judge's scores in a file of their own and give it with --automatic",
        )
    if listed is not None:
        irregular = [*listed.findings, *irregular]
    table = _check(people, settings.dimensions, acceptance or Acceptance(), listed, irregular)
    judge = _judge_table(automatic, settings.dimensions) if automatic is not None else None
    return aggregate_mos(table, settings, samples=listed, automatic=judge)


def _check(
    ratings: Sequence[Rating],
    dimensions: tuple[str, ...],
    acceptance: Acceptance,
    samples: SampleList | None,
    irregular: Sequence[Finding],
) -> RatingTable:
    settings = CheckSettings(
        dimensions=dimensions,
        models=acceptance.models,
        contradictions=acceptance.contradictions,
        exclude_raters=acceptance.exclude_raters,
    )
    return check_ratings(ratings, settings, samples, irregular)


def _judge_table(path: Path, dimensions: tuple[str, ...]) -> RatingTable:
    scores, irregular = read_all([path], dimensions)
    check_judge(scores)
    settings = CheckSettings(dimensions=dimensions, whole=False)
    return check_ratings(scores, settings, earlier=irregular)


def gsb_from_files(
    plan: Path,
    answers: Sequence[Path],
    dimensions: tuple[str, ...],
    settings: ComparisonSettings,
    acceptance: Acceptance | None = None,
) -> GsbResult:
    """Aggregate the answers to a plan.

    Args:
        plan: folder of :func:`longtake.evaluation.gsb_plan.write_plan`.
        answers: logs or sheets, in the order in which they were made.
        dimensions: in the order of the result.
        settings: confidence and resampling.
        acceptance: what of the files counts; its models are not looked at, the key has them.

    Raises:
        UserError: a file that cannot be used, or nothing left to aggregate.
    """
    pairs = read_key(plan)
    found, irregular = read_all(answers, dimensions, read_answer)
    rule = acceptance or Acceptance()
    check = CheckSettings(
        dimensions=dimensions,
        scale=(-1.0, 1.0),
        contradictions=rule.contradictions,
        exclude_raters=rule.exclude_raters,
    )
    table = check_ratings(found, check, pairs_as_samples(pairs, plan), irregular)
    return aggregate_gsb(table, pairs, dimensions, settings)
