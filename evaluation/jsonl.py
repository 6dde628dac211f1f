"""JSON-lines logs that survive a kill: appended and synced, read past whatever is broken."""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from longtake.evaluation.findings import Finding, Findings
from longtake.runtime.errors import UserError
from longtake.runtime.files import to_plain


def append_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Add records at the end, one line each; they are on the disk when this returns.

    A torn last line (an earlier kill) is closed with a newline first, so that it stays in the file,
    is reported by :func:`read_jsonl`, and does not swallow the next record. Writers in several
    processes take turns.

    Returns:
        Number of records written.

    Raises:
        UserError: the file cannot be written; it is left as it was.
    """
    lines = [json.dumps(to_plain(r), ensure_ascii=False, allow_nan=False) for r in records]
    if not lines:
        return 0
    data = ("\n".join(lines) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            _write(descriptor, data)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(
            f"cannot write the log: {error.strerror or error}",
            received=str(path),
            expected="a writable file with free space",
            remedy="the log is as it was; free some space or choose another path, then repeat",
        ) from error
    return len(lines)


def _write(descriptor: int, data: bytes) -> None:
    start = os.fstat(descriptor).st_size
    if start and os.pread(descriptor, 1, start - 1) != b"\n":
        data = b"\n" + data
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, start)  # a full disk must not leave half a line behind
        raise


def read_jsonl(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], tuple[Finding, ...]]:
    """All JSON objects of a file with their line numbers, and what could not be read.

    Raises:
        UserError: the file is missing or unreadable, or it holds lines but not one JSON object.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the records: {error.strerror or error}",
            received=str(path),
            expected="a readable .jsonl file",
            remedy="check the path",
        ) from error
    records: list[tuple[int, dict[str, Any]]] = []
    broken: list[str] = []
    torn: list[str] = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode())
        except ValueError:
            value = None
        if isinstance(value, dict):
            records.append((number, value))
        elif number == len(lines):
            torn.append(f"{path.name}:{number}, {len(line)} bytes")
        else:
            broken.append(f"{path.name}:{number}: {line[:60].decode(errors='replace')}")
    if broken and not records:
        raise UserError(
            "no line of the file is a JSON object",
            received=f"{path}, line 1: {lines[0][:60].decode(errors='replace')!r}",
            expected="one JSON object per line",
        )
    findings = Findings()
    findings.add("torn last line", "not a record; the writer was stopped", torn)
    findings.add("line that is not a JSON object", "not a record", broken)
    return records, findings.all()
