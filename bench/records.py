"""Records of benchmarks as JSON files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_record(path: Path | None, record: Mapping[str, Any]) -> None:
    """Write a record, with the folders above it; None writes nothing."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
