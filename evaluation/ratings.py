"""The files of a study: which videos there are, and what people and models said about them.

A study has a *list of samples* (which video belongs to which model and prompt; raters never see it)
and *ratings*, one record for each (sample, dimension, rater), in a JSON-lines log or in sheets that
people fill in. Scoring, aggregation and reporting share these records and nothing else. What is
irregular in a file is never dropped in silence: it becomes a :class:`Finding`.
"""

import dataclasses
import datetime
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from longtake.runtime.errors import UserError
from longtake.runtime.files import append_jsonl, explained, read_csv, read_jsonl, write_csv

Kind = Literal["human", "automatic"]

UNSCORED_WORDS = frozenset(("na", "n/a", "unscored"))
"""What a person may write in place of a score; the score is then missing, with this reason."""
VIDEO_ENDINGS = frozenset((".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif"))

_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One kind of irregularity in an input, such as ``duplicate rating``, with every case."""

    kind: str
    effect: str
    """What is done about it, such as ``counted once``."""
    items: tuple[str, ...]
    """The cases, in words; never empty."""

    def __str__(self) -> str:
        shown = "; ".join(self.items[:_SHOWN])
        more = f"; and {len(self.items) - _SHOWN} more" if len(self.items) > _SHOWN else ""
        return f"{self.kind} ({len(self.items)}, {self.effect}): {shown}{more}"

    def as_record(self) -> dict[str, object]:
        """JSON-ready, with the count."""
        return {**asdict(self), "count": len(self.items)}


class Findings(list[Finding]):
    """Collects findings; kinds without a case leave no trace."""

    def add(self, kind: str, effect: str, items: Iterable[str]) -> None:
        """Record one kind with all of its cases."""
        if cases := tuple(items):
            self.append(Finding(kind=kind, effect=effect, items=cases))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One video of a study."""

    sample: str
    """Id, unique in the list."""
    model: str
    prompt: str
    """Id of the prompt; ``caption`` is its text."""
    cluster: str = ""
    """Unit that the bootstrap resamples; empty = the prompt. Image-to-video: the image."""
    caption: str = ""
    video: str = ""
    """Path relative to the list; empty when the list names none. So ``image``."""
    image: str = ""
    """Reference image of image-to-video."""


