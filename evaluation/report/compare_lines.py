"""One model against another, line by line: what people, judges and blind pairs say of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from longtake.evaluation.findings import Findings
from longtake.evaluation.gsb import ANSWER_LOG, GsbCount, gsb_ratio
from longtake.evaluation.gsb_plan import KEY_FILE
from longtake.evaluation.model_comparison import (
    ComparisonSettings,
    ModelComparison,
    compare_models,
)
from longtake.evaluation.report.build import read_gsb
from longtake.evaluation.report.compare_sides import Side, Sides
from longtake.evaluation.report.score_sets import PEOPLE, one_line
from longtake.evaluation.tables import interval_text
from longtake.runtime.errors import UserError

Outcome = Literal["first", "second", "none", "unknown"]
"""Which model is better; `none`: no difference shown; `unknown`: nothing to judge by."""
PAIRS = "blind pairs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One comparison; differences are first minus second."""

    basis: str
    """``people``, a judge, ``blind pairs``, or a suite."""
    dimension: str
    first: str
    """What is known of the first model, with its interval and n."""
    second: str
    diff: float
    """NaN when one side has no score."""
    low: float
    """Lower end of the interval of the difference; NaN without one."""
    high: float
    """Upper end."""
    unit: str
    """Of the difference."""
    n: int
    """Shared prompts, or pairs."""
    p: float = math.nan
    """Before correction; NaN where only intervals are known."""
    p_corrected: float = math.nan
    """Corrected for everything that the page compares."""
    outcome: Outcome = "unknown"
    remark: str = ""
    """What the interval stands on, or why there is none."""


def scored_by(sides: Sides, findings: Findings) -> tuple[str, ...]:
    """People first, then judges, who scored both models; a judge of one model is a finding."""
    both = [
        {item.by for item in side.evidence.scores if side.model in item.models}
        for side in (sides.first, sides.second)
    ]
    alone = {sides.first.label: both[0] - both[1], sides.second.label: both[1] - both[0]}
    findings.add(
        "scores of one model only",
        "not compared",
        [f"{label} by {by}" for label, kinds in alone.items() for by in sorted(kinds)],
    )
    shared = both[0] & both[1]
    return (*([PEOPLE] if PEOPLE in shared else []), *sorted(shared - {PEOPLE}))


def joint_scores(sides: Sides, by: str, findings: Findings) -> pd.DataFrame:
    """Scores of both models by people or a judge, with models ``first`` and ``second``."""
    first, second = sides.first.scores_by(by), sides.second.scores_by(by)
    parts = []
    if first == second and sides.first.model != sides.second.model:
        # One study of both: its order of rows gives the draws, and so the numbers, of its report.
        names = {sides.first.model: "first", sides.second.model: "second"}
        for item in first:
            named = item.table["model"].map(names)
            parts.append(item.table.assign(model=named)[named.notna()])
    else:
        for name, side, sets in (("first", sides.first, first), ("second", sides.second, second)):
            for item in sets:
                parts.append(item.table[item.table["model"] == side.model].assign(model=name))
    raters = [frozenset().union(*(item.raters for item in sets)) for sets in (first, second)]
    table = pd.concat(parts, ignore_index=True)
    if by == PEOPLE and not raters[0] & raters[1]:
        findings.add(
            "no rater in common",
            "compared all the same; strict raters cannot be told from a bad model",
            [f"{sides.first.label} and {sides.second.label}"],
        )
    cluster = table.groupby("prompt")["cluster"].transform("first")
    mixed = table.loc[table["cluster"] != cluster, "prompt"].unique()
    findings.add("prompt in two clusters", "the first one is used", map(str, mixed))
    return table.assign(cluster=cluster)


def score_lines(
    table: pd.DataFrame, by: str, sides: Sides, settings: ComparisonSettings, findings: Findings
) -> list[Line]:
    """One line for each dimension, not corrected yet.

    Args:
        table: of :func:`joint_scores`.
        by: ``people`` or a judge.
        sides: both models.
        settings: intervals and tests.
        findings: gets dimensions and prompts of one model only.
    """
    names = list(dict.fromkeys(table["dimension"]))
    seen = table.groupby("dimension")["model"].nunique()
    findings.add(
        "dimension with scores of one model only",
        "not compared",
        [f"{name} ({by})" for name in names if seen[name] < 2],
    )
    prompts = table.groupby("prompt")["model"].agg(["nunique", "first"])
    single = prompts[prompts["nunique"] < 2]["first"]
    labels = {"first": sides.first.label, "second": sides.second.label}
    findings.add(
        "prompt of one model only",
        "not in the difference",
        [f"{prompt} ({labels[model]}, {by})" for prompt, model in single.items()],
    )
    wanted = [name for name in names if seen[name] == 2]
    result = compare_models(table, wanted, settings)
    return [_score_line(result, dimension, by) for dimension in wanted]


