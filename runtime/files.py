"""Files that survive a kill and a full disk: whole or absent; logs lose one line at most."""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

from longtake.runtime.errors import RunDirectoryError, UserError

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import BaseModel

Row = TypeVar("Row", bound="BaseModel")
MAX_PROBLEMS = 5
"""Wrong values of a table that a message lists."""
TEMPORARY = ".tmp-"
"""Prefix of what a kill may leave behind; a run directory sweeps it when it is next opened."""

_REMEDIES = {
    errno.ENOSPC: "free some space, then continue with --resume; what was finished is intact",
    errno.EDQUOT: "free some quota, then continue with --resume; what was finished is intact",
    errno.EFBIG: "raise the file size limit (ulimit -f), then continue with --resume",
    errno.EACCES: "choose a directory that you may write with --output-dir",
    errno.EPERM: "choose a directory that you may write with --output-dir",
    errno.EROFS: "the file system is read-only: choose another place with --output-dir",
    errno.ENOTDIR: "a part of the path is a file: choose another place with --output-dir",
    errno.EEXIST: "a file is in the way: choose another place with --output-dir",
}


@contextmanager
def explained(what: str, path: Path) -> Iterator[None]:
    """Turn a failed disk access in this block into a RunDirectoryError that says what to do.

    safetensors and torch report a failed write by types of their own; they count as OSError here.
    """
    try:
        with _serializers_raise_oserror():
            yield
    except RunDirectoryError:
        raise
    except OSError as error:
        raise RunDirectoryError(
            f"cannot {what}: {error.strerror or error}",
            received=str(path),
            remedy=_REMEDIES.get(error.errno or 0, "check the directory, then use --resume"),
        ) from error


@contextmanager
def _serializers_raise_oserror() -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    except RuntimeError as error:
        if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        # torch does not keep the reason; a short write is a full disk in all but odd cases.
        raise OSError(errno.ENOSPC, "a file could not be written whole") from error


def sync(path: Path) -> None:
    """Force to the disk a file, or a directory (which makes renames inside it durable)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Block that writes the yielded temporary file, which then takes the place of ``path``.

    The folder is created when missing. Readers, and the disk after a crash, hold the old file or
    the whole new one. If the block raises, ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays: writers of pictures and videos choose the format by it.
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def to_plain(value: object) -> Any:
    """A JSON-ready copy: mappings, sequences, numbers; NaN and inf become None, arrays lists.

    Raises:
        TypeError: an object with no JSON form.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    convert = getattr(value, "tolist", None)  # numpy and torch, arrays and scalars
    if convert is None:
        raise TypeError(f"no JSON form for {type(value).__name__}: {value!r}")
    return to_plain(convert())