@dataclass(frozen=True, kw_only=True)
class SampleList:
    """The samples of a study."""

    samples: tuple[Sample, ...]
    folder: Path = Path()
    """Where relative paths start."""
    findings: tuple[Finding, ...] = ()

    @property
    def by_id(self) -> dict[str, Sample]:
        """Id -> sample."""
        return {item.sample: item for item in self.samples}

    @property
    def real_names(self) -> dict[str, str]:
        """Id, and opaque name as raters see it, -> id."""
        names = {opaque_name(item.sample): item.sample for item in self.samples}
        return names | {item.sample: item.sample for item in self.samples}

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models in the order of their first sample."""
        return tuple(dict.fromkeys(item.model for item in self.samples))

    def video_path(self, sample: Sample) -> Path | None:
        """Where the video should be; None when the list names none."""
        return self.folder / sample.video if sample.video else None

    def missing_videos(self) -> dict[str, str]:
        """Id of each sample whose video is named and not there -> the case in words."""
        paths = ((item, self.video_path(item)) for item in self.samples)
        return {
            item.sample: f"{item.sample} ({item.model}): {path}"
            for item, path in paths
            if path is not None and not path.is_file()
        }


def read_samples(path: Path) -> SampleList:
    """Read a list of samples: ``.csv``, ``.jsonl``, or a folder of videos.

    Files have the fields of :class:`Sample`; other columns are ignored. In a folder a subfolder is
    a model (without subfolders the folder itself is the only one) and a file's stem is its prompt;
    a ``.txt`` of the same stem beside it holds the caption, else the stem is the caption too.
    """
    if path.is_dir():
        return SampleList(samples=_samples_of_folder(path), folder=path)
    if path.suffix.lower() == ".csv":
        sheet = read_csv(path, ("sample", "model", "prompt"))
        rows = dict(zip(sheet.index.tolist(), sheet.to_dict("records"), strict=True))
    elif path.suffix.lower() == ".jsonl":
        rows = dict(enumerate(cast(list[dict[Hashable, Any]], read_jsonl(path)), start=1))
    else:
        what, expected = "the list of samples has an unknown format", ".csv, .jsonl or a folder"
        raise UserError(what, received=str(path), expected=expected)
    # A list with a bad row is used: the report names what is missing, while a refusal on the day
    # of the results would cost that day.
    names = [item.name for item in fields(Sample)]
    listed: dict[str, Sample] = {}
    incomplete, repeated = [], []
    for line, row in rows.items():
        cells = {name: row.get(name) for name in names}
        item = Sample(**{n: "" if v is None else str(v).strip() for n, v in cells.items()})
        if not (item.sample and item.model and item.prompt):
            incomplete.append(f"{path.name}:{line}")
        elif listed.setdefault(item.sample, item) != item:
            repeated.append(f"{path.name}:{line}: {item.sample}")
    findings = Findings()
    findings.add("sample without id, model or prompt", "not used", incomplete)
    findings.add("sample listed twice with different contents", "first one used", repeated)
    if not listed:
        raise UserError("the list holds no sample", received=str(path), expected="rows of samples")
    return SampleList(samples=tuple(listed.values()), folder=path.parent, findings=tuple(findings))


def _samples_of_folder(folder: Path) -> tuple[Sample, ...]:
    samples = []
    for video in sorted(folder.rglob("*")):
        name = video.relative_to(folder)
        # Hidden files are what editors and copying tools leave behind.
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or video.suffix.lower() not in VIDEO_ENDINGS or not video.is_file():
            continue
        text = video.with_suffix(".txt")
        samples.append(
            Sample(
                sample=opaque_name(name.as_posix()),  # raters may see it: no model, no file name
                model=name.parent.as_posix() if len(name.parts) > 1 else folder.resolve().name,
                prompt=video.stem,
                caption=text.read_text(encoding="utf-8").strip() if text.is_file() else video.stem,
                video=name.as_posix(),
            )
        )
    if not samples:
        endings = f"videos ({', '.join(sorted(VIDEO_ENDINGS))}), in a subfolder for each model"
        raise UserError("the folder holds no video", received=str(folder), expected=endings)
    return tuple(samples)


def write_samples(path: Path, samples: Sequence[Sample]) -> Path:
    """Write a list as CSV, atomically."""
    columns = [item.name for item in fields(Sample)]
    return write_csv(path, pd.DataFrame([asdict(item) for item in samples], columns=columns))


@checked_dataclass(
    frozen=True,
    kw_only=True,
    slots=True,
    config=ConfigDict(str_strip_whitespace=True, coerce_numbers_to_str=True),
)
class Rating:
    """One judgement: what a person or a model said about one video."""

    sample: str = Field(min_length=1)
    """Id of the video (for GSB: of the pair). Opaque where raters must be blind."""
    dimension: str = Field(min_length=1)
    rater: str = Field(min_length=1)
    """Id of the person, or name and fingerprint of the model."""
    score: float | None
    """None when there is none. May be outside the scale: the checks report it."""
    reason: str = ""
    """Why there is no score."""
    kind: Kind = "human"
    model: str = ""
    """Generator of the video; empty when only the list of samples knows. So ``prompt``."""
    prompt: str = ""
    cluster: str = ""
    time: str = ""
    """ISO 8601."""
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
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {k: v for k, v in values.items() if k == "score" or v not in ("", {}, "human")}


_FIELDS = tuple(item.name for item in fields(Rating))

ReadCell = Callable[[object], tuple[float | None, str]]
"""A JSON value or the text of a cell -> (score, why there is none); ValueError if it is neither."""


def read_score(value: object) -> tuple[float | None, str]:
    """A number, null, or a word for "no score"; what is not finite is no score either."""
    if value is None:
        return None, "no score given"
    if isinstance(value, str) and value.strip().lower() in UNSCORED_WORDS:
        return None, f"rater wrote {value.strip()}"
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"`score` is {value!r}, expected a number") from error
    return (number, "") if math.isfinite(number) else (None, f"the score is {number}")


def rating_from_record(record: Mapping[str, Any], read_cell: ReadCell = read_score) -> Rating:
    """One rating from decoded JSON or a row of a sheet; ValueError names what is wrong with it."""
    if "score" not in record:
        raise ValueError("`score` is missing; write null and a `reason` for no score")
    score, reason = read_cell(record["score"])
    # Sheets have empty cells and other columns; both say nothing about the rating.
    given = {name: record[name] for name in _FIELDS if record.get(name) not in (None, "")}
    try:
        return Rating(**{**given, "score": score, "reason": given.get("reason") or reason})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ValueError(f"`{name}` is {record.get(name)!r}: {first['msg']}") from error


def read_ratings(
    paths: Sequence[Path],
    dimensions: Sequence[str] = (),
    read_cell: ReadCell = read_score,
    *,
    rater: str = "",
) -> tuple[list[Rating], tuple[Finding, ...]]:
    """The ratings of files, one after the other in their order, and what in them is no rating.

    Files are logs (``.jsonl``) or sheets (``.csv``). A sheet is long (columns sample, dimension,
    rater, score: one rating in a row) or wide (columns sample, rater and one for each of
    ``dimensions``: one video and rater in a row). ``read_cell`` reads the scores of sheets;
    ``rater`` filled in the rows that name nobody.
    """
    ratings: list[Rating] = []
    findings = Findings()
    for path in paths:
        ending, read = path.suffix.lower(), cast(ReadCell, read_score)
        if ending == ".jsonl":
            records = [(f"{path.name}:{i}", r) for i, r in enumerate(read_jsonl(path), start=1)]
        elif ending == ".csv":
            records, read = _sheet_records(path, dimensions, rater, findings), read_cell
        else:
            what, expected = "the ratings have an unknown format", "a .jsonl log or a .csv sheet"
            raise UserError(what, received=str(path), expected=expected)
        unusable = []
        for where, record in records:
            try:
                ratings.append(rating_from_record(record, read))
            except ValueError as error:
                unusable.append(f"{where}: {error}")
        findings.add("record that is not a rating", "not used", unusable)
    return ratings, tuple(findings)


def _sheet_records(
    path: Path, dimensions: Sequence[str], rater: str, findings: Findings
) -> list[tuple[str, dict[str, Any]]]:
    """Each filled cell of a sheet as (where it is, a record)."""
    sheet = read_csv(path, ("sample",) if rater else ("sample", "rater"))
    if rater:
        own = sheet.get("rater", "")
        sheet["rater"] = np.where(own == "", rater, own)
    if not {"dimension", "score"} <= set(sheet):
        asked = [name for name in dimensions if name in sheet]
        if not asked:
            raise UserError(
                "the sheet has no column of scores",
                received=f"columns {', '.join(sheet.columns)} in {path}",
                expected=f"dimension and score, or any of {', '.join(dimensions)}",
            )
        kept = [name for name in sheet if name in _FIELDS and name not in ("dimension", "score")]
        sheet = sheet.melt(kept, asked, "dimension", "score", ignore_index=False)
        sheet = sheet.sort_index(kind="stable")  # row by row, as they were filled in
    rows = zip(sheet.index, cast(list[dict[str, Any]], sheet.to_dict("records")), strict=True)
    records = [(f"{path.name}:{line}, {row['dimension']}", row) for line, row in rows]
    # A blank is a rater who is not done; "na" is one who cannot say.
    findings.add("empty cell", "not rated", [where for where, row in records if not row["score"]])
    return [(where, row) for where, row in records if row["score"]]


def append_ratings(log: Path, ratings: Iterable[Rating]) -> None:
    """Add ratings to a log; they are on the disk when this returns."""
    append_jsonl(log, (rating.as_record() for rating in ratings))


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What :func:`import_ratings` did."""

    added: int
    present: int
    """Ratings that the log had already."""
    findings: tuple[Finding, ...]


