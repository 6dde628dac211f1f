"""Two models on one page: which is better, how sure, on what.

Lines of people, judges and pairs are one family of tests, corrected by Holm; each VBench suite
adds its total and its other lines as two families. Each of K families may err with (1 - c) / K,
so all verdicts of a page hold together with confidence c.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from longtake.evaluation.findings import Findings
from longtake.evaluation.model_comparison import tie_groups
from longtake.evaluation.mos_tables import tie_letter
from longtake.evaluation.report.build import ReportSettings, drawn, finish_report
from longtake.evaluation.report.compare_figure import write_compare_figure
from longtake.evaluation.report.compare_lines import (
    PAIRS,
    Line,
    gsb_lines,
    joint_scores,
    models_left_out,
    score_lines,
    scored_by,
)
from longtake.evaluation.report.compare_sides import Sides, find_sides
from longtake.evaluation.report.compare_vbench import SuiteSides, vbench_sides
from longtake.evaluation.report.content import Block, Figure, Report, Section, TableBlock, Text
from longtake.evaluation.report.sources import SourceList
from longtake.evaluation.report.verdict import difference_text, judge_together, verdict
from longtake.evaluation.report.videos import VIDEO_NOTE, VideoShelf
from longtake.evaluation.tables import Table, table_of
from longtake.runtime.errors import UserError

_NOTE = (
    "n: shared prompts (blind pairs: pairs). Models with a common letter were not told apart "
    "(groups of ties). Corrected p-values count everything that this page compares."
)


def build_comparison(
    first: str,
    second: str,
    page: Path,
    settings: ReportSettings,
    inputs: Sequence[Path] = (),
) -> Report:
    """Compare two models on everything that is known of both.

    Args:
        first: a path with the results of one model, a model of ``inputs``, or a published model.
        second: the same.
        page: where the page will be.
        settings: intervals and videos.
        inputs: files that hold both models, or plans of pairs between them.

    Raises:
        UserError: a model that cannot be found, or nothing that is known of both.
    """
    findings = Findings()
    sides = find_sides(first, second, inputs, findings)
    made = _Comparison(sides, settings, VideoShelf(page, settings.videos), findings)
    sections = made.sections()
    if not made.lines:
        raise UserError(
            "nothing is known of both models",
            received=f"{sides.first.label} and {sides.second.label}"
            + "".join(f"; {finding}" for finding in findings.all()),
            expected="scores by the same kind of rater, blind pairs, or results in one suite",
        )
    report = finish_report(
        f"{sides.first.label} or {sides.second.label}?",
        sections,
        made.sources,
        findings.all(),
        made.shelf,
    )
    confidence = settings.comparison.confidence
    answer = verdict(made.lines, sides.first.label, sides.second.label, confidence)
    return dataclasses.replace(report, verdict=answer)


class _Comparison:
    """Lines and sections of two models."""

    def __init__(
        self, sides: Sides, settings: ReportSettings, shelf: VideoShelf, findings: Findings
    ) -> None:
        self.sides, self.settings, self.shelf, self.findings = sides, settings, shelf, findings
        self.sources = SourceList()
        self.lines: list[Line] = []

    def sections(self) -> list[Section]:
        sides, settings = self.sides, self.settings.comparison
        models_left_out((sides.first, sides.second), self.findings)
        scores = {
            by: joint_scores(sides, by, self.findings) for by in scored_by(sides, self.findings)
        }
        rated: list[Line] = []
        for by, table in scores.items():
            rated += score_lines(table, by, sides, settings, self.findings)
        pairs, counts, pair_files = gsb_lines(sides, settings, self.findings)
        suites = vbench_sides(sides, self.findings)
        self.lines, families = judge_together([*rated, *pairs], suites, settings, self.findings)
        made = [self._basis(by, self._score_files(by)) for by in scores]
        if counts:
            made.append(self._basis(PAIRS, pair_files, table_of("counts", "Counts", counts)))
        made += [self._suite(suite) for suite in suites]
        made += [section for by, table in scores.items() for section in self._videos(by, table)]
        return [*self._overview(families), *made]

    def _overview(self, families: int) -> list[Section]:
        if all(math.isnan(line.diff) for line in self.lines):
            return []
        names = self.sides.first.label, self.sides.second.label
        figure = Figure(
            name="comparison.png",
            png=drawn(lambda path: write_compare_figure(self.lines, *names, path)),
            caption="Differences with their intervals",
        )
        text = (
            f"Intervals of people, judges and pairs: {100 * self.settings.comparison.confidence:g} "
            "% each, by bootstrap of prompts; their verdicts: p-values after Holm's correction "
            "over all of these lines. VBench: the total, and the other lines together, by "
            f"intervals. Families that share the error rate of the page: {families}."
        )
        return [Section(title="All differences", blocks=(figure, Text(text=text)))]

    def _score_files(self, by: str) -> list[Path]:
        both = (self.sides.first, self.sides.second)
        return [path for side in both for item in side.scores_by(by) for path in item.files]

    def _basis(self, basis: str, files: Sequence[Path], *details: Table) -> Section:
        where = self.sources.numbers(files)
        own = [line for line in self.lines if line.basis == basis]
        blocks: list[Block] = [TableBlock(table=self._table(own), sources=where)]
        blocks += [TableBlock(table=table, sources=where, detail=True) for table in details]
        return Section(title=f"By {basis}" if basis != PAIRS else "Blind pairs", blocks=(*blocks,))

    def _suite(self, suite: SuiteSides) -> Section:
        return self._basis(suite.suite.title, suite.files)

    def _table(self, lines: Sequence[Line]) -> Table:
        first, second = self.sides.first.label, self.sides.second.label
        has_p = not all(math.isnan(line.p) for line in lines)
        has_remark = any(line.remark for line in lines)
        unit = lines[0].unit if lines else ""
        return Table(
            name="differences",
            title=f"{first} minus {second}, {unit}",
            columns=(
                *("dimension", first, second, f"difference, {unit}", "n"),
                *(("p", "p corrected") if has_p else ()),
                *(("verdict", "remark") if has_remark else ("verdict",)),
            ),
            rows=tuple(
                (
                    *(line.dimension, *self._cells(line), difference_text(line), line.n),
                    *((line.p, line.p_corrected) if has_p else ()),
                    *((self._words(line), line.remark) if has_remark else (self._words(line),)),
                )
                for line in lines
            ),
            note=_NOTE,
        )

    def _words(self, line: Line) -> str:
        better = {"first": self.sides.first.label, "second": self.sides.second.label}
        if line.outcome in better:
            return f"{better[line.outcome]} is better"
        return "no difference shown" if line.outcome == "none" else "not known"

    def _cells(self, line: Line) -> tuple[str, str]:
        """What is known of both models, with the letters of their groups of ties."""
        if line.outcome == "unknown":
            return line.first, line.second
        ranked = ["first", "second"] if line.diff >= 0 else ["second", "first"]
        apart = [] if line.outcome == "none" else [frozenset(ranked)]
        letter = {
            name: tie_letter(index)
            for index, group in enumerate(tie_groups(ranked, apart))
            for name in group
        }
        return f"{line.first} {letter['first']}", f"{line.second} {letter['second']}"

    def _videos(self, by: str, table: pd.DataFrame) -> list[Section]:
        both = {"first": self.sides.first, "second": self.sides.second}
        labels = {name: side.label for name, side in both.items()}
        lists = {
            side.label: item.samples
            for side in both.values()
            for item in side.scores_by(by)
            if item.samples is not None
        }
        renamed = table.assign(model=table["model"].map(labels))
        models = {side.label: side.model for side in both.values()}
        rows = self.shelf.rows(renamed, lists, models)
        blocks: tuple[Block, ...] = (Text(text=VIDEO_NOTE), *rows)
        return [Section(title=f"Videos, scored by {by}", blocks=blocks)] if rows else []
