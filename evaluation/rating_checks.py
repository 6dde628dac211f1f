"""From raw ratings to the ones that count: each is used, or reported with a reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.records import Rating
from longtake.evaluation.samples import SampleList
from longtake.runtime.errors import UserError

Contradictions = Literal["last", "mean", "refuse"]

CONSTANT_AFTER = 10
"""A rater with one and the same answer in this many ratings of a dimension is reported."""

_FIELDS = ("sample", "model", "prompt", "cluster", "dimension", "rater", "score", "reason")
_SET_ASIDE = "set aside"
_KEY = ["sample", "dimension", "rater"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckSettings:
    """What is accepted."""

    dimensions: tuple[str, ...]
    """Names of the dimensions; ratings of others are set aside."""
    scale: tuple[float, float] = (1.0, 5.0)
    """Lowest and highest score."""
    whole: bool = True
    """Whether scores are whole numbers."""
    models: tuple[str, ...] = ()
    """The models that exist; empty: those of the list of samples, else any."""
    contradictions: Contradictions = "last"
    """Two scores of one rater for one sample and dimension: the later one, their mean, or stop."""
    exclude_raters: tuple[str, ...] = ()
    """Raters whose ratings are set aside by the user's decision."""


@dataclass(frozen=True, kw_only=True)
class RatingTable:
    """The ratings that count."""

    table: pd.DataFrame
    """Columns sample, model, prompt, cluster, dimension, rater (str), score (float); file order."""
    read: int
    """Ratings received."""
    findings: tuple[Finding, ...]
    """Everything irregular."""

    @property
    def set_aside(self) -> int:
        """Ratings received that do not count."""
        return self.read - len(self.table)


def _who(row: Any) -> str:
    return f"{row.rater} on {row.dimension} of {row.sample}"


def _words(row: Any) -> str:
    return f"{_who(row)}: {row.score:g}"


_Note = Callable[[Any], str]


class _Sieve:
    """The rows left, and what was taken out and why."""

    def __init__(self, rows: pd.DataFrame, findings: Findings) -> None:
        self.rows, self.findings = rows, findings

    def remove(self, where: "pd.Series[bool]", kind: str, effect: str, note: _Note) -> None:
        """Take rows out; ``note`` puts a row into words."""
        if where.any():
            taken = self.rows[where]
            self.findings.add(kind, effect, [note(row) for row in taken.itertuples()])
            self.rows = self.rows[~where]


def check_ratings(
    ratings: Sequence[Rating],
    settings: CheckSettings,
    samples: SampleList | None = None,
    earlier: Sequence[Finding] = (),
) -> RatingTable:
    """Check ratings against the scale, the dimensions and the list of samples.

    Args:
        ratings: in the order in which they were made.
        settings: what is accepted.
        samples: the list of samples, which knows model, prompt and cluster of each id; without it
            the ratings must name their model and prompt. Ratings may name a sample by its id or
            by its opaque name.
        earlier: findings of reading, put first.

    Raises:
        UserError: nothing is left, or a contradiction where these are refused.
    """
    findings = Findings(earlier)
    rows = _as_rows(ratings)
    if samples is not None:
        names = samples.real_names
        rows["sample"] = [names.get(name, name) for name in rows["sample"]]
    sieve = _Sieve(rows, findings)
    excluded = sieve.rows["rater"].isin(settings.exclude_raters)
    absent = set(settings.exclude_raters) - set(sieve.rows["rater"])
    findings.add("excluded rater without a rating", "nothing to exclude", sorted(absent))
    sieve.remove(excluded, "rating of an excluded rater", "set aside as you asked", _who)
    _check_scores(sieve, settings)
    if samples is None:
        _check_names(sieve)
    else:
        findings.add("missing video", "its ratings, if any, are used", samples.missing_videos())
        _look_up(sieve, samples)
    known = settings.models or (samples.models if samples is not None else ())
    if known:
        unknown = ~sieve.rows["model"].isin(known)
        sieve.remove(unknown, "unknown model", _SET_ASIDE, lambda r: f"{_words(r)} (by {r.model})")
    _one_cluster(sieve)
    _check_repeats(sieve, settings.contradictions)
    if sieve.rows.empty:
        raise UserError(
            "no rating is left to aggregate",
            received=f"{len(ratings)} ratings; "
            + ("; ".join(str(finding) for finding in findings.all()) or "none at all"),
            expected=f"scores of {', '.join(settings.dimensions)}",
            remedy="give --samples where ratings name only a sample, --dimension for others",
        )
    rows = sieve.rows.drop(columns="reason").reset_index(drop=True)
    rated = set(rows["model"].unique())
    silent = [model for model in known if model not in rated]
    findings.add("model without a rating", "no result", silent)
    findings.add("rater with one answer only", "used; look at this rater", _constant(rows))
    if samples is not None:
        findings.add("sample without a rating", "unscored", _unrated(rows, samples, settings))
    return RatingTable(table=rows, read=len(ratings), findings=findings.all())


def _as_rows(ratings: Sequence[Rating]) -> pd.DataFrame:
    # Texts as Python objects: the string type of pandas is slow to iterate over.
    columns = {
        name: pd.Series([getattr(rating, name) for rating in ratings], dtype="object")
        for name in _FIELDS
    }
    rows = pd.DataFrame(columns)
    rows["score"] = rows["score"].astype("float64")
    return rows


