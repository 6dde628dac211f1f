"""What the files of a study hold, and what of it counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.rating_checks import Contradictions
from longtake.evaluation.rating_sheets import ReadCell, read_ratings
from longtake.evaluation.records import Rating, read_score


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """What of the files counts."""

    models: tuple[str, ...] = ()
    """The models that exist; empty: those of the list of samples, else any."""
    contradictions: Contradictions = "last"
    """What counts of two scores of one rater for one sample and dimension."""
    exclude_raters: tuple[str, ...] = ()
    """Raters whose ratings are set aside."""


def of_study(ratings: Sequence[Rating], study: str, findings: Findings) -> list[Rating]:
    """Ratings without those that were saved from a page of another study.

    Args:
        ratings: of any origin; sheets name no study and are kept.
        study: digest, see :func:`longtake.evaluation.gsb_plan.plan_study`.
        findings: gets what is left out.
    """
    named = [str(rating.provenance.get("study", study)) for rating in ratings]
    findings.add(
        "answer from a page of another study",
        "not used",
        (f"{r} (study {name})" for r, name in zip(ratings, named, strict=True) if name != study),
    )
    return [rating for rating, name in zip(ratings, named, strict=True) if name == study]


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
