"""Bring what raters filled in into the log of a study; doing it twice changes nothing."""

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path

from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.rating_sheets import ReadCell, read_ratings
from longtake.evaluation.records import Rating, append_ratings, read_log, read_score


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What :func:`import_ratings` did."""

    added: int
    """Records appended."""
    known: int
    """Ratings that the log had already."""
    findings: tuple[Finding, ...]
    """What is irregular in the sheet or in the log."""


def import_ratings(
    source: Path,
    log: Path,
    dimensions: Sequence[str],
    *,
    rater: str = "",
    read_cell: ReadCell = read_score,
) -> ImportReport:
    """Append the ratings of a sheet or log that ``log`` does not have yet.

    A rating that contradicts the log is appended too and reported: the log keeps both, and the
    later one counts by default.

    Args:
        source: ``.csv`` or ``.jsonl``.
        log: ``.jsonl`` to continue or to begin.
        dimensions: names that a wide sheet may have as columns.
        rater: who filled in the rows that name no rater.
        read_cell: see :func:`longtake.evaluation.rating_sheets.read_ratings`.

    Raises:
        UserError: a file that cannot be read or written.
    """
    ratings, irregular = read_ratings(source, dimensions, read_cell, rater=rater)
    findings = Findings(irregular)
    earlier: list[Rating] = []
    if log.exists():
        earlier, damage = read_log(log)
        findings = Findings((*irregular, *damage))
    latest = {item.key: item.score for item in earlier}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    added, changed = [], []
    for item in ratings:
        if item.key in latest and latest[item.key] == item.score:
            continue
        if latest.get(item.key) is not None:
            changed.append(f"{item}, before {latest[item.key]}")
        latest[item.key] = item.score
        added.append(dataclasses.replace(item, time=item.time or now))
    append_ratings(log, added)
    findings.add("rating that contradicts the log", "both are kept, the later counts", changed)
    return ImportReport(added=len(added), known=len(ratings) - len(added), findings=findings.all())
