"""Good-Same-Bad: which of two models people prefer, from answers to blind pairs.

Report section 5.1 and Figure 15. G counts the pairs in which the reference is better, B those in
which the rival is, S the rest. Two formulas are in use and both are given:
net (G - B) / (G + S + B) and ratio (G + S) / (B + S).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from longtake.evaluation.agreement import Agreement, krippendorff_alpha
from longtake.evaluation.checks import (
    NO_RULES,
    CheckSettings,
    RaterRules,
    RatingTable,
    check_ratings,
)
from longtake.evaluation.comparison import ComparisonSettings
from longtake.evaluation.gsb_plan import Pair, plan_study, read_key
from longtake.evaluation.ranking import PairwiseRanking, rank_models
from longtake.evaluation.ratings import (
    UNSCORED_WORDS,
    Finding,
    Findings,
    Rating,
    Sample,
    SampleList,
    of_study,
    read_ratings,
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
from longtake.runtime.statistics import (
    FloatArray,
    holm,
    percentile_interval,
    resampled_means,
    sign_flip_test,
)

ANSWER_LOG = "answers.jsonl"
"""Log of the answers in the folder of a plan."""

ANSWERS = {"left": 1.0, "same": 0.0, "right": -1.0}
"""What a rater says about a pair, and how it is recorded as a score."""


def read_answer(value: object) -> tuple[float | None, str]:
    """(score, why there is none) of a cell with left, same or right; ValueError otherwise."""
    word = str(value).strip().lower()
    if word in UNSCORED_WORDS:
        return None, f"rater wrote {word}"
    if word not in ANSWERS:
        raise ValueError(f"{value!r} is none of {', '.join(ANSWERS)}")
    return ANSWERS[word], ""


class GsbSettings(ComparisonSettings):
    """How answers become counts."""

    rules: RaterRules = RaterRules()
    """Its models are those of the plan."""


@dataclass(frozen=True, kw_only=True)
class GsbResult:
    """Everything a report of a GSB study needs; NaN stands for missing."""

    counts: pd.DataFrame
    """dimension, reference, rival, good, same, bad (pairs by the majority of their raters, no
    majority is same), n_prompts, net with net_low and net_high (bootstrap of prompts), ratio,
    win_share = G / (G + B) with share_low and share_high (Wilson), p of "no preference" by test
    (``sign test``, or ``sign flips`` where prompts have several pairs), p_holm (over all rows),
    different."""
    rankings: Mapping[str, PairwiseRanking]
    """Bradley-Terry with ties by dimension."""
    position: pd.DataFrame
    """dimension, left, same, right, left_share = left / (left + right) with low and high (bootstrap
    of pairs), p of one half. Sides are balanced, so models do not explain a bias."""
    agreement: Mapping[str, Agreement]
    """Krippendorff's alpha of the answers by dimension."""
    findings: tuple[Finding, ...]
    settings: ComparisonSettings
    dimensions: tuple[str, ...]
    n_answers: int
    set_aside: int
    """Answers received and not used; the findings say why."""

    def as_record(self) -> dict[str, object]:
        """JSON-ready but for NaN."""
        return {"kind": "gsb", **record_of(self)}


def gsb_from_files(
    plan: Path, answers: Sequence[Path], dimensions: tuple[str, ...], settings: GsbSettings
) -> GsbResult:
    """Read, check and aggregate the answers (logs or sheets) to the plan in a folder."""
    pairs = read_key(plan)
    given, irregular = read_ratings(answers, dimensions, read_answer)
    findings = Findings(irregular)
    # Ids of pairs count from 1 in every plan; only the digest tells whose answers these are.
    given = of_study(given, plan_study(pairs), findings)
    table = check_answers(given, pairs, dimensions, settings.rules, findings)
    return aggregate_gsb(table, pairs, dimensions, settings)


def check_answers(
    answers: Sequence[Rating],
    pairs: Sequence[Pair],
    dimensions: tuple[str, ...],
    rules: RaterRules = NO_RULES,
    earlier: Sequence[Finding] = (),
) -> RatingTable:
    """Check answers like ratings: a pair is a sample, and the score goes from -1 to 1."""
    listed = [
        Sample(
            sample=pair.pair,
            model=f"{pair.reference} vs {pair.rival}",
            prompt=pair.prompt,
            cluster=pair.cluster,
        )
        for pair in pairs
    ]
    rules = rules.replace(models=())
    checks = CheckSettings(dimensions=dimensions, scale=(-1.0, 1.0), rules=rules)
    return check_ratings(answers, checks, SampleList(samples=tuple(listed)), earlier)


