"""Progress of long commands: a rich bar with value columns, plain lines where there is no terminal.

A log file gets one line every ``every_s`` seconds instead of control characters. Everything goes to
standard error, so that a command's standard output stays its result.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


class ProgressBar:
    """What ``progress_bar`` yields; see :meth:`update`."""

    def __init__(self, show: Callable[[int, str], None]) -> None:
        self._show = show

    def update(self, completed: int, **values: float | None) -> None:
        """Set the number of finished steps and the values beside the bar.

        None and NaN are shown as `-`: a value that is missing is not zero.
        """
        self._show(completed, "  ".join(f"{k} {format_value(v)}" for k, v in values.items()))


@contextmanager
def progress_bar(
    description: str,
    total: int,
    *,
    completed: int = 0,
    console: Console | None = None,
    every_s: float = 15.0,
) -> Iterator[ProgressBar]:
    """Show the progress of ``total`` steps while the block runs.

    Args:
        description: short name before the bar.
        total: number of steps.
        completed: steps that were done before this process (resume).
        console: where to show it; standard error by default.
        every_s: seconds between two lines when the console is no terminal.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield ProgressBar(_plain_lines(description, total, console, every_s))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total, completed=completed, values="")
        yield ProgressBar(lambda done, text: progress.update(task, completed=done, values=text))


def _plain_lines(
    description: str, total: int, console: Console, every_s: float
) -> Callable[[int, str], None]:
    start = time.monotonic()
    last = -math.inf

    def show(completed: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every_s and completed < total:
            return
        last = now
        line = f"{description} {completed}/{total} {now - start:.0f}s  {text}"
        console.print(Text(line.rstrip()), soft_wrap=True)

    return show


def format_value(value: float | None) -> str:
    """Four significant digits; `-` for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


_MIN_TEXT = 8
"""Columns of text keep this width in a narrow terminal."""


def result_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | int | None]]
) -> Table:
    """A table of texts and, to the right, numbers; its first column is text.

    Raises:
        ValueError: a row with another number of cells than there are columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"row of {len(row)} cells in a table of {len(columns)}: {row!r}")
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        cells = [cell_text(row[index]) for row in rows]
        # A cut number would be a wrong number; text and headings may go on in the next line.
        numbers = index > 0 and not any(isinstance(row[index], str) for row in rows)
        widest = max((len(cell) for cell in cells), default=1)
        table.add_column(
            name,
            justify="left" if all(isinstance(row[index], str) for row in rows) else "right",
            min_width=widest if numbers else min(widest, _MIN_TEXT),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(cell_text(cell)) for cell in row))
    return table


def cell_text(cell: str | float | None) -> str:
    """A cell as people read it: numbers with four significant digits, `-` for missing."""
    if isinstance(cell, str):
        return cell
    return str(cell) if isinstance(cell, int) else format_value(cell)