def _score_line(result: ModelComparison, dimension: str, by: str) -> Line:
    (found,) = (item for item in result.differences if item.dimension == dimension)
    sign = 1.0 if found.better == "first" else -1.0
    ends = sorted((sign * found.ci_low, sign * found.ci_high))
    cells = []
    for model in ("first", "second"):
        c = result.mean_of(dimension, model)
        cells.append(f"{interval_text(c.mean, c.ci_low, c.ci_high)} n={c.n_samples}")
    return Line(
        basis=by,
        dimension=dimension,
        first=cells[0],
        second=cells[1],
        diff=sign * found.diff,
        low=ends[0],
        high=ends[1],
        unit="points",
        n=found.n_prompts,
        p=found.p,
        remark="" if found.n_clusters >= 2 else "fewer than two shared prompts",
    )


def gsb_lines(
    sides: Sides, settings: ComparisonSettings, findings: Findings
) -> tuple[list[Line], list[GsbCount], list[Path]]:
    """Lines of blind pairs (not corrected yet), their counts (reference first), and their files.

    Plans without pairs of the two models, and plans that cannot be used, become findings.
    """
    counts: list[GsbCount] = []
    files: list[Path] = []
    first, second = sides.first, sides.second
    for plan in sides.plans:
        try:
            result = read_gsb(plan, settings)
        except UserError as error:
            findings.add("plan that cannot be used", "not compared", [f"{plan}: {one_line(error)}"])
            continue
        for finding in result.findings:
            findings.add(finding.kind, finding.effect, finding.items)
        own = [c for c in result.counts if {c.reference, c.rival} == {first.model, second.model}]
        counts += [c if c.reference == first.model else swapped(c) for c in own]
        if own:
            files += [plan / KEY_FILE, plan / ANSWER_LOG]
        else:
            findings.add("plan without pairs of the two models", "not compared", [str(plan)])
    return [gsb_line(count) for count in counts], counts, files


def swapped(count: GsbCount) -> GsbCount:
    """The same count with the rival as reference."""
    return GsbCount(
        dimension=count.dimension,
        reference=count.rival,
        rival=count.reference,
        good=count.bad,
        same=count.same,
        bad=count.good,
        n_prompts=count.n_prompts,
        net=-count.net,
        net_low=-count.net_high,
        net_high=-count.net_low,
        ratio=gsb_ratio(count.bad, count.same, count.good),
        win_share=1 - count.win_share,
        share_low=1 - count.share_high,
        share_high=1 - count.share_low,
        p=count.p,
        test=count.test,
        p_holm=count.p_holm,
        different=count.different,
    )


def gsb_line(count: GsbCount) -> Line:
    """One line of blind pairs, not corrected yet; the reference is the first model."""
    total = count.good + count.same + count.bad
    return Line(
        basis=PAIRS,
        dimension=count.dimension,
        first=f"G {count.good} of {total}",
        second=f"B {count.bad} of {total}",
        diff=100 * count.net,
        low=100 * count.net_low,
        high=100 * count.net_high,
        unit="net %",
        n=total,
        p=count.p,
        remark=f"S {count.same}; {count.test}",
    )


def models_left_out(sides: Sequence[Side], findings: Findings) -> None:
    """Name the models of the inputs that are not compared, and files without one of the two."""
    compared = {side.model for side in sides}
    others = {m for side in sides for m in side.evidence.models} - compared
    findings.add("other model in the inputs", "not compared", sorted(others))
    findings.add(
        "model that is not in a file",
        "nothing from there",
        dict.fromkeys(
            f"{side.label}: {', '.join(map(str, item.files))}"
            for side in sides
            for item in side.evidence.scores
            if side.model not in item.models
        ),
    )