def net_gsb(good: float, same: float, bad: float) -> float:
    """(G - B) / (G + S + B); NaN without pairs."""
    total = good + same + bad
    return (good - bad) / total if total else math.nan


def gsb_ratio(good: float, same: float, bad: float) -> float:
    """(G + S) / (B + S); NaN where B + S = 0."""
    return (good + same) / (bad + same) if bad + same else math.nan


def win_share(good: int, bad: int, confidence: float = 0.95) -> tuple[float, float, float, float]:
    """G / (G + B), its Wilson interval, and the p-value of the exact two-sided sign test."""
    if good + bad == 0:
        return math.nan, math.nan, math.nan, 1.0
    test = binomtest(good, good + bad)
    ends = test.proportion_ci(confidence, method="wilson")
    return good / (good + bad), float(ends.low), float(ends.high), float(test.pvalue)


def aggregate_gsb(
    answers: RatingTable,
    pairs: Sequence[Pair],
    dimensions: Sequence[str],
    settings: ComparisonSettings,
    *,
    ranking_resamples: int = 200,
) -> GsbResult:
    """Aggregate checked answers (1 left, 0 same, -1 right) to the pairs of a plan."""
    labels = pair_labels(answers.table, pairs)
    counts, position = [], []
    rankings, agreement = {}, {}
    for dimension in dimensions:
        part = labels[labels["dimension"] == dimension]
        raw = answers.table[answers.table["dimension"] == dimension]
        if part.empty:
            continue
        for (reference, rival), rows in part.groupby(["reference", "rival"]):
            names = {"dimension": dimension, "reference": reference, "rival": rival}
            counts.append(names | _count(rows, settings))
        rankings[dimension] = rank_models(
            part["reference"].tolist(),
            part["rival"].tolist(),
            part["label"].to_numpy(dtype=np.float64),
            part["cluster"].tolist(),
            confidence=settings.confidence,
            resamples=ranking_resamples,
            seed=settings.seed,
        )
        agreement[dimension] = krippendorff_alpha(
            raw["score"].to_numpy(dtype=np.float64),
            pd.factorize(raw["sample"])[0],
            pd.factorize(raw["cluster"])[0],
            confidence=settings.confidence,
            seed=settings.seed,
        )
        position.append({"dimension": dimension} | _position(raw, settings))
    table = pd.DataFrame(counts)
    # All rivals and dimensions are looked at together, so they are corrected together.
    table["p_holm"] = holm(table["p"].to_numpy())
    table["different"] = table["p_holm"] < 1.0 - settings.confidence
    return GsbResult(
        counts=table,
        rankings=rankings,
        position=pd.DataFrame(position),
        agreement=agreement,
        findings=answers.findings,
        settings=settings,
        dimensions=tuple(dimensions),
        n_answers=len(answers.table),
        set_aside=answers.set_aside,
    )


def pair_labels(answers: pd.DataFrame, pairs: Sequence[Pair]) -> pd.DataFrame:
    """One label for each pair and dimension: what more than half of its raters say, else same.

    Returns the columns dimension, pair, reference, rival, cluster, label (1 reference better, 0,
    -1).
    """
    by_id = {pair.pair: pair for pair in pairs}
    sign = {k: 1.0 if p.left_model == p.reference else -1.0 for k, p in by_id.items()}
    for_reference = answers["score"] * answers["sample"].map(sign)
    keys = [answers["dimension"], answers["sample"]]
    shares = pd.DataFrame({"good": for_reference > 0, "bad": for_reference < 0})
    label = shares.groupby(keys, sort=False).mean().reset_index()
    # No majority is "same": half for each side is no preference of the raters together.
    label["label"] = (label["good"] > 0.5).astype(float) - (label["bad"] > 0.5).astype(float)
    for name in ("reference", "rival", "cluster"):
        label[name] = label["sample"].map({k: getattr(p, name) for k, p in by_id.items()})
    label = label.rename(columns={"sample": "pair"})
    return label[["dimension", "pair", "reference", "rival", "cluster", "label"]]


def _interval(
    sums: FloatArray, counts: FloatArray, settings: ComparisonSettings
) -> tuple[float, float]:
    """Bootstrap interval of a mean from its sums and counts by cluster; NaN below two clusters."""
    if len(sums) < 2:
        return math.nan, math.nan
    draws = resampled_means(
        sums[:, None], counts[:, None], resamples=settings.resamples, seed=settings.seed
    )
    (low,), (high,) = percentile_interval(draws, settings.confidence)
    return float(low), float(high)


