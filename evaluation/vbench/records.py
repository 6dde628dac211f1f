"""Finished videos of one dimension: JSON lines, appended one by one, so that a run can go on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.runtime.files import replacing

RECORDS = "records.jsonl"
"""Name of the file in a dimension's folder."""


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """Entry by file name of the video; empty without a file.

    A line that a kill tore is left out: its video is scored again.
    """
    found: dict[str, dict[str, Any]] = {}
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            found[Path(entry["video_path"]).name] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return found


def rewrite_records(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the file by whole lines, so that the next one cannot join a torn one."""
    with replacing(path) as temporary:
        text = "".join(json.dumps(entry) + "\n" for entry in entries.values())
        temporary.write_text(text, encoding="utf-8")
