"""VBench results in a report: computed from results of videos, or read from a score table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.evaluation.model_comparison import ComparisonSettings
from longtake.evaluation.report.content import Section, TableBlock, Text
from longtake.evaluation.report.inputs import VBenchInput
from longtake.evaluation.report.sources import SourceList
from longtake.evaluation.report.vbench_tables import vbench_tables
from longtake.evaluation.vbench.aggregate import aggregate
from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.plan_file import read_plan
from longtake.evaluation.vbench.result_files import read_results
from longtake.evaluation.vbench.suites import find_suite
from longtake.runtime.errors import UserError

_SHOWN = 40
"""Notes that are shown; `eval vbench aggregate` has all."""


def planned(item: VBenchInput) -> Plan | None:
    """The plan of a run; None where the results come without one.

    Raises:
        UserError: a damaged plan.
    """
    return None if item.plan is None else read_plan(item.plan)


def vbench_section(item: VBenchInput, sources: SourceList, settings: ComparisonSettings) -> Section:
    """Score the results of one model.

    Raises:
        UserError: nothing can be read.
    """
    found = read_results(find_suite(item.suite), item.path)
    scores = aggregate(found, planned(item), resamples=settings.resamples, seed=settings.seed)
    files = (*item.files, *((item.plan,) if item.plan is not None else ()))
    record = scores.as_record()
    record["problems"] += [f"no results in {name}" for name in found.ignored]
    return _section(item.name, record, sources.numbers(files))


def scores_section(path: Path, sources: SourceList) -> Section:
    """A score table that `eval vbench aggregate` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return _section(path.stem, record, sources.numbers([path]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the score table is damaged: {type(error).__name__}: {error}",
            received=str(path),
            expected="a file that `eval vbench aggregate` wrote",
            remedy="write it again",
        ) from error


def _section(name: str, record: Mapping[str, Any], sources: tuple[int, ...]) -> Section:
    suite = find_suite(record["suite"])
    table, notes = vbench_tables(name, record)
    hidden = len(notes) - _SHOWN
    lines = [*notes[:_SHOWN], *([f"{hidden} more notes"] if hidden > 0 else [])]
    return Section(
        title=f"{suite.title}: {name}",
        blocks=(TableBlock(table=table, sources=sources), *(Text(text=line) for line in lines)),
    )
