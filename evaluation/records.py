"""One record per (sample, dimension, rater): what a person or a model said about one video.

Scoring, aggregation and reporting are separate steps, and this record is all they share: a score
is written once, to a JSON-lines log, and every table is computed from the log alone.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from longtake.evaluation.findings import Finding, Findings
from longtake.evaluation.jsonl import append_jsonl, read_jsonl

Kind = Literal["human", "automatic"]

UNSCORED_WORDS = frozenset(("na", "n/a", "unscored"))
"""What a person may write in place of a score; the score is then missing, with this reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rating:
    """One judgement."""

    sample: str
    """Id of the video (for GSB: of the pair). Opaque where raters must be blind."""
    dimension: str
    """What was judged, such as ``text_alignment``."""
    rater: str
    """Id of the person, or name and fingerprint of the model."""
    score: float | None
    """The score; None when there is none. May be outside the scale: the checks report it."""
    reason: str = ""
    """Why there is no score; empty otherwise."""
    kind: Kind = "human"
    """Whether a person or a model judged."""
    model: str = ""
    """Generator of the video; empty when only the list of samples knows."""
    prompt: str = ""
    """Id of the prompt; empty when only the list of samples knows."""
    cluster: str = ""
    """Unit that the bootstrap resamples (image-to-video: the image); empty = the prompt."""
    time: str = ""
    """When, ISO 8601; empty when unknown."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How the score came about: digest of the video, versions, ``calibration`` of a judge, ..."""

    @property
    def key(self) -> tuple[str, str, str]:
        """(sample, dimension, rater)."""
        return self.sample, self.dimension, self.rater

    def __str__(self) -> str:
        return f"{self.rater} on {self.dimension} of {self.sample}: {self.score}"

    def as_record(self) -> dict[str, Any]:
        """JSON-ready; fields with their default value are left out."""
        record: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "score" or value not in ("", {}, "human"):
                record[item.name] = value
        return record


_REQUIRED = ("sample", "dimension", "rater")
_TEXTS = frozenset((*_REQUIRED, "reason", "model", "prompt", "cluster", "time"))
_KINDS = get_args(Kind)


def rating_from_record(record: Mapping[str, Any]) -> Rating:
    """Read one record.

    A score that is not finite becomes a missing score with that reason, so it is counted.

    Raises:
        ValueError: a field is missing or has the wrong type; the message names it.
    """
    texts: dict[str, str] = {}
    for name, value in record.items():
        if name not in _TEXTS or value is None:
            continue
        if isinstance(value, str):
            texts[name] = value.strip()
        elif isinstance(value, int) and not isinstance(value, bool):
            texts[name] = str(value)
        else:
            raise ValueError(f"`{name}` is {value!r}, expected a text")
    for name in _REQUIRED:
        if not texts.get(name):
            raise ValueError(f"`{name}` is {record.get(name)!r}, expected a non-empty text")
    kind = record.get("kind", "human")
    if kind not in _KINDS:
        raise ValueError(f"`kind` is {kind!r}, expected {' or '.join(_KINDS)}")
    provenance = record.get("provenance", {})
    if not isinstance(provenance, Mapping):
        raise ValueError(f"`provenance` is {provenance!r}, expected an object")
    if "score" not in record:
        raise ValueError("`score` is missing; write null and a `reason` for no score")
    score, reason = read_score(record["score"])
    texts["reason"] = texts.get("reason") or reason
    return Rating(score=score, kind=kind, provenance=provenance, **texts)


def read_score(value: object) -> tuple[float | None, str]:
    """(score, why there is none) of a JSON value or the text of a cell.

    Raises:
        ValueError: neither a number nor a word for "no score".
    """
    if value is None:
        return None, "no score given"
    if isinstance(value, str) and value.strip().lower() in UNSCORED_WORDS:
        return None, f"rater wrote {value.strip()}"
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"`score` is {value!r}, expected a number or null")
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"`score` is {value!r}, expected a number") from error
    return (number, "") if math.isfinite(number) else (None, f"the score is {number}")


def append_ratings(path: Path, ratings: Iterable[Rating]) -> int:
    """Add ratings to a log; they are on the disk when this returns. Returns their number.

    Raises:
        UserError: the log cannot be written.
    """
    return append_jsonl(path, (rating.as_record() for rating in ratings))


def read_log(path: Path) -> tuple[list[Rating], tuple[Finding, ...]]:
    """The ratings of a log in the order they were written, and the lines that are none.

    Raises:
        UserError: the file is missing or is no JSON-lines file.
    """
    records, broken = read_jsonl(path)
    findings = Findings(broken)
    ratings: list[Rating] = []
    unusable: list[str] = []
    for number, record in records:
        try:
            ratings.append(rating_from_record(record))
        except ValueError as error:
            unusable.append(f"{path.name}:{number}: {error}")
    findings.add("record that is not a rating", "not used", unusable)
    return ratings, findings.all()
