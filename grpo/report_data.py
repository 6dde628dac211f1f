"""What a report is made from: the files of a run directory, whole, torn or missing.

Reading never fails on content: a file that is missing or unreadable becomes an empty value and a
line that says so, because the runs one most wants to look at are the interrupted ones.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.grpo.curves import interval

OVERALL = "oracle_mean"
"""The metric that the verdict is about."""

Cells = Mapping[str, Mapping[str, Any]]
"""Metric -> before, after, diff, ci95, n, n_clusters, dropped (summary.json)."""

_FILES = (
    ("summary.json", "the run has not finished, so there is no verdict yet"),
    ("held_out_before.jsonl", "the held-out evaluation before training has not finished"),
    ("held_out_after.jsonl", "the held-out evaluation after training has not finished"),
    ("metrics.jsonl", "no update has finished"),
    ("timing.jsonl", "no timings"),
    ("curves.png", "no training curves"),
    ("samples/before_after.png", "no picture of clips before and after"),
    ("config.yaml", "the configuration is unknown"),
    ("provenance.json", "code state, versions and hardware are unknown"),
)


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The contents of a run directory; empty where a file is missing."""

    path: Path
    missing: list[str]
    config: str
    provenance: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]

    @property
    def held_out(self) -> Cells:
        """Differences of the held-out metrics."""
        return self.summary.get("held_out") or {}

    @property
    def rewards(self) -> Cells:
        """Differences of the training rewards on the held-out prompts."""
        return self.summary.get("rewards") or {}


def read_run(run: Path) -> RunData:
    """Read what there is, and list in ``missing`` what there is not."""
    missing = [f"{name}: {why}" for name, why in _FILES if not (run / name).is_file()]
    lines = {}
    for name in ("metrics", "timing", "held_out_before", "held_out_after"):
        lines[name], bad = _read_lines(run / f"{name}.jsonl")
        if bad:
            missing.append(
                f"{name}.jsonl: {bad} unreadable {'lines' if bad > 1 else 'line'} left out"
            )
    objects = {}
    for name in ("provenance.json", "summary.json"):
        objects[name] = _parse(_read_text(run / name))
        if objects[name] is None and (run / name).is_file():
            missing.append(f"{name}: it cannot be read")
    return RunData(
        path=run,
        missing=missing,
        config=_read_text(run / "config.yaml"),
        provenance=objects["provenance.json"] or {},
        summary=objects["summary.json"] or {},
        metrics=_last_per_update(lines["metrics"]),
        timing=_last_per_update(lines["timing"]),
        before=lines["held_out_before"],
        after=lines["held_out_after"],
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _parse(text: str) -> dict[str, Any] | None:
    with suppress(ValueError):
        value = json.loads(text)
        return value if isinstance(value, dict) else None
    return None


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    records = [_parse(line) for line in _read_text(path).split("\n") if line.strip()]
    good = [record for record in records if record is not None]
    return good, len(records) - len(good)


def _last_per_update(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A resumed run may have logged an update twice: the later record counts."""
    table = {int(r["update"]): r for r in records if r.get("update") is not None}
    return [table[update] for update in sorted(table)]


def direction(cell: Mapping[str, Any]) -> str:
    """``rise`` or ``fall`` when the interval excludes zero, else ``flat``."""
    bounds = interval(cell)
    if bounds is None:
        return "flat"
    return "rise" if bounds[0] > 0 else "fall" if bounds[1] < 0 else "flat"


def score_name(metrics: Mapping[str, Any]) -> str:
    """The metric that stands for a clip: the overall one, else the first."""
    return OVERALL if OVERALL in metrics else next(iter(metrics))


def _score(record: Mapping[str, Any]) -> float | None:
    metrics = record.get("metrics") or {}
    if metrics:
        value = metrics[score_name(metrics)]
        return None if value is None else float(value)
    values = list((record.get("rewards") or {}).values())
    if not values or any(value is None for value in values):
        return None
    return math.fsum(values) / len(values)


def per_prompt(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[tuple[str, float, float, float, int]]:
    """(prompt, before, after, change, clips) over the samples that were scored both times.

    The score is ``oracle_mean``, else the first metric, else the mean of the training rewards.
    """
    later = {(r["prompt_id"], r["sample"]): _score(r) for r in after}
    groups: dict[Any, tuple[str, list[tuple[float, float]]]] = {}
    for record in before:
        first, second = _score(record), later.get((record["prompt_id"], record["sample"]))
        if first is not None and second is not None:
            group = groups.setdefault(record["prompt_id"], (record["prompt"], []))
            group[1].append((first, second))
    rows = []
    for prompt, pairs in groups.values():
        a, b = (math.fsum(side) / len(pairs) for side in zip(*pairs, strict=True))
        rows.append((prompt, a, b, b - a, len(pairs)))
    return rows
