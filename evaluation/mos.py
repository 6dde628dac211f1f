"""Mean opinion scores: from the files of a study to models, differences, raters and agreement.

Report section 5.1 and Figures 14 and 16: a video's score is the mean of all of its ratings, a
model's score the mean over its videos. With the scores of a judge, the final score of a model is
the weighted (2:1) average of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from longtake.evaluation.agreement import (
    Agreement,
    alternating_projection,
    krippendorff_alpha,
    rest_correlations,
)
from longtake.evaluation.checks import CheckSettings, RaterRules, RatingTable, check_ratings
from longtake.evaluation.comparison import ComparisonSettings, compare_models
from longtake.evaluation.dimensions import title_of
from longtake.evaluation.mos_merge import (
    MERGED_COLUMNS,
    MergeWeights,
    check_judge,
    merge_scores,
    merged_table,
)
from longtake.evaluation.protocol import (
    ASSESSED,
    ProtocolConfig,
    ProtocolStatus,
    Unit,
    assess,
    protocol_status,
)
from longtake.evaluation.ratings import (
    Finding,
    Findings,
    SampleList,
    read_ratings,
    read_samples,
)
from longtake.evaluation.tables import (
    Table,
    agreement_table,
    findings_table,
    interval_text,
    record_of,
    rows_of,
    table_of_rows,
)
from longtake.runtime.config import Config
from longtake.runtime.errors import UserError


class MosSettings(Config):
    """How ratings become scores."""

    dimensions: tuple[str, ...]
    """The dimensions of the study, in the order of the result."""
    protocol: ProtocolConfig = ProtocolConfig()
    comparison: ComparisonSettings = ComparisonSettings()
    weights: MergeWeights = MergeWeights()
    rules: RaterRules = RaterRules()


@dataclass(frozen=True, kw_only=True)
class MosResult:
    """Everything a report of a MOS study needs; NaN stands for missing."""

    means: pd.DataFrame
    """As of :func:`compare_models`, and ``bias_free``: mean ITU-T P.910 quality, a diagnostic."""
    differences: pd.DataFrame
    """As of :func:`compare_models`."""
    agreement: Mapping[str, Agreement]
    """Krippendorff's alpha by dimension."""
    raters: pd.DataFrame
    """rater, dimension, n_ratings, mean, bias, inconsistency (both ITU-T P.910), rest_correlation
    (with the mean of the others on the same videos)."""
    protocol: ProtocolStatus
    merged: pd.DataFrame
    """dimension, model, human, automatic, merged, ci_low, ci_high, n_human, n_automatic, refused
    (why there is no merged score); without rows when no judge is merged in."""
    findings: tuple[Finding, ...]
    settings: MosSettings
    models: tuple[str, ...]
    """In the order of the list of samples; without one by name."""
    n_ratings: int
    set_aside: int
    """Ratings received and not used; the findings say why."""

    def as_record(self) -> dict[str, object]:
        """JSON-ready but for NaN."""
        return {"kind": "mos", **record_of(self)}


def mos_from_files(
    ratings: Sequence[Path],
    settings: MosSettings,
    *,
    samples: Path | None = None,
    automatic: Path | None = None,
) -> MosResult:
    """Read, check and aggregate logs or sheets, in the order in which they were made.

    Without ``samples`` the ratings must name model and prompt. ``automatic`` holds the scores of a
    calibrated judge, which are merged in.
    """
    listed = read_samples(samples) if samples is not None else None
    people, irregular = read_ratings(ratings, settings.dimensions)
    # A judge among the raters would count as a person in every mean, and twice once merged in.
    scored = [rating for rating in people if rating.kind != "human"]
    if scored:
        raise UserError(
            f"{len(scored)} records among the human ratings are automatic",
            received=str(scored[0]),
            expected="records of people",
            remedy="keep the judge's scores in a file of their own and give it with --automatic",
        )
    if listed is not None:
        irregular = (*listed.findings, *irregular)
    checks = CheckSettings(dimensions=settings.dimensions, rules=settings.rules)
    table = check_ratings(people, checks, listed, irregular)
    judge = None
    if automatic is not None:
        scores, irregular = read_ratings([automatic], settings.dimensions)
        check_judge(scores)
        # Calibrated to the raters' scale, but an expectation over it: not a whole number.
        of_judge = CheckSettings(dimensions=settings.dimensions, whole=False)
        judge = check_ratings(scores, of_judge, earlier=irregular)
    return aggregate_mos(table, settings, samples=listed, automatic=judge)