def import_ratings(
    source: Path,
    log: Path,
    dimensions: Sequence[str],
    *,
    rater: str = "",
    read_cell: ReadCell = read_score,
    study: str = "",
) -> ImportReport:
    """Append the ratings of a sheet or log that ``log`` lacks; doing it twice changes nothing.

    A rating that contradicts the log is appended too and reported: both are kept, and the later
    one counts by default. Arguments as in :func:`read_ratings` and :func:`of_study`.
    """
    ratings, irregular = read_ratings([source], dimensions, read_cell, rater=rater)
    earlier, damage = read_ratings([log]) if log.exists() else ([], ())
    findings = Findings((*irregular, *damage))
    if not ratings and not irregular:
        findings.add("file without an answer", "nothing is added", [source.name])
    ratings = of_study(ratings, study, findings)
    findings.add("page that is not finished", "what it holds is used", _unfinished(ratings))
    # Against the last word of each rater, not against any: going back to an earlier score is news.
    latest = {item.key: item for item in earlier}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    added, changed, older = [], [], []
    for item in ratings:
        before = latest.get(item.key)
        if before is not None:
            if _said(before) == _said(item):
                continue
            # Pages save the whole state: an older file must not undo a later correction.
            page = item.provenance.get("page")
            if page and page == before.provenance.get("page") and item.time < before.time:
                older.append(f"{item}, since then {before.score}")
                continue
            if before.score not in (None, item.score):
                changed.append(f"{item}, before {before.score}")
        latest[item.key] = item
        added.append(dataclasses.replace(item, time=item.time or now))
    if added:
        append_ratings(log, added)
    findings.add("rating that contradicts the log", "both are kept, the later counts", changed)
    findings.add("answer corrected since on its page", "not added", older)
    present = len(ratings) - len(added) - len(older)
    return ImportReport(added=len(added), present=present, findings=tuple(findings))