def write_json(path: Path, value: object) -> Path:
    """Write indented JSON atomically; NaN and inf become null."""
    with explained(f"write {path.name}", path), replacing(path) as temporary:
        text = json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object a line, atomically."""
    with explained(f"write {path.name}", path), replacing(path) as temporary:
        temporary.write_bytes(b"".join(_line(record) for record in records))
    return path


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(to_plain(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def append_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add one JSON object a line; they are on the disk when this returns.

    A torn last line (an earlier kill) is removed first, so that it does not swallow the next
    record. Writers in several processes take turns. A full disk leaves the log as it was.
    """
    data = b"".join(_line(record) for record in records)
    with explained(f"write {path.name}", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            _append(descriptor, data)
        finally:
            os.close(descriptor)


def _append(descriptor: int, data: bytes) -> None:
    end = os.fstat(descriptor).st_size
    if end and os.pread(descriptor, 1, end - 1) != b"\n":
        tail = os.pread(descriptor, end, 0).rpartition(b"\n")[2]
        if _parse(tail) is None:
            os.ftruncate(descriptor, end - len(tail))
        else:  # whole, written by an editor that ends no line
            data = b"\n" + data
    start = os.fstat(descriptor).st_size
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, start)  # a full disk must not leave half a line behind
        raise


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file; empty lines do not count.

    A torn last line (its writer was stopped) is left out with a warning.

    Raises:
        UserError: the file cannot be read, or a line that is not the last is no JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"cannot read the records: {error.strerror or error}",
            received=str(path),
            expected="a readable .jsonl file",
            remedy="check the path",
        ) from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number == len(lines) and records:
            warnings.warn(f"{path}: the torn last line is left out", stacklevel=2)
        else:
            raise UserError(
                f"line {number} of the file is not a JSON object",
                received=f"{path}: {line[:60].decode(errors='replace')}",
                expected="one JSON object per line",
                remedy="mend or remove the line",
            )
    return records


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a directory's sorted relative names and contents.

    Moving or renaming the directory does not change its digest; hidden files and folders in it
    (locks, caches) do not count.
    """
    if path.is_file():
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    if not path.is_dir():
        raise FileNotFoundError(f"no file or directory to take a digest of: {path}")
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts):
            total.update(f"{name.as_posix()}\0{digest(file)}\n".encode())
    return total.hexdigest()


def prompt_key(prompt: str) -> str:
    """The prompt without case and extra spaces: what tells two prompts apart."""
    return " ".join(prompt.casefold().split())


def text_digest(text: str) -> str:
    """sha256 of the UTF-8 bytes of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_csv(path: Path, required: Sequence[str]) -> "pd.DataFrame":
    """A CSV with a header that people edit: stripped texts, rows indexed by their line.

    A byte order mark is fine and empty rows are skipped.

    Raises:
        UserError: unreadable, a column is missing or named twice, or a row has too many cells.
    """
    import pandas as pd

    try:
        # The header is read as a row: pandas would rename a repeated column, and take a first row
        # with one cell too many for a sign that the rows are named.
        cells = pd.read_csv(
            path,
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except (OSError, ValueError) as error:  # of pandas' own errors all are ValueError
        raise UserError(
            f"cannot read the CSV: {str(error).strip()}",
            received=str(path),
            expected="comma-separated values in UTF-8 with a header",
            remedy="put texts with commas in quotes",
        ) from error
    cells = cells.fillna("").apply(lambda column: column.str.strip())
    columns = cells.iloc[0].tolist()
    missing = [name for name in required if name not in columns]
    if missing or len(set(columns)) < len(columns):
        raise UserError(
            f"the CSV lacks {', '.join(missing)}" if missing else "the CSV names a column twice",
            received=f"columns {', '.join(columns)} in {path}",
            expected=f"a header with {', '.join(required)}",
        )
    rows = cells.iloc[1:].set_axis(columns, axis=1).set_axis(cells.index[1:] + 1, axis=0)
    filled: pd.DataFrame = rows[(rows != "").any(axis=1)]
    return filled


def checked_rows(table: "pd.DataFrame", model: type[Row], path: Path) -> list[Row]:
    """Rows of a table of texts as ``model``, which leaves other columns aside.

    Columns that the model requires must be there. All problems are told at once, by row.
    """
    from pydantic import TypeAdapter, ValidationError

    fields = model.model_fields
    missing = [name for name, field in fields.items() if field.is_required() and name not in table]
    if missing:
        raise UserError(
            "columns are missing",
            received=f"{path} with {', '.join(map(str, table.columns))}",
            expected=", ".join(fields),
            remedy=f"add {', '.join(missing)}",
        )
    records = table[[name for name in fields if name in table]].to_dict("records")
    try:
        return TypeAdapter(list[model]).validate_python(records)  # type: ignore[valid-type]
    except ValidationError as error:
        problems = [
            f"row {table.index[int(row)]}: {name} is {problem['input']!r}, {problem['msg']}"
            for problem in error.errors()
            for row, name in [problem["loc"][:2]]
        ]
        more = len(problems) - MAX_PROBLEMS
        raise UserError(
            f"values in {path.name} cannot be used",
            received="; ".join(problems[:MAX_PROBLEMS] + [f"{more} more"] * (more > 0)),
            remedy="correct or remove these rows",
        ) from error


def write_csv(path: Path, table: "pd.DataFrame") -> Path:
    """Write a header and rows, atomically and with full precision; NaN is an empty cell."""
    with explained(f"write {path.name}", path), replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 text, atomically."""
    with explained(f"write {path.name}", path), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
