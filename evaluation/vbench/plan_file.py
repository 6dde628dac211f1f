"""The plan on disk: one JSON file that people can read and every later step starts from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.evaluation.vbench.plan import Plan, PlannedVideo
from longtake.evaluation.vbench.suite_data import PromptRow
from longtake.evaluation.vbench.suites import find_suite
from longtake.runtime.errors import RunDirectoryError, UserError
from longtake.runtime.files import replacing

_FORMAT = "longtake vbench plan 1"


def write_plan(plan: Plan, path: Path) -> Path:
    """Write the plan; the file is the old one or the whole new one.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    content = {
        "format": _FORMAT,
        "suite": plan.suite.name,
        "seed": plan.seed,
        "samples": plan.samples,
        "source": plan.source,
        "sha256": plan.digest,
        "remarks": plan.remarks,
        "counts": {"videos": len(plan.videos), "copies": plan.copies},
        "rows": [[row.prompt, row.dimensions, row.auxiliary] for row in plan.rows],
        "videos": [_as_record(video) for video in plan.videos],
    }
    try:
        with replacing(path) as temporary:
            temporary.write_text(
                json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
            )
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write the plan: {error.strerror or error}",
            received=str(path),
            remedy="choose another place",
        ) from error
    return path


def read_plan(path: Path) -> Plan:
    """Read a plan and check that its list of videos follows from its prompts.

    Raises:
        UserError: no plan, torn, or edited by hand.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        plan = _parse(content)
        listed = [_freeze(record) for record in content["videos"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(path, f"{type(error).__name__}: {error}") from error
    if listed != [_freeze(_as_record(video)) for video in plan.videos]:
        raise _unusable(path, "its list of videos does not follow from its prompts")
    return plan


def _parse(content: Mapping[str, Any]) -> Plan:
    if content["format"] != _FORMAT:
        raise ValueError(f"its format is {content['format']!r}")
    rows = tuple(
        PromptRow(prompt=str(prompt), dimensions=tuple(dimensions), auxiliary=auxiliary)
        for prompt, dimensions, auxiliary in content["rows"]
    )
    suite = find_suite(content["suite"])
    samples = content["samples"]
    for row in rows:
        for name in row.dimensions:
            suite.dimension(name)
    return Plan(
        suite=suite,
        rows=rows,
        seed=int(content["seed"]),
        source=str(content["source"]),
        digest=str(content["sha256"]),
        remarks=tuple(content["remarks"]),
        samples=None if samples is None else int(samples),
        texts={v["prompt"]: v["text"] for v in content["videos"] if v["text"] != v["prompt"]},
    )


def _as_record(video: PlannedVideo) -> dict[str, Any]:
    return {name: getattr(video, name) for name in PlannedVideo.__slots__}


def _freeze(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, "dimensions": tuple(record["dimensions"])}


def _unusable(path: Path, why: str) -> UserError:
    return UserError(
        f"the plan cannot be used: {why}",
        received=str(path),
        expected="a file that `eval vbench plan` wrote",
        remedy="make the plan again; the same seed gives the same videos",
    )
