"""The tables of a GSB study: for people, and with full precision for files."""

import math

from longtake.evaluation.gsb import GsbResult
from longtake.evaluation.options import options_table
from longtake.evaluation.tables import Table, findings_table, interval_text, table_of


def gsb_tables(result: GsbResult) -> tuple[Table, ...]:
    """Every table of the study; the first one is the overview."""
    return (
        _overview(result),
        _tests(result),
        table_of("counts", "Counts", result.counts),
        _rankings(result),
        table_of(
            "position",
            "Position bias",
            result.position,
            note="Answers for the left video. Sides are balanced, so models do not explain a bias.",
        ),
        _agreement(result),
        options_table(result.options),
        findings_table(result.findings),
    )


def _overview(result: GsbResult) -> Table:
    return Table(
        name="overview",
        title="Good - same - bad",
        columns=("comparison", "dimension", "G / S / B", "net %", "(G+S)/(B+S)", "verdict"),
        rows=tuple(
            (
                f"{c.reference} vs {c.rival}",
                c.dimension,
                f"{c.good} / {c.same} / {c.bad}",
                interval_text(100 * c.net, 100 * c.net_low, 100 * c.net_high, 1),
                "-" if math.isnan(c.ratio) else f"{c.ratio:.2f}",
                _verdict(c.different, c.net),
            )
            for c in result.counts
        ),
        note="G: pairs in which the first-named model is better. net = (G-B)/(G+S+B), interval by "
        "bootstrap of prompts. Per pair the majority of its raters counts, no majority is S.",
    )


def _tests(result: GsbResult) -> Table:
    return Table(
        name="tests",
        title="Is it more than chance?",
        columns=("comparison", "dimension", "win share %", "p", "test", "p Holm"),
        rows=tuple(
            (
                f"{c.reference} vs {c.rival}",
                c.dimension,
                interval_text(100 * c.win_share, 100 * c.share_low, 100 * c.share_high, 1),
                c.p,
                c.test,
                c.p_holm,
            )
            for c in result.counts
        ),
        note="win share = G/(G+B), Wilson interval; p Holm: corrected for all rows.",
    )


def _verdict(different: bool, net: float) -> str:
    if not different:
        return "not told apart"
    return "better" if net > 0 else "worse"


def _rankings(result: GsbResult) -> Table:
    rows: list[tuple[str | float | int | None, ...]] = []
    for dimension, ranking in result.rankings.items():
        rows += [
            (dimension, s.model, s.log_strength, s.ci_low, s.ci_high, s.n_pairs, ranking.reason)
            for s in ranking.strengths
        ]
        if not ranking.strengths:
            rows.append((dimension, "-", None, None, None, ranking.n_pairs, ranking.reason))
    return Table(
        name="ranking",
        title="Bradley-Terry with ties",
        columns=("dimension", "model", "log_strength", "ci_low", "ci_high", "n_pairs", "remark"),
        rows=tuple(rows),
        note="Mean 0 over the models; a difference d means odds of exp(d) : 1 among non-ties.",
    )


def _agreement(result: GsbResult) -> Table:
    return Table(
        name="agreement",
        title="Agreement of the raters",
        columns=("dimension", "alpha", "ci_low", "ci_high", "n_pairs", "n_answers", "remark"),
        rows=tuple(
            (name, a.alpha, a.ci_low, a.ci_high, a.n_samples, a.n_ratings, a.reason)
            for name, a in result.agreement.items()
        ),
        note="Krippendorff's alpha, ordinal (left, same, right).",
    )
