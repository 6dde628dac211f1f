"""Results as tables and lines for people."""

from collections.abc import Collection, Mapping, Sequence

from rich.table import Table

from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.run import RunReport
from longtake.evaluation.vbench.scores import Comparison, ScoreLine, Scores
from longtake.evaluation.vbench.suites import SUITES, Suite
from longtake.evaluation.vbench.upstream import NEEDS, is_native
from longtake.runtime.progress import result_table

_MISSING = "-"
_SHOWN = 3
"""Reasons that are printed per dimension; the JSON has all."""


def percent(score: float | None, sign: str = "") -> str:
    """A score in percent with two decimals, as the public tables print it."""
    return _MISSING if score is None else f"{100 * score:{sign}.2f}"


def _interval(ends: tuple[float, float] | None, sign: str = "") -> str:
    return _MISSING if ends is None else f"{percent(ends[0], sign)} .. {percent(ends[1], sign)}"


def score_table(scores: Scores, only: Collection[str] | None = None) -> Table:
    """Dimensions, categories and the total, in percent; with ``only``, these dimensions alone."""
    lines = [scores.dimensions[name] for name in only or ()]
    if only is None:
        for category in scores.suite.categories:  # each below its dimensions, the total last
            lines += [scores.dimensions[d.name] for d in category.dimensions]
            lines.append(scores.categories[category.name])
        lines.append(scores.categories["Total"])
    rows = [
        (
            line.name,
            percent(line.score),
            _interval(line.interval),
            line.videos,
            line.not_applicable,
            len(line.unscored or {}),
            line.origin,
        )
        for line in lines
    ]
    title = f"{scores.suite.title}: percent, 95 % intervals over prompts"
    columns = ("dimension", "score", "interval", "videos", "-1", "unscored", "by")
    return result_table(title, columns, rows)


def score_notes(scores: Scores) -> list[str]:
    """Problems, notes and the first reasons of unscored videos, one line each."""
    lines = [f"problem: {problem}" for problem in scores.problems]
    for line in (*scores.dimensions.values(), *scores.categories.values()):
        lines += _line_notes(line)
    return lines


def _line_notes(line: ScoreLine) -> list[str]:
    # That a dimension was not run is told once, in the notes of its category.
    notes = [note for note in line.notes if note != "no result"]
    unscored = [f"unscored {video}: {why}" for video, why in (line.unscored or {}).items()]
    if len(unscored) > _SHOWN:
        unscored[_SHOWN:] = [f"{len(unscored) - _SHOWN} more unscored videos"]
    return [f"{line.name}: {text}" for text in (*notes, *unscored)]


def doctor_report(suite: Suite, lacking: Mapping[str, Mapping[str, str]]) -> list[Table | str]:
    """What is missing for each dimension, and then once how to get each thing."""
    rows = []
    for name, things in lacking.items():
        need = NEEDS[suite.name][name]
        ready = "yes" if not things else "ours" if is_native(suite, name) else "no"
        memory = need.get("memory_gib")
        rows.append((name, need["environment"], memory, ready, ", ".join(things)))
    title = f"{suite.title}: what the public code still needs here"
    columns = ("dimension", "environment", "GPU, GiB", "ready", "missing")
    ways = dict.fromkeys(f"{what}: {how}" for own in lacking.values() for what, how in own.items())
    return [result_table(title, columns, rows), *ways]


def run_report(report: RunReport) -> list[Table | str]:
    """What a run scored, why videos are unscored, and what could not be run."""
    table = [score_table(report.scores, only=report.results)] if report.results else []
    notes = [n for name in report.results for n in _line_notes(report.scores.dimensions[name])]
    not_run = [
        f"{name}: not run, missing: {', '.join(things)}; see `eval vbench doctor`"
        for name, things in report.not_run.items()
    ]
    return [*table, *notes, *not_run]


def comparison_report(
    suite: Suite, comparison: Comparison, names: Sequence[str]
) -> list[Table | str]:
    """Both scores, their difference, what can be said about it, and on what it stands."""
    rows = []
    for line in comparison.lines:
        ends = None
        if line.difference is not None and line.half_width is not None:
            ends = (line.difference - line.half_width, line.difference + line.half_width)
        scores = (percent(line.first), percent(line.second), percent(line.difference, "+"))
        rows.append((line.name, *scores, _interval(ends, "+"), line.verdict))
    title = (
        f"{suite.title}, percent. Intervals: 95 % for the total, and for the other "
        f"{comparison.family} lines together"
    )
    columns = ("", "first", "second", "difference", "interval", "verdict")
    bases = dict.fromkeys(line.basis for line in comparison.lines if line.basis)
    head = f"first: {names[0]}\nsecond: {names[1]}\nintervals by: {', '.join(bases)}"
    return [head, result_table(title, columns, rows), *comparison.remarks]


def round_trip_report(plan: Plan, scores: Scores) -> list[Table | str]:
    """What the round trip scored, and what it did not."""
    total = sum(len(suite.dimensions) for suite in SUITES.values())
    scored = [name for name, line in scores.dimensions.items() if line.score is not None]
    notes = [f"{name}: {note}" for name in scored for note in scores.dimensions[name].notes]
    remarks = [f"plan: {remark}" for remark in plan.remarks]
    last = (
        f"Scored: {', '.join(scored)} ({len(scored)} of {total} dimensions), on "
        f"{len(plan.videos)} videos of {len(plan.rows)} prompts. Not scored: the other "
        f"{total - len(scored)}, whose weights are not here; `eval vbench doctor` says how to get "
        "each. No total is given: a missing dimension is not 0."
    )
    return [score_table(scores, only=scored), *notes, *remarks, last]
