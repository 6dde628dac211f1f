"""The tables of a MOS study: for people, and with full precision for files."""

import math

from longtake.evaluation.dimensions import title_of
from longtake.evaluation.mos import MosResult
from longtake.evaluation.options import options_table
from longtake.evaluation.tables import Table, findings_table, interval_text, table_of


def mos_tables(result: MosResult) -> tuple[Table, ...]:
    """Every table of the study; the first one is the overview."""
    tables = [
        _overview(result),
        _means(result),
        _comparisons(result),
        table_of("differences", "Differences, paired by prompt", result.comparison.differences),
        _agreement(result),
        table_of(
            "raters",
            "Raters",
            result.raters,
            note="Bias and inconsistency: ITU-T P.910, in scale points. They change no score.",
        ),
        _protocol(result),
    ]
    if result.merged:
        tables += [_merged(result), table_of("merged", "Merged scores", result.merged)]
    return (*tables, options_table(result.options), findings_table(result.findings))


def _overview(result: MosResult) -> Table:
    """Models by dimensions: mean, interval, letters of the groups of ties."""
    comparison = result.comparison
    rows = []
    for model in result.models:
        cells = []
        for dimension in result.settings.dimensions:
            cell = comparison.mean_of(dimension, model)
            groups = comparison.tie_groups[dimension]
            letters = "".join(tie_letter(g) for g, group in enumerate(groups) if model in group)
            cells.append(f"{interval_text(cell.mean, cell.ci_low, cell.ci_high)} {letters}".strip())
        sizes = [comparison.mean_of(d, model).n_samples for d in result.settings.dimensions]
        shown = "-".join(map(str, dict.fromkeys((min(sizes), max(sizes)))))
        rows.append((model, *cells, shown))
    return Table(
        name="overview",
        title="Mean opinion scores",
        columns=("model", *map(title_of, result.settings.dimensions), "n"),
        rows=tuple(rows),
        note=f"Mean and {100 * comparison.settings.confidence:g} % interval (bootstrap, prompts "
        "drawn); n videos. Models with a common letter were not told apart (sign flips of prompts, "
        "Holm over all pairs and dimensions).",
    )


def _comparisons(result: MosResult) -> Table:
    """The differences, short enough for a terminal."""
    return Table(
        name="comparisons",
        title="Differences, paired by prompt",
        columns=("dimension", "models", "difference", "prompts", "p Holm", "result"),
        rows=tuple(
            (
                d.dimension,
                f"{d.better} - {d.worse}",
                interval_text(d.diff, d.ci_low, d.ci_high),
                d.n_prompts,
                d.p_holm,
                f"{d.better} is better" if d.different else "not told apart",
            )
            for d in result.comparison.differences
        ),
    )


def tie_letter(index: int) -> str:
    """The letter of a group of ties: a is the best one."""
    return chr(ord("a") + index) if index < 26 else f"({index + 1})"


def _means(result: MosResult) -> Table:
    return Table(
        name="means",
        title="Means",
        columns=(
            "dimension", "model", "mean", "ci_low", "ci_high", "sd", "n_videos", "n_prompts",
            "n_clusters", "bias_free",
        ),
        rows=tuple(
            (
                c.dimension, c.model, c.mean, c.ci_low, c.ci_high, c.sd, c.n_samples, c.n_prompts,
                c.n_clusters, result.bias_free.get((c.dimension, c.model)),
            )
            for c in result.comparison.means
        ),
        note="bias_free: mean quality by ITU-T P.910 alternating projection, a diagnostic.",
    )  # fmt: skip


def _agreement(result: MosResult) -> Table:
    return Table(
        name="agreement",
        title="Agreement of the raters",
        columns=("dimension", "alpha", "ci_low", "ci_high", "n_videos", "n_ratings", "remark"),
        rows=tuple(
            (name, a.alpha, a.ci_low, a.ci_high, a.n_samples, a.n_ratings, a.reason)
            for name, a in result.agreement.items()
        ),
        note="Krippendorff's alpha, ordinal; interval by bootstrap of prompts.",
    )


def _protocol(result: MosResult) -> Table:
    status, rule = result.protocol, result.settings.protocol
    share = f"{status.escalated} of {status.decided}"
    return Table(
        name="protocol",
        title="Protocol",
        columns=("state", "count"),
        rows=(
            *((name, count) for name, count in status.states.items()),
            ("called for more raters", share),
            ("complete ratings still to come", status.still_needed),
            ("ratings over those of the first round", status.budget_factor),
        ),
        note=f"{rule.first_raters} raters, {rule.extra_raters} more when the range is >= "
        f"{rule.threshold:g}; counted by {rule.scope}.",
    )


def _merged(result: MosResult) -> Table:
    """The merged scores, short enough for a terminal."""
    weights = result.settings.weights
    return Table(
        name="merged_overview",
        title=f"Human and automatic, {weights.human:g}:{weights.automatic:g}",
        columns=("dimension", "model", "human", "n", "automatic", "n auto", "merged", "remark"),
        rows=tuple(
            (
                m.dimension,
                m.model,
                f"{m.human:.2f}",
                m.n_human,
                "-" if math.isnan(m.automatic) else f"{m.automatic:.2f}",
                m.n_automatic,
                interval_text(m.merged, m.ci_low, m.ci_high),
                m.refused,
            )
            for m in result.merged
        ),
        note="Report section 5.1. No merged score where there is no judge.",
    )
