"""Results as tables for people."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from longtake.evaluation.vbench.requirements import NATIVE, REQUIREMENTS
from longtake.evaluation.vbench.suites import SUITES, Suite
from longtake.runtime.errors import RunDirectoryError
from longtake.runtime.files import replacing, to_plain

if TYPE_CHECKING:  # printing a diagnosis must not load what computes scores
    from longtake.evaluation.vbench.aggregate import ScoreLine, Scores
    from longtake.evaluation.vbench.bootstrap import Spread
    from longtake.evaluation.vbench.compare import Comparison
    from longtake.evaluation.vbench.doctor import Diagnosis
    from longtake.evaluation.vbench.plan import Plan
    from longtake.evaluation.vbench.run import RunReport, Step

_MISSING = "-"
_SHOWN = 3
"""Reasons that are printed per dimension; the JSON has all."""


def percent(score: float | None) -> str:
    """A score in percent with two decimals, as the public tables print it."""
    return _MISSING if score is None else f"{100 * score:.2f}"


def _interval(spread: "Spread | None") -> str:
    return _MISSING if spread is None else f"{100 * spread.low:.2f} .. {100 * spread.high:.2f}"


def _table(title: str, columns: Sequence[tuple[str, str]]) -> Table:
    """Columns are (name, alignment); `wrap` columns are text that may take several lines."""
    table = Table(title=title, title_justify="left")
    for name, alignment in columns:
        if alignment == "right":
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold", no_wrap=alignment == "left")
    return table


def score_table(scores: "Scores", only: Collection[str] | None = None) -> Table:
    """Dimensions, categories and the total, in percent; with ``only``, these dimensions alone."""
    table = _table(
        f"{scores.suite.title}: percent, 95 % intervals over prompts",
        [
            ("dimension", "left"),
            ("score", "right"),
            ("interval", "right"),
            ("videos", "right"),
            ("-1", "right"),
            ("unscored", "right"),
            ("by", "left"),
        ],
    )
    if only is not None:
        for name in only:
            _add_line(table, scores.dimensions[name])
        return table
    for category in scores.suite.categories:
        for dimension in category.dimensions:
            _add_line(table, scores.dimensions[dimension.name])
        _add_line(table, scores.categories[category.name], style="bold")
        table.add_section()
    _add_line(table, scores.categories["Total"], style="bold")
    return table


def _add_line(table: Table, line: "ScoreLine", style: str = "") -> None:
    table.add_row(
        line.name,
        percent(line.score),
        _interval(line.interval),
        str(line.videos) if line.videos else _MISSING,
        str(line.not_applicable) if line.not_applicable else "",
        str(len(line.unscored)) if line.unscored else "",
        line.origin,
        style=style,
    )


def score_notes(scores: "Scores") -> list[Text]:
    """Problems, notes and the first reasons of unscored videos, one line each."""
    lines = [f"problem: {problem}" for problem in scores.problems]
    for line in (*scores.dimensions.values(), *scores.categories.values()):
        lines += _line_notes(line)
    return [Text(line) for line in lines]


def _line_notes(line: "ScoreLine") -> list[str]:
    # That a dimension was not run is told once, in the notes of its category.
    notes = [f"{line.name}: {note}" for note in line.notes if note != "no result"]
    unscored = list((line.unscored or {}).items())
    notes += [f"{line.name}: unscored {video}: {why}" for video, why in unscored[:_SHOWN]]
    if len(unscored) > _SHOWN:
        notes.append(f"{line.name}: {len(unscored) - _SHOWN} more unscored videos")
    return notes


def doctor_report(suite: Suite, diagnoses: "Sequence[Diagnosis]") -> list[Table | Text]:
    """What is missing for each dimension, and then once how to get each thing."""
    table = _table(
        f"{suite.title}: what the public code still needs here",
        [("dimension", "left"), ("GPU, GiB", "right"), ("ready", "left"), ("missing", "wrap")],
    )
    for found in diagnoses:
        ready = "yes" if not found.missing else "ours" if found.is_native else "no"
        missing = ", ".join(thing.what for thing in found.missing)
        table.add_row(found.dimension, _memory(found.memory_gib), ready, Text(missing))
    things = dict.fromkeys(thing for found in diagnoses for thing in found.missing)
    return [table, *(Text(str(thing)) for thing in things)]


def run_plan_table(suite: Suite, steps: "Sequence[Step]") -> Table:
    """What a run would do."""
    table = _table(
        f"{suite.title}: what a run would do",
        [
            ("dimension", "left"),
            ("videos", "right"),
            ("missing", "right"),
            ("finished", "right"),
            ("GPU, GiB", "right"),
            ("resume", "left"),
            ("would run", "wrap"),
        ],
    )
    for step in steps:
        found = step.diagnosis
        if not found.missing:
            how = "upstream runner"
        elif found.is_native:
            how = "ours"
        else:
            how = "no, missing: " + ", ".join(thing.what for thing in found.missing)
        table.add_row(
            found.dimension,
            str(step.videos),
            str(step.missing),
            str(step.finished),
            _memory(found.memory_gib),
            "per prompt" if suite.dimensions[found.dimension].per_prompt else "per video",
            Text(how),
        )
    return table


def run_report(report: "RunReport") -> list[Table | Text]:
    """What a run scored, why videos are unscored, what could not be run, and odd videos."""
    lines: list[str] = []
    for name in report.results:
        lines += _line_notes(report.scores.dimensions[name])
    for name, diagnosis in report.not_run.items():
        missing = ", ".join(thing.what for thing in diagnosis.missing)
        lines.append(f"{name}: not run, missing: {missing}; see `eval vbench doctor`")
    odd = list(report.odd_videos.items())
    lines += [f"odd video {path}: {why}" for path, why in odd[:_SHOWN]]
    if len(odd) > _SHOWN:
        lines.append(f"{len(odd) - _SHOWN} more odd videos; `eval vbench check` lists them")
    table = [score_table(report.scores, only=report.results)] if report.results else []
    return [*table, *(Text(line) for line in lines)]


def comparison_report(comparison: "Comparison", first: str, second: str) -> list[Table | Text]:
    """Both scores, their difference, what can be said about it, and on what it stands."""
    table = _table(
        f"{comparison.suite.title}, percent. Intervals: {100 * comparison.confidence:g} % for the "
        f"total, and for the other {comparison.family} lines together",
        [
            ("", "left"),
            ("first", "right"),
            ("second", "right"),
            ("difference", "right"),
            ("interval", "right"),
            ("verdict", "left"),
            ("basis", "left"),
        ],
    )
    for line in comparison.lines:
        interval = _MISSING
        if line.low is not None and line.high is not None:
            interval = f"{100 * line.low:+.2f} .. {100 * line.high:+.2f}"
        difference = line.difference
        table.add_row(
            line.name,
            percent(line.first),
            percent(line.second),
            _MISSING if difference is None else f"{100 * difference:+.2f}",
            interval,
            line.verdict,
            line.basis,
            style="bold" if line.name == "Total" else "",
        )
    head = Text(f"first: {first}\nsecond: {second}")
    return [head, table, *(Text(remark) for remark in comparison.remarks)]


def sample_report(plan: "Plan", scores: "Scores") -> list[Table | Text]:
    """What the round trip scored, what it did not, and what the rest needs."""
    total = sum(len(suite.dimensions) for suite in SUITES.values())
    scored = [name for name, line in scores.dimensions.items() if line.score is not None]
    others = [_needs_table(suite) for suite in SUITES.values()]
    last = Text(
        f"Scored: {', '.join(scored)} ({len(scored)} of {total} dimensions), on "
        f"{len(plan.videos)} videos of {len(plan.rows)} prompts. Not scored: the other "
        f"{total - len(scored)}, whose weights are not here; `eval vbench doctor` says how to get "
        "each. No total is given: a missing dimension is not 0."
    )
    notes = [Text(f"{name}: {note}") for name in scored for note in scores.dimensions[name].notes]
    remarks = [Text(f"plan: {remark}") for remark in plan.remarks]
    return [*others, score_table(scores, only=scored), *notes, *remarks, last]


def _needs_table(suite: Suite) -> Table:
    """What each dimension needs, in short."""
    table = _table(
        f"{suite.title}: not scored without these weights",
        [("dimension", "left"), ("GPU, GiB", "right"), ("weights", "wrap")],
    )
    for name, need in REQUIREMENTS[suite.name].items():
        if name not in NATIVE[suite.name]:
            names = ", ".join(weights.name for weights in need.weights)
            table.add_row(name, _memory(need.memory_gib), Text(names))
    return table


def write_scores(scores: "Scores", path: Path) -> None:
    """Write the table as JSON.

    Raises:
        RunDirectoryError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            text = json.dumps(to_plain(scores.as_record()), indent=2, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write the scores: {error.strerror or error}", received=str(path)
        ) from error


def _memory(gib: float | None) -> str:
    return "?" if gib is None else f"{gib:g}"