def _count(rows: pd.DataFrame, settings: ComparisonSettings) -> dict[str, object]:
    label = rows["label"].to_numpy(dtype=np.float64)
    good, bad = int((label > 0).sum()), int((label < 0).sum())
    same = len(label) - good - bad
    cluster, names = pd.factorize(rows["cluster"])
    sums = np.bincount(cluster, weights=label).astype(np.float64)
    low, high = _interval(sums, np.bincount(cluster).astype(np.float64), settings)
    share, share_low, share_high, p = win_share(good, bad, settings.confidence)
    test = "sign test"
    if len(names) < len(label):  # pairs of one prompt are not independent coin tosses
        test = "sign flips"
        flips = settings.resamples
        p = float(sign_flip_test(sums[:, None], flips=flips, seed=settings.seed)[0])
    return {
        "good": good,
        "same": same,
        "bad": bad,
        "n_prompts": len(names),
        "net": net_gsb(good, same, bad),
        "net_low": low,
        "net_high": high,
        "ratio": gsb_ratio(good, same, bad),
        "win_share": share,
        "share_low": share_low,
        "share_high": share_high,
        "p": p,
        "test": test,
    }


def _position(raw: pd.DataFrame, settings: ComparisonSettings) -> dict[str, object]:
    """How often raters chose the left video; its p flips the sides of pairs, as the plan drew."""
    scores = raw["score"].to_numpy(dtype=np.float64)
    # By pair: its raters see the same videos, so their answers are one draw of the sides.
    pair, _ = pd.factorize(raw["sample"])
    left = np.bincount(pair, weights=scores > 0).astype(np.float64)
    right = np.bincount(pair, weights=scores < 0).astype(np.float64)
    share, (low, high) = math.nan, (math.nan, math.nan)
    if preferences := float((left + right).sum()):
        share = float(left.sum()) / preferences
        low, high = _interval(left, left + right, settings)
    p = sign_flip_test((left - right)[:, None], flips=settings.resamples, seed=settings.seed)
    return {
        "left": int(left.sum()),
        "same": int((scores == 0).sum()),
        "right": int(right.sum()),
        "left_share": share,
        "low": low,
        "high": high,
        "p": float(p[0]),
    }


def gsb_tables(result: GsbResult) -> tuple[Table, ...]:
    """Every table of the study; the first one is the overview."""
    rows = list(rows_of(result.counts))
    overview = table_of_rows(
        "overview",
        "Good - same - bad",
        ("comparison", "dimension", "G / S / B", "net %", "(G+S)/(B+S)", "verdict"),
        [
            (
                f"{c.reference} vs {c.rival}",
                c.dimension,
                f"{c.good} / {c.same} / {c.bad}",
                interval_text(100 * c.net, 100 * c.net_low, 100 * c.net_high, 1),
                "-" if math.isnan(c.ratio) else f"{c.ratio:.2f}",
                ("better" if c.net > 0 else "worse") if c.different else "not told apart",
            )
            for c in rows
        ],
        note="G: pairs in which the first-named model is better. net = (G-B)/(G+S+B), interval by "
        "bootstrap of prompts. Per pair the majority of its raters counts, no majority is S.",
    )
    tests = table_of_rows(
        "tests",
        "Is it more than chance?",
        ("comparison", "dimension", "win share %", "p", "test", "p Holm"),
        [
            (
                f"{c.reference} vs {c.rival}",
                c.dimension,
                interval_text(100 * c.win_share, 100 * c.share_low, 100 * c.share_high, 1),
                c.p,
                c.test,
                c.p_holm,
            )
            for c in rows
        ],
        note="win share = G/(G+B), Wilson interval; p Holm: corrected for all rows.",
    )
    strengths: list[tuple[object, ...]] = []
    for dimension, fit in result.rankings.items():
        strengths += [
            (dimension, s.model, s.log_strength, s.ci_low, s.ci_high, s.n_pairs, fit.reason)
            for s in fit.strengths
        ] or [(dimension, "-", None, None, None, fit.n_pairs, fit.reason)]
    ranking = table_of_rows(
        "ranking",
        "Bradley-Terry with ties",
        ("dimension", "model", "log_strength", "ci_low", "ci_high", "n_pairs", "remark"),
        strengths,
        note="Mean 0 over the models; a difference d means odds of exp(d) : 1 among non-ties.",
    )
    position = Table(
        name="position",
        title="Position bias",
        frame=result.position,
        note="Answers for the left video. Sides are balanced, so models do not explain a bias.",
    )
    return (
        overview,
        tests,
        Table(name="counts", title="Counts", frame=result.counts),
        ranking,
        position,
        agreement_table(result.agreement, ("n_pairs", "n_answers"), "ordinal (left, same, right)"),
        findings_table(result.findings),
    )
