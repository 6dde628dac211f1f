"""VBench scores of one model as a table, from the record that `aggregate` writes."""

from collections.abc import Mapping
from typing import Any

from longtake.evaluation.tables import Cell, Table, interval_text


def vbench_tables(name: str, record: Mapping[str, Any]) -> tuple[Table, tuple[str, ...]]:
    """The table, and the problems and notes beside it.

    Args:
        name: of the model.
        record: :meth:`longtake.evaluation.vbench.aggregate.Scores.as_record`, or the same from
            a file.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: the record is damaged.
    """
    rows: list[tuple[Cell, ...]] = []
    notes = [str(problem) for problem in record["problems"]]
    for kind in ("dimensions", "categories"):
        for line, content in record[kind].items():
            rows.append((line, *_cells(content)))
            notes += [f"{line}: {note}" for note in content["notes"] if note != "no result"]
            notes += [f"{line}: unscored {v}: {why}" for v, why in content["unscored"].items()]
    table = Table(
        name="vbench",
        title=f"{name}: {record['suite']}, percent",
        columns=("dimension", "score", "videos", "prompts", "-1", "unscored", "by"),
        rows=tuple(rows),
        note="95 % intervals over prompts. -1: videos to which a dimension does not apply; they "
        "leave the mean. A missing dimension is not 0: what needs it has no score.",
    )
    return table, tuple(notes)


def _cells(content: Mapping[str, Any]) -> tuple[Cell, ...]:
    score, interval = content["score"], content["ci95"]
    missing = float("nan")
    low, high = (missing, missing) if interval is None else interval
    value = missing if score is None else 100 * score
    return (
        interval_text(value, 100 * low, 100 * high),
        content["videos"],
        content["prompts"] or None,
        content["not_applicable"],
        len(content["unscored"]),
        content["origin"],
    )
