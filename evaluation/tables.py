"""A table as plain data: shown in a terminal, written as CSV, or set in a report."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from longtake.evaluation.findings import Finding
from longtake.runtime.progress import format_value

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Cell = str | float | int | None
_LONG = 30
"""Texts longer than this may be wrapped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows under named columns."""

    name: str
    """File name without suffix, such as ``mos``."""
    title: str
    """Heading."""
    columns: tuple[str, ...]
    """Names of the columns; the first column is text."""
    rows: tuple[tuple[Cell, ...], ...]
    """One cell for each column; None and NaN are missing values."""
    note: str = ""
    """What a reader must know to read the numbers."""

    def as_csv(self) -> str:
        """Comma-separated values with full precision; a missing value is an empty cell."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.rows:
            writer.writerow("" if _missing(cell) else cell for cell in row)
        return text.getvalue()

    def as_rich(self) -> "RichTable":
        """For a terminal: numbers to the right with four significant digits, ``-`` for missing."""
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title, title_justify="left")
        for index, name in enumerate(self.columns):
            cells = [row[index] for row in self.rows]
            is_text = all(isinstance(cell, str) or cell is None for cell in cells)
            is_long = any(len(cell) > _LONG for cell in cells if isinstance(cell, str))
            table.add_column(
                name,
                justify="left" if is_text else "right",
                no_wrap=not is_long,
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*(Text(_shown(cell)) for cell in row))
        return table


def _shown(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    return str(cell) if isinstance(cell, int) else format_value(cell)


def _missing(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def interval_text(value: float, low: float, high: float, digits: int = 2) -> str:
    """``3.38 [3.31, 3.45]``; ``-`` without a value, the value alone without an interval."""
    if math.isnan(value):
        return "-"
    if math.isnan(low) or math.isnan(high):
        return f"{value:.{digits}f} [no interval]"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table_of(name: str, title: str, items: Sequence[Any], note: str = "") -> Table:
    """Dataclass instances as rows, their fields as columns; bool is written yes or no."""
    columns = tuple(field.name for field in fields(items[0])) if items else ()
    rows = (tuple(getattr(item, column) for column in columns) for item in items)
    return Table(
        name=name,
        title=title,
        columns=columns,
        rows=tuple(
            tuple(("yes" if c else "no") if isinstance(c, bool) else c for c in row) for row in rows
        ),
        note=note,
    )


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row for each case of each finding."""
    return Table(
        name="findings",
        title="Irregularities of the input",
        columns=("kind", "effect", "case"),
        rows=tuple((f.kind, f.effect, item) for f in findings for item in f.items),
    )
