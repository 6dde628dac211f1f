"""Tables that people write: a CSV whose rows are checked, every problem named by its row."""

from pathlib import Path
from typing import TypeVar

import pandas as pd
from pydantic import BaseModel, TypeAdapter, ValidationError

from longtake.runtime.errors import UserError

Row = TypeVar("Row", bound=BaseModel)
_MAX_LISTED = 5


def read_csv(path: Path) -> pd.DataFrame:
    """Cells as text; the index counts rows as a spreadsheet does, the header being row 1.

    Rows and columns may be blank; rows may not be longer than the header. Cells of shorter rows
    are NaN.
    """
    try:
        # With header=0 pandas would rename columns that are there twice, and shift longer rows.
        table = pd.read_csv(
            path,
            dtype=str,
            header=None,
            keep_default_na=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(
            f"cannot read {path.name}: {error}",
            received=str(path),
            expected="comma-separated values in UTF-8 with a header; cells with commas in quotes",
        ) from error
    table.columns = table.iloc[0].fillna("").str.strip()
    table.index += 1
    named = table.columns[table.columns != ""]
    if twice := sorted(set(named[named.duplicated()])):
        raise UserError(
            "a column is there twice",
            received=f"{', '.join(twice)} in {path}",
            expected="each once",
        )
    return table.iloc[1:].dropna(how="all")


def checked_rows(table: pd.DataFrame, model: type[Row], path: Path) -> list[Row]:
    """Rows as ``model``, which leaves other columns aside; all problems are told at once."""
    fields = model.model_fields
    missing = [name for name, field in fields.items() if field.is_required() and name not in table]
    if missing:
        raise UserError(
            "columns are missing",
            received=f"{path} with {', '.join(map(str, table.columns))}",
            expected=", ".join(fields),
            remedy=f"add {', '.join(missing)}",
        )
    rows = table[[name for name in fields if name in table]]
    try:
        return TypeAdapter(list[model]).validate_python(rows.to_dict("records"))  # type: ignore[valid-type]
    except ValidationError as error:
        problems = [
            f"row {table.index[int(row)]}: {name} is {problem['input']!r}, {problem['msg']}"
            for problem in error.errors()
            for row, name in [problem["loc"][:2]]
        ]
        more = len(problems) - _MAX_LISTED
        raise UserError(
            f"values in {path.name} cannot be used",
            received="; ".join(problems[:_MAX_LISTED] + ([f"{more} more"] if more > 0 else [])),
            remedy="correct or remove these rows",
        ) from error
