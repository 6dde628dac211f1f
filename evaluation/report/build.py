"""The report of everything that the inputs hold: one section for each study and result."""

import datetime
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec

from longtake import __version__
from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.gsb import ANSWER_LOG, GsbResult
from longtake.evaluation.gsb_figure import write_gsb_figure
from longtake.evaluation.gsb_files import gsb_from_files
from longtake.evaluation.gsb_plan import KEY_FILE
from longtake.evaluation.gsb_tables import gsb_tables
from longtake.evaluation.model_comparison import ComparisonSettings, compare_models
from longtake.evaluation.mos import MosResult, MosSettings
from longtake.evaluation.mos_figure import write_mos_figure
from longtake.evaluation.mos_files import mos_from_files
from longtake.evaluation.mos_tables import mos_tables
from longtake.evaluation.report.content import Block, Figure, Report, Section, TableBlock, Text
from longtake.evaluation.report.inputs import Inputs, Study, find_inputs
from longtake.evaluation.report.score_sets import (
    PEOPLE,
    ScoreSet,
    one_line,
    rated_dimensions,
    read_score_sets,
)
from longtake.evaluation.report.sources import SourceList
from longtake.evaluation.report.stored_results import SHOWN_AT_ONCE, stored_section
from longtake.evaluation.report.vbench_sections import scores_section, vbench_section
from longtake.evaluation.report.videos import VIDEO_NOTE, VideoSettings, VideoShelf
from longtake.evaluation.tables import Table, table_of
from longtake.runtime.errors import UserError

_P = ParamSpec("_P")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSettings:
    """How a report is made."""

    comparison: ComparisonSettings = field(default_factory=ComparisonSettings)
    """Intervals and tests."""
    videos: VideoSettings = field(default_factory=VideoSettings)
    """How many videos, and how large."""


def build_report(
    inputs: Sequence[Path], page: Path, settings: ReportSettings, title: str = "Evaluation"
) -> Report:
    """Everything that files and folders hold.

    Args:
        inputs: see :func:`longtake.evaluation.report.inputs.find_inputs`.
        page: where the page will be; links to large videos are relative to it.
        settings: intervals and videos.
        title: heading.

    Raises:
        UserError: an input that does not exist, or inputs without anything to report.
    """
    found = find_inputs(inputs)
    builder = _Builder(found, VideoShelf(page, settings.videos), settings)
    sections = builder.sections()
    if not sections:
        raise UserError(
            "nothing in the inputs can be reported",
            received=", ".join(map(str, inputs))
            + "".join(f"; {finding}" for finding in builder.findings.all()),
            expected="ratings, a plan of pairs with answers, VBench results, or written results",
        )
    return finish_report(title, sections, builder.sources, builder.findings.all(), builder.shelf)


def finish_report(
    title: str,
    sections: Sequence[Section],
    sources: SourceList,
    findings: Sequence[Finding],
    shelf: VideoShelf,
) -> Report:
    """A report of sections; where videos are linked, it says which folders belong to it."""
    ending = []
    if shelf.linked:
        text = (
            f"Linked videos are not in this page. Keep these folders where they are, relative to "
            f"the page: {', '.join(sorted(shelf.linked))}."
        )
        ending.append(Section(title="Linked videos", blocks=(Text(text=text),)))
    return Report(
        title=title,
        version=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        sections=(*sections, *ending),
        sources=sources.all(),
        findings=tuple(dict.fromkeys(findings)),
    )


