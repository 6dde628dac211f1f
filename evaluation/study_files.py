"""What the files of a study hold, and what of it counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longtake.evaluation.findings import Finding
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
