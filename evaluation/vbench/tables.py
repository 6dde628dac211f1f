"""Results as tables for people."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.run import RunReport
from longtake.evaluation.vbench.scores import Comparison, ScoreLine, Scores
from longtake.evaluation.vbench.suites import SUITES, Suite
from longtake.evaluation.vbench.upstream import NEEDS, is_native

_MISSING = "-"
_SHOWN = 3
"""Reasons that are printed per dimension; the JSON has all."""


def percent(score: float | None, sign: str = "") -> str:
    """A score in percent with two decimals, as the public tables print it."""
    return _MISSING if score is None else f"{100 * score:{sign}.2f}"


def _interval(ends: tuple[float, float] | None, sign: str = "") -> str:
    return _MISSING if ends is None else f"{percent(ends[0], sign)} .. {percent(ends[1], sign)}"


def _table(title: str, columns: str) -> Table:
    """Column names separated by `|`; those of numbers start with `>`."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns.split("|"):
        justify: Literal["left", "right"] = "right" if name.startswith(">") else "left"
        table.add_column(name.strip(">"), justify=justify, overflow="fold", min_width=6)
    return table


def _whole_numbers(table: Table) -> Table:
    """In a narrow terminal words go on in the next line; a cut number would be a wrong number."""
    for column in table.columns:
        if column.justify == "right":
            column.min_width = max((len(str(cell)) for cell in column.cells), default=1)
    return table


def score_table(scores: Scores, only: Collection[str] | None = None) -> Table:
    """Dimensions, categories and the total, in percent; with ``only``, these dimensions alone."""
    table = _table(
        f"{scores.suite.title}: percent, 95 % intervals over prompts",
        "dimension|>score|>interval|>videos|>-1|>unscored|by",
    )
    if only is not None:
        for name in only:
            _add_line(table, scores.dimensions[name])
        return _whole_numbers(table)
    for category in scores.suite.categories:
        for dimension in category.dimensions:
            _add_line(table, scores.dimensions[dimension.name])
        _add_line(table, scores.categories[category.name], style="bold")
        table.add_section()
    _add_line(table, scores.categories["Total"], style="bold")
    return _whole_numbers(table)


def _add_line(table: Table, line: ScoreLine, style: str = "") -> None:
    table.add_row(
        line.name,
        percent(line.score),
        _interval(line.interval),
        str(line.videos or _MISSING),
        str(line.not_applicable or ""),
        str(len(line.unscored or {}) or ""),
        line.origin,
        style=style,
    )


def score_notes(scores: Scores) -> list[Text]:
    """Problems, notes and the first reasons of unscored videos, one line each."""
    lines = [f"problem: {problem}" for problem in scores.problems]
    for line in (*scores.dimensions.values(), *scores.categories.values()):
        lines += _line_notes(line)
    return [Text(line) for line in lines]


def _line_notes(line: ScoreLine) -> list[str]:
    # That a dimension was not run is told once, in the notes of its category.
    notes = [f"{line.name}: {note}" for note in line.notes if note != "no result"]
    unscored = [f"unscored {video}: {why}" for video, why in (line.unscored or {}).items()]
    return notes + [f"{line.name}: {text}" for text in _first(unscored, "unscored videos")]


def _first(lines: Sequence[str], what: str) -> list[str]:
    rest = len(lines) - _SHOWN
    return [*lines[:_SHOWN], *([f"{rest} more {what}"] if rest > 0 else [])]


def doctor_report(suite: Suite, lacking: Mapping[str, Mapping[str, str]]) -> list[Table | Text]:
    """What is missing for each dimension, and then once how to get each thing."""
    table = _table(
        f"{suite.title}: what the public code still needs here",
        "dimension|environment|>GPU, GiB|ready|missing",
    )
    for name, things in lacking.items():
        need = NEEDS[suite.name][name]
        ready = "yes" if not things else "ours" if is_native(suite, name) else "no"
        memory = str(need.get("memory_gib", "?"))
        table.add_row(name, need["environment"], memory, ready, Text(", ".join(things)))
    ways = dict.fromkeys(f"{what}: {how}" for own in lacking.values() for what, how in own.items())
    return [table, *(Text(way) for way in ways)]


def run_report(report: RunReport) -> list[Table | Text]:
    """What a run scored, why videos are unscored, what could not be run, and odd videos."""
    lines: list[str] = []
    for name in report.results:
        lines += _line_notes(report.scores.dimensions[name])
    for name, things in report.not_run.items():
        lines.append(f"{name}: not run, missing: {', '.join(things)}; see `eval vbench doctor`")
    table = [score_table(report.scores, only=report.results)] if report.results else []
    return [*table, *(Text(line) for line in lines)]


def comparison_report(
    suite: Suite, comparison: Comparison, first: str, second: str
) -> list[Table | Text]:
    """Both scores, their difference, what can be said about it, and on what it stands."""
    table = _table(
        f"{suite.title}, percent. Intervals: 95 % for the total, and for the other "
        f"{comparison.family} lines together",
        "|>first|>second|>difference|>interval|verdict",
    )
    for line in comparison.lines:
        ends = None
        if line.difference is not None and line.half_width is not None:
            ends = (line.difference - line.half_width, line.difference + line.half_width)
        table.add_row(
            line.name,
            percent(line.first),
            percent(line.second),
            percent(line.difference, "+"),
            _interval(ends, "+"),
            line.verdict,
            style="bold" if line.name == "Total" else "",
        )
    bases = dict.fromkeys(line.basis for line in comparison.lines if line.basis)
    head = Text(f"first: {first}\nsecond: {second}\nintervals by: {', '.join(bases)}")
    return [head, _whole_numbers(table), *(Text(remark) for remark in comparison.remarks)]


def round_trip_report(plan: Plan, scores: Scores) -> list[Table | Text]:
    """What the round trip scored, what it did not, and what the rest needs."""
    total = sum(len(suite.dimensions) for suite in SUITES.values())
    scored = [name for name, line in scores.dimensions.items() if line.score is not None]
    notes = [Text(f"{name}: {note}") for name in scored for note in scores.dimensions[name].notes]
    remarks = [Text(f"plan: {remark}") for remark in plan.remarks]
    last = Text(
        f"Scored: {', '.join(scored)} ({len(scored)} of {total} dimensions), on "
        f"{len(plan.videos)} videos of {len(plan.rows)} prompts. Not scored: the other "
        f"{total - len(scored)}, whose weights are not here; `eval vbench doctor` says how to get "
        "each. No total is given: a missing dimension is not 0."
    )
    return [score_table(scores, only=scored), *notes, *remarks, last]