class _Builder:
    """Makes the sections; what cannot be made becomes a finding."""

    def __init__(self, found: Inputs, shelf: VideoShelf, settings: ReportSettings) -> None:
        self.found, self.shelf, self.settings = found, shelf, settings
        self.findings = Findings(found.findings)
        self.sources = SourceList()

    def sections(self) -> list[Section]:
        made: list[Section] = []
        for number, study in enumerate(self.found.studies, start=1):
            made += self._study(study, number)
        for number, plan in enumerate(self.found.plans, start=1):
            made += self._attempt(plan, self._gsb, plan, number)
        for item in self.found.vbench:
            comparison = self.settings.comparison
            made += self._attempt(item.path, vbench_section, item, self.sources, comparison)
        for path in self.found.scores:
            made += self._attempt(path, scores_section, path, self.sources)
        for number, path in enumerate(self.found.results, start=1):
            made += self._attempt(path, stored_section, path, self.sources, self.findings, number)
        return made

    def _attempt(
        self, path: Path, make: Callable[_P, Section], *args: _P.args, **kwargs: _P.kwargs
    ) -> list[Section]:
        """The section, or none and a finding about ``path``."""
        try:
            return [make(*args, **kwargs)]
        except UserError as error:
            self.findings.add(
                "input that cannot be used", "no section", [f"{path}: {one_line(error)}"]
            )
            return []

    def _study(self, study: Study, number: int) -> list[Section]:
        sets, irregular = read_score_sets(study)
        made: list[Section] = []
        for item in sets:
            if item.by == PEOPLE:
                made += self._attempt(study.ratings[0], self._mos, study, item, number)
            else:
                made.append(self._judge(item))
        for finding in irregular:
            self.findings.add(finding.kind, finding.effect, finding.items)
        return made

    def _mos(self, study: Study, scores: ScoreSet, number: int) -> Section:
        result = self._mos_result(study)
        for finding in result.findings:
            self.findings.add(finding.kind, finding.effect, finding.items)
        where = self.sources.numbers(scores.files)
        if result.merged:
            where = (*where, *self.sources.numbers(study.automatic))
        figure = Figure(
            name=f"mos-{number}.png",
            png=drawn(lambda path: write_mos_figure(result, path)),
            caption="Mean opinion scores with intervals",
        )
        blocks: list[Block] = [
            _tables(mos_tables(result)[:1], where)[0],
            figure,
            *_tables(mos_tables(result)[1:], where),
            *self._videos(scores, result.models),
        ]
        text = f"{result.n_ratings} ratings used, {result.set_aside} set aside (see the findings)."
        return Section(title="Mean opinion scores", blocks=(Text(text=text), *blocks))

    def _mos_result(self, study: Study) -> MosResult:
        """Merged with the judge where there is one that is calibrated."""
        settings = MosSettings(
            dimensions=rated_dimensions(study.ratings), comparison=self.settings.comparison
        )
        if len(study.automatic) == 1:
            try:
                return mos_from_files(
                    study.ratings, settings, samples=study.samples, automatic=study.automatic[0]
                )
            except UserError as error:
                self.findings.add(
                    "scores of a judge", "not merged with those of people", [one_line(error)]
                )
        elif study.automatic:
            self.findings.add(
                "several files of judges",
                "none is merged with the scores of people",
                map(str, study.automatic),
            )
        return mos_from_files(study.ratings, settings, samples=study.samples)

    def _judge(self, scores: ScoreSet) -> Section:
        where = self.sources.numbers(scores.files)
        result = compare_models(scores.table, scores.dimensions, self.settings.comparison)
        level = f"{100 * self.settings.comparison.confidence:g} %"
        tables = (
            table_of("means", "Means", result.means, f"{level} intervals, prompts drawn."),
            table_of(
                "differences",
                "Differences, paired by prompt",
                result.differences,
                f"{level} intervals; p_holm: corrected for all rows.",
            ),
        )
        return Section(
            title=f"Automatic scores by {scores.by}",
            blocks=(
                *(TableBlock(table=table, sources=where) for table in tables),
                *self._videos(scores, scores.models),
            ),
        )

    def _videos(self, scores: ScoreSet, models: Sequence[str]) -> Sequence[Block]:
        if scores.samples is None:
            return ()
        lists = dict.fromkeys(models, scores.samples)
        rows = self.shelf.rows(scores.table, lists, {model: model for model in models})
        return (Text(text=f"Videos. {VIDEO_NOTE}"), *rows) if rows else ()

    def _gsb(self, plan: Path, number: int) -> Section:
        log = plan / ANSWER_LOG
        result = read_gsb(plan, self.settings.comparison)
        for finding in result.findings:
            self.findings.add(finding.kind, finding.effect, finding.items)
        where = self.sources.numbers([plan / KEY_FILE, log])
        figure = Figure(
            name=f"gsb-{number}.png",
            png=drawn(lambda path: write_gsb_figure(result, path)),
            caption="Good, same, bad and the net preference with its interval",
        )
        tables = _tables(gsb_tables(result), where)
        text = f"{result.n_answers} answers used, {result.set_aside} set aside (see the findings)."
        return Section(
            title=f"Good - same - bad: {plan.name}",
            blocks=(Text(text=text), tables[0], figure, *tables[1:]),
        )


def read_gsb(plan: Path, settings: ComparisonSettings) -> GsbResult:
    """The result of the answers in a plan's own log.

    Raises:
        UserError: no answers, or a damaged key.
    """
    log = plan / ANSWER_LOG
    return gsb_from_files(plan, [log], rated_dimensions([log]), settings)


def drawn(draw: Callable[[Path], Path]) -> bytes:
    """The picture that a function writes to a path."""
    with tempfile.TemporaryDirectory() as folder:
        return draw(Path(folder) / "figure.png").read_bytes()


def _tables(tables: Sequence[Table], sources: tuple[int, ...]) -> list[TableBlock]:
    """Tables with rows; the findings have a place of their own."""
    return [
        TableBlock(table=table, sources=sources, detail=table.name not in SHOWN_AT_ONCE)
        for table in tables
        if table.rows and table.name != "findings"
    ]