def of_study(ratings: Sequence[Rating], study: str, findings: Findings) -> list[Rating]:
    """Ratings without those saved from a page of another study (a digest); empty: any study.

    Sheets name no study and are kept.
    """
    named = [str(rating.provenance.get("study", study)) if study else "" for rating in ratings]
    pairs = list(zip(ratings, named, strict=True))
    other = [f"{item} (study {name})" for item, name in pairs if name != study]
    findings.add("answer from a page of another study", "not used", other)
    return [item for item, name in pairs if name == study]


def _said(item: Rating) -> tuple[float | None, str, str]:
    return item.score, item.reason, str(item.provenance.get("comment", ""))


def _unfinished(ratings: Sequence[Rating]) -> list[str]:
    """Pages of raters that hold fewer answers than they asked for, in words."""
    given: dict[tuple[str, str, int], set[tuple[str, str, str]]] = {}
    for item in ratings:
        asked = item.provenance.get("asked")
        if isinstance(asked, int):
            page = str(item.provenance.get("page", ""))
            given.setdefault((item.rater, page, asked), set()).add(item.key)
    return [
        f"{rater}: {len(keys)} of {asked} answers (page {page})"
        for (rater, page, asked), keys in given.items()
        if len(keys) < asked
    ]


def opaque_name(text: str) -> str:
    """A short name that stays the same and does not show what it stands for."""
    # 48 bits: two of 10,000 samples share a name once in 6 million studies.
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def place_file(source: Path, target: Path) -> Path:
    """Put a file under another name: a hard link where the file system allows, else a copy."""
    with explained("place a file", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # of an earlier plan
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copyfile(source, target)
    return target
