"""Ratings in files of any accepted form: the log (.jsonl), or a sheet that people fill in (.csv).

A sheet is long (columns sample, dimension, rater, score: one rating in a row) or wide (columns
sample, rater and one for each dimension: one video and rater in a row).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from longtake.evaluation.csv_rows import read_csv_rows
from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.records import Rating, rating_from_record, read_log, read_score
from longtake.runtime.errors import UserError

ReadCell = Callable[[object], tuple[float | None, str]]
Loaded = tuple[list[Rating], tuple[Finding, ...]]


def read_ratings(
    path: Path,
    dimensions: Sequence[str],
    read_cell: ReadCell = read_score,
    *,
    rater: str = "",
) -> Loaded:
    """The ratings of a file in its order, and what in it is no rating.

    Args:
        path: ``.jsonl`` (:func:`longtake.evaluation.records.read_log`) or ``.csv``.
        dimensions: names that a wide sheet may have as columns.
        read_cell: text of a cell to (score, why there is none); ValueError when it is neither.
        rater: who filled in the rows of a sheet that name no rater.

    Raises:
        UserError: unreadable, another ending, or a sheet without the needed columns.
    """
    if path.suffix.lower() == ".jsonl":
        return read_log(path)
    if path.suffix.lower() != ".csv":
        raise UserError(
            "the ratings have an unknown format",
            received=str(path),
            expected="a .jsonl log or a .csv sheet",
        )
    columns, rows, long = read_csv_rows(path, ("sample",) if rater else ("sample", "rater"))
    rows = [(line, {**row, "rater": row.get("rater") or rater}) for line, row in rows]
    findings = Findings()
    findings.add("row with too many cells", "not used", long)
    if "dimension" in columns and "score" in columns:
        cells = [(line, row, row["dimension"], row["score"]) for line, row in rows]
    else:
        cells = [
            (line, row, name, row[name]) for line, row in rows for name in dimensions if name in row
        ]
        if not cells and not set(columns) & set(dimensions):
            raise UserError(
                "the sheet has no column of scores",
                received=f"columns {', '.join(columns)} in {path}",
                expected=f"dimension and score, or any of {', '.join(dimensions)}",
            )
    ratings, blank, unusable = [], [], []
    for line, row, dimension, text in cells:
        where = f"{path.name}:{line}, {dimension}"
        if not text:
            blank.append(where)
            continue
        try:
            ratings.append(_rating(row, dimension, text, read_cell))
        except ValueError as error:
            unusable.append(f"{where}: {error}")
    findings.add("empty cell", "not rated", blank)
    findings.add("cell that is not a rating", "not used", unusable)
    return ratings, findings.all()


def _rating(row: Mapping[str, str], dimension: str, text: str, read_cell: ReadCell) -> Rating:
    score, reason = read_cell(text)
    named = {name: value for name, value in row.items() if name in _TEXTS and value}
    found = {"reason": reason, **named, "dimension": dimension, "score": score}
    return rating_from_record(found)


_TEXTS = ("sample", "rater", "reason", "kind", "model", "prompt", "cluster", "time")
