"""VBench lines of a comparison: category scores and dimensions of both models."""

from pathlib import Path

from longtake.evaluation.findings import Findings
from longtake.evaluation.model_comparison import ComparisonSettings
from longtake.evaluation.report.compare_lines import Line, Outcome
from longtake.evaluation.report.compare_sides import Side, Sides
from longtake.evaluation.report.score_sets import one_line
from longtake.evaluation.report.vbench_sections import planned
from longtake.evaluation.tables import interval_text
from longtake.evaluation.vbench.aggregate import aggregate
from longtake.evaluation.vbench.bootstrap import Spread, prompt_of
from longtake.evaluation.vbench.compare import Comparison, Difference, compare
from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.published import PublishedModel
from longtake.evaluation.vbench.result_files import ResultSet, read_results
from longtake.evaluation.vbench.suites import SUITES, Suite
from longtake.runtime.errors import UserError

Results = ResultSet | PublishedModel
_OUTCOMES: dict[str, Outcome] = {
    "first is better": "first",
    "second is better": "second",
    "not separable": "none",
}


class SuiteSides:
    """Results of both models in one suite.

    Args:
        suite: which suite.
        first: results or published scores.
        second: the same.
        plan: videos that should have results.
        files: that the results come from.
    """

    def __init__(
        self, suite: Suite, first: Results, second: Results, plan: Plan | None, files: list[Path]
    ) -> None:
        self.suite, self.plan, self.files = suite, plan, files
        self.first, self.second = first, second

    def lines(
        self, confidence: float, settings: ComparisonSettings, findings: Findings
    ) -> list[Line]:
        """One line for each dimension, category and the total.

        Args:
            confidence: of the total, and of all other lines together.
            settings: resampling.
            findings: gets what the comparison remarks.
        """
        result = compare(
            self.suite,
            self.first,
            self.second,
            self.plan,
            confidence=confidence,
            resamples=settings.resamples,
            seed=settings.seed,
        )
        findings.add(self.suite.title, "see its lines", result.remarks)
        shown = [_shown(side, self.plan, settings) for side in (self.first, self.second)]
        return [
            self._line(line, result, *(texts.get(line.name, "-") for texts in shown))
            for line in result.lines
        ]

    def _line(self, line: Difference, result: Comparison, first: str, second: str) -> Line:
        missing = float("nan")
        has_ends = line.low is not None and line.high is not None
        family = 1 if line.name == "Total" else result.family
        level = 100 * (1 - (1 - result.confidence) / max(family, 1))
        diff = line.difference
        return Line(
            basis=self.suite.title,
            dimension=line.name,
            first=first,
            second=second,
            diff=missing if diff is None else 100 * diff,
            low=100 * line.low if line.low is not None else missing,
            high=100 * line.high if line.high is not None else missing,
            unit="percent",
            n=self._shared_prompts(line.name),
            outcome=_OUTCOMES.get(line.verdict, "unknown"),
            remark=f"{line.basis}, {level:.4g} % interval" if has_ends else line.basis,
        )

    def _shared_prompts(self, name: str) -> int:
        """Prompts of a dimension with results of both; of a category, of all its dimensions."""
        members = [d.name for c in self.suite.categories if c.name == name for d in c.dimensions]
        if name == "Total":
            members = list(self.suite.dimensions)
        return sum(
            len(_prompts(self.first, member) & _prompts(self.second, member))
            for member in members or [name]
        )


def _prompts(side: Results, dimension: str) -> set[str]:
    if isinstance(side, PublishedModel) or dimension not in side.dimensions:
        return set()
    return {prompt_of(video) for video in side.dimensions[dimension].applicable}


def _shown(side: Results, plan: Plan | None, settings: ComparisonSettings) -> dict[str, str]:
    """The scores of one model in percent, with their own 95 % intervals and videos."""
    if isinstance(side, PublishedModel):
        known = {**side.dimensions, **side.categories}
        return {name: f"{100 * score:.2f} [published]" for name, score in known.items()}
    scores = aggregate(
        side, plan, allow_incomplete=True, resamples=settings.resamples, seed=settings.seed
    )
    return {
        name: f"{_score_text(line.score, line.interval)} n={line.videos}"
        for name, line in {**scores.dimensions, **scores.categories}.items()
        if line.score is not None
    }


def _score_text(score: float, interval: Spread | None) -> str:
    """A score in percent with its interval."""
    missing = float("nan")
    low, high = (missing, missing) if interval is None else (interval.low, interval.high)
    return interval_text(100 * score, 100 * low, 100 * high)


def vbench_sides(sides: Sides, findings: Findings) -> list[SuiteSides]:
    """The suites in which both models have results."""
    found = []
    for suite in SUITES.values():
        both = [_results(suite, side, findings) for side in (sides.first, sides.second)]
        (first, plan, files), (second, other_plan, other_files) = both
        if first is not None and second is not None:
            plan = plan or other_plan
            found.append(SuiteSides(suite, first, second, plan, [*files, *other_files]))
        elif first is not None or second is not None:
            label = sides.first.label if second is None else sides.second.label
            findings.add(
                "suite with results of one model only", "not compared", [f"{suite.title}: {label}"]
            )
    return found


def _results(
    suite: Suite, side: Side, findings: Findings
) -> tuple[Results | None, Plan | None, list[Path]]:
    inputs = side.vbench(suite.name)
    if len(inputs) > 1:
        paths = ", ".join(str(item.path) for item in inputs)
        findings.add("several results of one model", "not compared", [f"{side.label}: {paths}"])
        return None, None, []
    if not inputs:
        rows = dict(side.published)
        return rows.get(suite.name), None, []
    try:
        found = read_results(suite, inputs[0].path)
        return found, planned(inputs[0]), list(inputs[0].files)
    except UserError as error:
        findings.add("results that cannot be used", "not compared", [one_line(error)])
        return None, None, []