def video_scores(ratings: pd.DataFrame) -> pd.DataFrame:
    """One row for each video and dimension: the mean of all of its ratings.

    Takes the table of :class:`longtake.evaluation.checks.RatingTable`; returns the columns
    dimension, model, prompt, cluster, sample, score, n_ratings.
    """
    # Videos weigh the same whether three or five rated them (report section 5.1).
    keys = ["dimension", "model", "prompt", "cluster", "sample"]
    grouped = ratings.groupby(keys, sort=False)["score"]
    return grouped.agg(score="mean", n_ratings="size").reset_index()


def aggregate_mos(
    ratings: RatingTable,
    settings: MosSettings,
    *,
    samples: SampleList | None = None,
    automatic: RatingTable | None = None,
) -> MosResult:
    """Aggregate checked ratings; ``automatic`` are those of one calibrated judge."""
    table = ratings.table
    scores = video_scores(table)
    findings = Findings(ratings.findings)
    rated = scores.groupby(["model", "prompt"], sort=False).size().unstack(fill_value=0)
    findings.add(
        "model without a rated video of a prompt",
        "differences use the prompts that both models have",
        [f"{m}: {p}" for m, row in rated.iterrows() for p in rated.columns[row == 0]],
    )
    means, differences = compare_models(scores, settings.dimensions, settings.comparison)
    listed = samples.models if samples is not None else ()
    seen = set(scores["model"])
    models = tuple([m for m in listed if m in seen] + sorted(seen - set(listed)))
    agreement: dict[str, Agreement] = {}
    profiles, bias_free = [], {}
    for dimension in settings.dimensions:
        part = table[table["dimension"] == dimension]
        if part.empty:
            findings.add("dimension without a rating", "no result", [dimension])
            continue
        score = part["score"].to_numpy(dtype=np.float64)
        rater, sample, cluster = (
            pd.factorize(part[name])[0] for name in ("rater", "sample", "cluster")
        )
        agreement[dimension] = krippendorff_alpha(
            score,
            sample,
            cluster,
            confidence=settings.comparison.confidence,
            seed=settings.comparison.seed,
        )
        # By dimension: a rater can be strict about motion and generous about pictures.
        fit = alternating_projection(score, rater, sample)
        if not fit.converged:
            findings.add("rater biases that did not settle", "shown as they are", [dimension])
        # In the order of their first rating, as factorize numbers the raters of the fit.
        own = part.groupby("rater", sort=False)["score"].agg(n_ratings="size", mean="mean")
        own.insert(0, "dimension", dimension)
        rest = rest_correlations(score, rater, sample)
        noise = {"bias": fit.bias, "inconsistency": fit.inconsistency, "rest_correlation": rest}
        profiles.append(own.assign(**noise).reset_index())
        model_of = part.drop_duplicates("sample")["model"].to_numpy()
        for model, quality in pd.Series(fit.quality).groupby(model_of).mean().items():
            bias_free[dimension, model] = quality
    means["bias_free"] = [
        bias_free.get(key, np.nan) for key in zip(means["dimension"], means["model"], strict=True)
    ]
    merged = pd.DataFrame(columns=list(MERGED_COLUMNS))
    if automatic is not None:
        merged, remarks = merge_scores(
            scores,
            video_scores(automatic.table),
            models,
            settings.dimensions,
            settings.weights,
            settings.comparison,
        )
        findings = Findings((*findings, *automatic.findings, *remarks))
    rows = table[ASSESSED].itertuples(index=False, name=None)
    ids = samples.by_id if samples is not None else ()
    units = assess(rows, settings.dimensions, settings.protocol, ids)
    _report_protocol(units, settings.protocol, findings)
    return MosResult(
        means=means,
        differences=differences,
        agreement=agreement,
        raters=pd.concat(profiles, ignore_index=True),
        protocol=protocol_status(units, settings.protocol),
        merged=merged,
        findings=tuple(findings),
        settings=settings,
        models=models,
        n_ratings=len(table),
        set_aside=ratings.set_aside,
    )