def _check_scores(sieve: _Sieve, settings: CheckSettings) -> None:
    low, high = settings.scale
    _check_withdrawn(sieve)
    sieve.remove(
        sieve.rows["score"].isna(),
        "rating without a score",
        "unscored",
        lambda r: f"{_who(r)}: {r.reason or 'no reason given'}",
    )
    score = sieve.rows["score"]
    fits = score.between(low, high)
    if settings.whole:
        fits &= score % 1 == 0
    wanted = f"{'a whole number' if settings.whole else 'a number'} from {low:g} to {high:g}"
    sieve.remove(~fits, f"score that is not {wanted}", _SET_ASIDE, _words)
    strange = ~sieve.rows["dimension"].isin(settings.dimensions)
    sieve.remove(strange, "unknown dimension", _SET_ASIDE, _words)


def _check_withdrawn(sieve: _Sieve) -> None:
    """Of a score and a "no score" by one rater, the later one counts."""
    rows = sieve.rows
    missing = rows["score"].isna()
    if not missing.any():
        return
    withdrawing = missing & ~rows.duplicated(_KEY, keep="last")
    withdrawn = withdrawing.groupby([rows[name] for name in _KEY]).transform("any")
    sieve.remove(withdrawn & ~missing, "rating withdrawn later", "unscored", _words)
    again = missing & ~withdrawing
    sieve.remove(
        again[sieve.rows.index], "record without a score before a later one", _SET_ASIDE, _who
    )


def _check_names(sieve: _Sieve) -> None:
    rows = sieve.rows
    nameless = (rows["model"] == "") | (rows["prompt"] == "")
    sieve.remove(nameless, "rating that names no model or prompt", _SET_ASIDE, _words)
    rows = sieve.rows
    first = rows.groupby("sample")[["model", "prompt"]].transform("first")
    other = (rows["model"] != first["model"]) | (rows["prompt"] != first["prompt"])
    sieve.remove(
        other,
        "sample with another model or prompt than before",
        _SET_ASIDE,
        lambda r: f"{_words(r)} (by {r.model}, prompt {r.prompt})",
    )


def _look_up(sieve: _Sieve, samples: SampleList) -> None:
    """Fill in model, prompt and cluster from the list; it wins over what the ratings say."""
    by_id = samples.by_id
    unknown = ~sieve.rows["sample"].isin(by_id.keys())
    sieve.remove(unknown, "sample that is not in the list", _SET_ASIDE, _words)
    rows = sieve.rows
    names = {
        name: rows["sample"].map({k: getattr(v, name) for k, v in by_id.items()}).astype("object")
        for name in ("model", "prompt", "cluster")
    }
    wrong = (rows["model"] != "") & (rows["model"] != names["model"])
    sieve.remove(
        wrong,
        "rating that names another model than the list",
        _SET_ASIDE,
        lambda r: f"{_words(r)} (named {r.model}, listed {by_id[r.sample].model})",
    )
    sieve.rows = sieve.rows.assign(**{name: col[~wrong] for name, col in names.items()})


def _one_cluster(sieve: _Sieve) -> None:
    rows = sieve.rows
    cluster = rows["cluster"].where(rows["cluster"] != "", rows["prompt"])
    first = cluster.groupby(rows["prompt"]).transform("first")
    mixed = rows.loc[cluster != first, "prompt"].unique()
    sieve.findings.add("prompt in two clusters", "the first one is used", map(str, mixed))
    sieve.rows = rows.assign(cluster=first)


def _check_repeats(sieve: _Sieve, policy: Contradictions) -> None:
    several = sieve.rows[sieve.rows.duplicated(_KEY, keep=False)]
    groups = several.groupby(_KEY, sort=False)["score"]
    same = groups.transform("nunique") == 1
    again = several[same].index[several[same].duplicated(_KEY)]
    sieve.remove(
        sieve.rows.index.to_series().isin(again), "duplicate rating", "counted once", _words
    )
    cases = [
        f"{rater} on {dimension} of {sample}: {', '.join(f'{s:g}' for s in scores)}"
        for (sample, dimension, rater), scores in groups
        if scores.nunique() > 1
    ]
    if not cases:
        return
    effects = {"last": "the last one is used", "mean": "their mean is used"}
    if policy == "refuse":
        raise UserError(
            f"{len(cases)} contradictory ratings",
            received="; ".join(cases[:3]),
            expected="one score of a rater for a sample and dimension",
            remedy="correct the file, or choose --contradictions last or mean",
        )
    sieve.findings.add("contradictory ratings", effects[policy], cases)
    rows = sieve.rows
    if policy == "mean":
        rows = rows.assign(score=rows.groupby(_KEY)["score"].transform("mean"))
    sieve.rows = rows.drop_duplicates(_KEY, keep="last")


def _constant(rows: pd.DataFrame) -> list[str]:
    groups = rows.groupby(["rater", "dimension"])["score"].agg(["size", "min", "max"])
    constant = groups[(groups["size"] >= CONSTANT_AFTER) & (groups["min"] == groups["max"])]
    return [
        f"{rater}: {low:g} in all {size} ratings of {dimension}"
        for (rater, dimension), size, low in zip(
            constant.index, constant["size"], constant["min"], strict=True
        )
    ]


def _unrated(rows: pd.DataFrame, samples: SampleList, settings: CheckSettings) -> list[str]:
    rated = set(zip(rows["sample"], rows["dimension"], strict=True))
    return [
        f"{item.sample} ({item.model}): {dimension}"
        for item in samples.samples
        for dimension in settings.dimensions
        if (item.sample, dimension) not in rated
    ]
