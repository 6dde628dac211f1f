"""Bring what raters filled in into the log of a study; doing it twice changes nothing."""

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path

from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.rating_sheets import ReadCell, read_ratings
from longtake.evaluation.records import Rating, append_ratings, read_log, read_score
from longtake.evaluation.study_files import of_study


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
    study: str = "",
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
        study: digest of the study; answers from a page of another one are left out. Empty: any.

    Raises:
        UserError: a file that cannot be read or written.
    """
    ratings, irregular = read_ratings(source, dimensions, read_cell, rater=rater)
    earlier, damage = read_log(log) if log.exists() else ([], ())
    findings = Findings((*irregular, *damage))
    if not ratings and not irregular:
        findings.add("file without an answer", "nothing is added", [source.name])
    if study:
        ratings = of_study(ratings, study, findings)
    findings.add("page that is not finished", "what it holds is used", _unfinished(ratings))
    latest = {item.key: item for item in earlier}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    added, changed, older = [], [], []
    for item in ratings:
        before = latest.get(item.key)
        if before is not None:
            if _said(before) == _said(item):
                continue
            if _is_older(item, before):
                older.append(f"{item}, since then {before.score}")
                continue
            if before.score not in (None, item.score):
                changed.append(f"{item}, before {before.score}")
        latest[item.key] = item
        added.append(dataclasses.replace(item, time=item.time or now))
    append_ratings(log, added)
    findings.add("rating that contradicts the log", "both are kept, the later counts", changed)
    findings.add("answer corrected since on its page", "not added", older)
    known = len(ratings) - len(added) - len(older)
    return ImportReport(added=len(added), known=known, findings=findings.all())


def _is_older(item: Rating, logged: Rating) -> bool:
    """Whether an answer comes from a file that its page saved before the one in the log."""
    page = item.provenance.get("page")
    same_clock = page is not None and page == logged.provenance.get("page")
    return same_clock and item.time < logged.time


def _said(item: Rating) -> tuple[float | None, str, str]:
    """What a rating says: the score, or why there is none, and the comment."""
    return item.score, item.reason, str(item.provenance.get("comment", ""))


def _unfinished(ratings: Sequence[Rating]) -> list[str]:
    """Pages of raters that hold fewer answers than they asked for, in words."""
    given: dict[tuple[str, str, int], set[tuple[str, str, str]]] = {}
    for item in ratings:
        asked = item.provenance.get("asked")
        if isinstance(asked, int):
            page = str(item.provenance.get("page", ""))
            given.setdefault((item.rater, page, asked), set()).add(item.key)
    return [
        f"{rater}: {len(keys)} of {asked} answers (page {page})"
        for (rater, page, asked), keys in given.items()
        if len(keys) < asked
    ]
