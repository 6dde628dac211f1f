"""From raw ratings to the ones that count: each is used, or reported with a reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from longtake.evaluation.ratings import Finding, Findings, Rating, SampleList
from longtake.runtime.config import Config
from longtake.runtime.errors import UserError

CONSTANT_AFTER = 10
"""A rater with one and the same answer in this many ratings of a dimension is reported."""

_COLUMNS = ("sample", "model", "prompt", "cluster", "dimension", "rater", "score", "reason")
_KEY = ["sample", "dimension", "rater"]
_SET_ASIDE = "set aside"


class RaterRules(Config):
    """What the owner of a study decides about its raters and models."""

    models: tuple[str, ...] = ()
    """The models that exist; empty: those of the list of samples, else any."""
    contradictions: Literal["last", "mean", "refuse"] = "last"
    """Two scores of one rater for one sample and dimension: the later one, their mean, or stop."""
    exclude_raters: tuple[str, ...] = ()
    """Raters whose ratings are set aside."""


NO_RULES = RaterRules()


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckSettings:
    """What is accepted."""

    dimensions: tuple[str, ...]
    """Ratings of other dimensions are set aside."""
    scale: tuple[float, float] = (1.0, 5.0)
    """Lowest and highest score."""
    whole: bool = True
    """Whether scores are whole numbers."""
    rules: RaterRules = NO_RULES


@dataclass(frozen=True, kw_only=True)
class RatingTable:
    """The ratings that count."""

    table: pd.DataFrame
    """Columns sample, model, prompt, cluster, dimension, rater (str), score (float); file order."""
    received: int
    findings: tuple[Finding, ...]

    @property
    def set_aside(self) -> int:
        """Ratings received that do not count."""
        return self.received - len(self.table)


def _case(row: Any) -> str:
    """A row in words."""
    return f"{row.rater} on {row.dimension} of {row.sample}: {row.score:g}"


class _Sieve:
    """The rows left, and what was taken out and why."""

    def __init__(self, rows: pd.DataFrame, findings: Findings) -> None:
        self.rows, self.findings = rows, findings

    def remove(
        self, where: "pd.Series[bool]", kind: str, effect: str, words: Callable[[Any], str] = _case
    ) -> None:
        if where.any():
            taken = self.rows[where]
            self.findings.add(kind, effect, [words(row) for row in taken.itertuples()])
            self.rows = self.rows[~where]


def check_ratings(
    ratings: Sequence[Rating],
    settings: CheckSettings,
    samples: SampleList | None = None,
    earlier: Sequence[Finding] = (),
) -> RatingTable:
    """Check ratings against the scale, the dimensions and the list of samples.

    Ratings come in the order in which they were made and name a sample of the list by its id or
    opaque name; without a list they must name their model and prompt. ``earlier`` findings are put
    first. Refused is a study of which nothing is left.
    """
    findings = Findings(earlier)
    # Texts as Python objects: the string type of pandas is slow to iterate over.
    rows = pd.DataFrame(
        {
            name: pd.Series([getattr(rating, name) for rating in ratings], dtype="object")
            for name in _COLUMNS
        }
    ).astype({"score": "float64"})
    if samples is not None:
        # Before anything is compared: a sheet may say the id and a page the opaque name.
        names = samples.real_names
        rows["sample"] = [names.get(name, name) for name in rows["sample"]]
    sieve = _Sieve(rows, findings)
    absent = set(settings.rules.exclude_raters) - set(rows["rater"])
    findings.add("excluded rater without a rating", "nothing to exclude", sorted(absent))
    excluded = rows["rater"].isin(settings.rules.exclude_raters)
    sieve.remove(excluded, "rating of an excluded rater", "set aside as you asked")
    _check_scores(sieve, settings)
    if samples is None:
        _check_names(sieve)
    else:
        missing = samples.missing_videos()
        findings.add("missing video", "its ratings, if any, are used", missing.values())
        _look_up(sieve, samples)
    models = settings.rules.models or (samples.models if samples is not None else ())
    if models:
        other = ~sieve.rows["model"].isin(models)
        sieve.remove(other, "unknown model", _SET_ASIDE, lambda r: f"{_case(r)} (by {r.model})")
    _one_cluster(sieve)
    # Last: repeats of ratings that do not count must not displace those that do.
    _check_repeats(sieve, settings.rules.contradictions)
    if sieve.rows.empty:
        raise UserError(
            "no rating is left to aggregate",
            received=f"{len(ratings)} ratings; {'; '.join(map(str, findings)) or 'none at all'}",
            expected=f"scores of {', '.join(settings.dimensions)}",
            remedy="give --samples where ratings name only a sample, --dimension for others",
        )
    rows = sieve.rows.drop(columns="reason").reset_index(drop=True)
    silent = [model for model in models if model not in set(rows["model"])]
    findings.add("model without a rating", "no result", silent)
    findings.add("rater with one answer only", "used; look at this rater", _constant(rows))
    if samples is not None:
        rated = set(zip(rows["sample"], rows["dimension"], strict=True))
        unrated = [
            f"{item.sample} ({item.model}): {dimension}"
            for item in samples.samples
            for dimension in settings.dimensions
            if (item.sample, dimension) not in rated
        ]
        findings.add("sample without a rating", "unscored", unrated)
    return RatingTable(table=rows, received=len(ratings), findings=tuple(findings))


def _check_scores(sieve: _Sieve, settings: CheckSettings) -> None:
    # Of a score and a "no score" by one rater for one thing, the later one counts.
    rows = sieve.rows
    missing = rows["score"].isna()
    withdrawing = missing & ~rows.duplicated(_KEY, keep="last")
    withdrawn = withdrawing.groupby([rows[name] for name in _KEY]).transform("any")
    sieve.remove(withdrawn & ~missing, "rating withdrawn later", "unscored")
    again = (missing & ~withdrawing)[sieve.rows.index]
    sieve.remove(again, "record without a score before a later one", _SET_ASIDE)
    sieve.remove(
        sieve.rows["score"].isna(),
        "rating without a score",
        "unscored",
        lambda r: f"{r.rater} on {r.dimension} of {r.sample}: {r.reason or 'no reason given'}",
    )
    low, high = settings.scale
    # Off the scale is no rounding error but another question: 0 and 6 are never pulled to 1 and 5.
    score = sieve.rows["score"]
    fits = score.between(low, high) & (score % 1 == 0 if settings.whole else True)
    number = f"{'a whole number' if settings.whole else 'a number'} from {low:g} to {high:g}"
    sieve.remove(~fits, f"score that is not {number}", _SET_ASIDE)
    other = ~sieve.rows["dimension"].isin(settings.dimensions)
    sieve.remove(other, "unknown dimension", _SET_ASIDE)


def _check_names(sieve: _Sieve) -> None:
    """Without a list: every rating names model and prompt, and always the same ones."""
    rows = sieve.rows
    nameless = (rows["model"] == "") | (rows["prompt"] == "")
    sieve.remove(nameless, "rating that names no model or prompt", _SET_ASIDE)
    rows = sieve.rows
    first = rows.groupby("sample")[["model", "prompt"]].transform("first")
    sieve.remove(
        (rows["model"] != first["model"]) | (rows["prompt"] != first["prompt"]),
        "sample with another model or prompt than before",
        _SET_ASIDE,
        lambda r: f"{_case(r)} (by {r.model}, prompt {r.prompt})",
    )


def _look_up(sieve: _Sieve, samples: SampleList) -> None:
    """Fill in model, prompt and cluster from the list; it wins over what the ratings say."""
    by_id = samples.by_id
    absent = ~sieve.rows["sample"].isin(by_id.keys())
    sieve.remove(absent, "sample that is not in the list", _SET_ASIDE)
    rows = sieve.rows
    names = {
        name: rows["sample"].map({k: getattr(v, name) for k, v in by_id.items()}).astype("object")
        for name in ("model", "prompt", "cluster")
    }
    # A log that names another model than the list was made with another list.
    wrong = (rows["model"] != "") & (rows["model"] != names["model"])
    sieve.remove(
        wrong,
        "rating that names another model than the list",
        _SET_ASIDE,
        lambda r: f"{_case(r)} (named {r.model}, listed {by_id[r.sample].model})",
    )
    sieve.rows = sieve.rows.assign(**{name: column[~wrong] for name, column in names.items()})


def _one_cluster(sieve: _Sieve) -> None:
    rows = sieve.rows
    # The bootstrap draws clusters; a prompt in two of them would be drawn in parts.
    cluster = rows["cluster"].where(rows["cluster"] != "", rows["prompt"])
    first = cluster.groupby(rows["prompt"]).transform("first")
    mixed = rows.loc[cluster != first, "prompt"].unique()
    sieve.findings.add("prompt in two clusters", "the first one is used", map(str, mixed))
    sieve.rows = rows.assign(cluster=first)


def _check_repeats(sieve: _Sieve, policy: str) -> None:
    same = sieve.rows.groupby(_KEY, sort=False)["score"].transform("nunique") == 1
    again = same & sieve.rows.duplicated(_KEY)
    sieve.remove(again, "duplicate rating", "counted once")
    rows = sieve.rows
    several = rows[rows.duplicated(_KEY, keep=False)]
    if several.empty:
        return
    cases = [
        f"{rater} on {dimension} of {sample}: {', '.join(f'{s:g}' for s in scores)}"
        for (sample, dimension, rater), scores in several.groupby(_KEY, sort=False)["score"]
    ]
    if policy == "refuse":
        raise UserError(
            f"{len(cases)} contradictory ratings",
            received="; ".join(cases[:3]),
            remedy="correct the file, or --set rules.contradictions=last (or mean)",
        )
    effects = {"last": "the last one is used", "mean": "their mean is used"}
    sieve.findings.add("contradictory ratings", effects[policy], cases)
    if policy == "mean":
        rows = rows.assign(score=rows.groupby(_KEY)["score"].transform("mean"))
    sieve.rows = rows.drop_duplicates(_KEY, keep="last")


def _constant(rows: pd.DataFrame) -> list[str]:
    # Reported, not removed: a set of alike videos may deserve one answer, and only people can say.
    groups = rows.groupby(["rater", "dimension"])["score"].agg(["size", "min", "max"])
    constant = groups[(groups["size"] >= CONSTANT_AFTER) & (groups["min"] == groups["max"])]
    return [
        f"{rater}: {low:g} in all {size} ratings of {dimension}"
        for (rater, dimension), size, low in constant[["size", "min"]].itertuples()
    ]