def _report_protocol(units: Sequence[Unit], config: ProtocolConfig, findings: Findings) -> None:
    few, many = [], []
    for unit in units:
        name = unit.sample if config.scope == "video" else f"{unit.sample}, {unit.dimensions[0]}"
        done, begun = len(unit.complete), len(unit.partial)
        if unit.needed and done + begun:
            few.append(f"{name}: {done} complete, {begun} partial, {unit.needed} to come")
        if unit.surplus:
            many.append(f"{name}: {unit.surplus} more")
    findings.add(
        "video with fewer raters than the protocol asks", "the ratings it has are used", few
    )
    findings.add("video with more raters than the protocol asks", "all ratings are used", many)


def mos_tables(result: MosResult) -> tuple[Table, ...]:
    """Every table of the study; the first one is the overview."""
    agreement = agreement_table(
        result.agreement, ("n_videos", "n_ratings"), "ordinal; interval by bootstrap of prompts"
    )
    tables = [
        _overview(result),
        Table(name="means", title="Means", frame=result.means),
        _comparisons(result.differences),
        Table(name="differences", title="Differences", frame=result.differences),
        agreement,
        Table(name="raters", title="Raters", frame=result.raters),
        _protocol(result),
    ]
    if not result.merged.empty:
        tables += [
            merged_table(result.merged, result.settings.weights),
            Table(name="merged", title="Merged", frame=result.merged),
        ]
    return (*tables, findings_table(result.findings))


def _overview(result: MosResult) -> Table:
    """Models by dimensions: mean, interval, and the number of videos."""
    names, means = result.settings.dimensions, result.means
    texts = [interval_text(c.mean, c.ci_low, c.ci_high) for c in rows_of(means)]
    frame = means.assign(text=texts).pivot(index="model", columns="dimension", values="text")
    frame = frame.loc[list(result.models), list(names)].rename(columns=title_of).reset_index()
    sizes = means.groupby("model")["n_samples"].agg(["min", "max"]).loc[list(result.models)]
    frame["n"] = ["-".join(map(str, dict.fromkeys(ends))) for ends in sizes.itertuples(index=False)]
    confidence = f"{100 * result.settings.comparison.confidence:g} %"
    return Table(
        name="overview",
        title="Mean opinion scores",
        frame=frame,
        note=f"Mean and {confidence} interval (bootstrap, prompts drawn); n videos.",
    )


def _comparisons(differences: pd.DataFrame) -> Table:
    """The differences, short enough for a terminal."""
    rows = [
        (
            d.dimension,
            f"{d.better} - {d.worse}",
            interval_text(d.diff, d.ci_low, d.ci_high),
            d.n_prompts,
            d.p_holm,
            f"{d.better} is better" if d.different else "not told apart",
        )
        for d in rows_of(differences)
    ]
    columns = ("dimension", "models", "difference", "prompts", "p Holm", "result")
    note = "Sign flips of prompts; p corrected by Holm over all pairs and dimensions."
    return table_of_rows("comparisons", "Differences, paired by prompt", columns, rows, note)


def _protocol(result: MosResult) -> Table:
    status, rule = result.protocol, result.settings.protocol
    rows = (
        *status.states.items(),
        ("called for more raters", f"{status.escalated} of {status.decided}"),
        ("complete ratings still to come", status.still_needed),
        ("ratings over those of the first round", status.budget_factor),
    )
    note = (
        f"{rule.first_raters} raters, {rule.extra_raters} more when the range is >= "
        f"{rule.threshold:g}; counted by {rule.scope}."
    )
    return table_of_rows("protocol", "Protocol", ("state", "count"), rows, note)
