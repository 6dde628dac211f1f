"""From the files of a MOS study to its result: read, check, aggregate."""

from collections.abc import Sequence
from pathlib import Path

from longtake.evaluation.findings import Finding
from longtake.evaluation.mos import MosResult, MosSettings, aggregate_mos
from longtake.evaluation.mos_merge import check_judge
from longtake.evaluation.rating_checks import (
    CheckSettings,
    RatingTable,
    check_ratings,
)
from longtake.evaluation.records import Rating
from longtake.evaluation.samples import SampleList, read_samples
from longtake.evaluation.study_files import Acceptance, read_all
from longtake.runtime.errors import UserError


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
