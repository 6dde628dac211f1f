"""CSV files that people edit: header checks and line numbers on reading, atomic writing."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from longtake.runtime.errors import UserError
from longtake.runtime.files import replacing


def read_csv_rows(
    path: Path, required: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[int, dict[str, str]]], tuple[str, ...]]:
    """Read a CSV with a header; cells are stripped texts.

    Args:
        path: UTF-8, with or without a byte order mark.
        required: columns that must be there.

    Returns:
        The columns, the rows with their line numbers (empty rows are skipped), and descriptions of
        rows with more cells than columns, which are left out.

    Raises:
        UserError: unreadable, no header, a required column is missing, or a column is named twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = tuple(name.strip() for name in next(reader, ()))
            cells = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"cannot read the CSV: {error}",
            received=str(path),
            expected="comma-separated values in UTF-8 with a header",
        ) from error
    missing = [name for name in required if name not in columns]
    if missing or len(set(columns)) < len(columns):
        raise UserError(
            f"the CSV lacks {', '.join(missing)}" if missing else "the CSV names a column twice",
            received=f"columns {', '.join(columns) or 'none'} in {path}",
            expected=f"a header with {', '.join(required)}",
        )
    rows = [
        (line, dict(zip(columns, row + [""] * (len(columns) - len(row)), strict=True)))
        for line, row in cells
        if any(row) and len(row) <= len(columns)
    ]
    long = tuple(
        f"{path.name}:{line}: {len(row)} cells; put texts with commas in quotes"
        for line, row in cells
        if len(row) > len(columns)
    )
    return columns, rows, long


def write_csv_rows(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]
) -> Path:
    """Write a header and rows, atomically; a column that a row lacks stays empty.

    Raises:
        UserError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> Path:
    """Write a text file, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write {path.name}: {error.strerror or error}",
            received=str(path),
            expected="a writable folder with free space",
        ) from error
    return path
