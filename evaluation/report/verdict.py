"""Which model is better, how sure, on what: in one sentence and a few notes."""

import dataclasses
import math
from collections.abc import Sequence

from longtake.evaluation.findings import Findings
from longtake.evaluation.model_comparison import ComparisonSettings
from longtake.evaluation.report.compare_lines import PAIRS, Line, Outcome
from longtake.evaluation.report.compare_vbench import SuiteSides
from longtake.evaluation.report.content import Verdict, Way
from longtake.evaluation.report.score_sets import PEOPLE
from longtake.evaluation.vbench.compare import ROUGH
from longtake.runtime.statistics import holm

_HEADLINES = ("overall", "Total")
_NAMED = 4


def corrected(lines: Sequence[Line], confidence: float, families: int) -> list[Line]:
    """Lines with p-values judged together: Holm's correction over all of them.

    Args:
        lines: of people, judges and blind pairs: one family.
        confidence: of the whole page, in (0, 1).
        families: that share its error rate (Bonferroni), >= 1.
    """
    decided = []
    for line, adjusted in zip(lines, holm([line.p for line in lines]).tolist(), strict=True):
        if math.isnan(adjusted):
            decided.append(line)
            continue
        p = min(1.0, families * adjusted)
        outcome: Outcome = "none"
        if p < 1 - confidence:
            outcome = "first" if line.diff > 0 else "second"
        decided.append(dataclasses.replace(line, p_corrected=p, outcome=outcome))
    return decided


def judge_together(
    tested: Sequence[Line],
    suites: Sequence[SuiteSides],
    settings: ComparisonSettings,
    findings: Findings,
) -> tuple[list[Line], int]:
    """All lines of a page with their verdicts, and the number of families that share its error.

    Args:
        tested: lines of people, judges and pairs, with p-values.
        suites: VBench suites with results of both models.
        settings: confidence of the page, resampling.
        findings: gets what the comparisons of suites remark.
    """
    families = max(1, bool(tested) + 2 * len(suites))
    lines = corrected(tested, settings.confidence, families)
    confidence = 1 - (1 - settings.confidence) / families
    for suite in suites:
        lines += suite.lines(confidence, settings, findings)
    return lines, families


def verdict(lines: Sequence[Line], first: str, second: str, confidence: float) -> Verdict:
    """The answer.

    Args:
        lines: every comparison, with its outcome.
        first: name of the first model.
        second: name of the second model.
        confidence: with which all outcomes hold together.
    """
    judged = [line for line in lines if line.outcome != "unknown"]
    won = [line for line in judged if line.outcome == "first"]
    lost = [line for line in judged if line.outcome == "second"]
    notes = _notes(lines, judged, confidence) if judged else []
    way: Way = "none"
    if not judged:
        sentence = f"{first} and {second} could not be compared: nothing to judge by."
    elif not won and not lost:
        sentence = (
            f"No difference shown between {first} and {second}: none in {_count(len(judged))}."
        )
    elif won and lost:
        way = "mixed"
        sentence = (
            f"Neither model is better throughout: {first} is better on {_named(won)}, "
            f"{second} on {_named(lost)}."
        )
    else:
        way = "first" if won else "second"
        better, worse = (first, second) if won else (second, first)
        wins = won or lost
        rest = len(judged) - len(wins)
        other = f"; no difference shown in the other {_count(rest)}" if rest else ""
        sentence = f"{better} is better than {worse} on {_named(wins)}{other}."
    return Verdict(way=way, sentence=sentence, notes=tuple(notes))


def _notes(lines: Sequence[Line], judged: Sequence[Line], confidence: float) -> list[str]:
    notes = [
        f"How sure: all verdicts of this page hold together with {100 * confidence:g} %. Were the "
        "models equal in everything, a difference would be called in at most "
        f"{100 * (1 - confidence):.3g} % of such studies."
    ]
    for basis in dict.fromkeys(line.basis for line in judged):
        own = [line for line in judged if line.basis == basis]
        main = next((line for line in own if line.dimension in _HEADLINES), own[0])
        what = "pairs" if basis == PAIRS else "shared prompts"
        size = f", {main.n} {what}" if main.n else ""
        notes.append(
            f"On what: {basis}, {_count(len(own))}; {main.dimension}: {difference_text(main)} "
            f"{main.unit}{size}."
        )
    if all(line.outcome == "none" for line in judged):
        notes.append(
            "Not shown is not the same as equal: differences inside these intervals are possible."
        )
    outcomes = {(line.basis, line.dimension): line.outcome for line in judged}
    opposed = [
        line.dimension
        for line in judged
        if line.basis == PEOPLE
        and {line.outcome, outcomes.get((PAIRS, line.dimension))} == {"first", "second"}
    ]
    if opposed:
        notes.append(f"Scores and blind pairs contradict each other on {', '.join(opposed)}.")
    if any(line.remark.startswith(ROUGH) for line in judged):
        notes.append(
            "Published scores come without results of videos: their intervals, and so how sure "
            "those verdicts are, are rough."
        )
    unknown = len(lines) - len(judged)
    if unknown:
        notes.append(f"Without a verdict for lack of data: {_count(unknown)}; see the tables.")
    return notes


def difference_text(line: Line) -> str:
    """The difference with its interval, such as ``+0.12 [-0.03, +0.27]``."""
    if math.isnan(line.diff):
        return "-"
    if math.isnan(line.low) or math.isnan(line.high):
        return f"{line.diff:+.2f} [no interval]"
    return f"{line.diff:+.2f} [{line.low:+.2f}, {line.high:+.2f}]"


def _count(number: int) -> str:
    return f"{number} comparison{'s' * (number != 1)}"


def _named(lines: Sequence[Line]) -> str:
    ranked = sorted(lines, key=lambda line: line.dimension not in _HEADLINES)
    names = [f"{line.dimension} ({line.basis})" for line in ranked[:_NAMED]]
    more = len(lines) - _NAMED
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
