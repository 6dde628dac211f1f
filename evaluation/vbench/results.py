"""Results of single videos: read in the public code's format, checked, scored, and written.

    <Dimension>_eval_results.json   {"<Dimension>": [score, [{"video_path", "video_results"}, ...]]}
    <Dimension>_record.json         ours: [{"origin": ...}, {"video", "reason"}, ...]

Camera motion of image-to-video is `[score, {kind of motion: score}, videos]`. The record is a
list, because the public aggregator takes every JSON object for results.

A dimension is the mean over the videos to which it applies (results other than -1), not over
prompts; `scripts/cal_final_score.py` and the `compute_*` functions of the public code at the pinned
commit. The score in a result file is recomputed here, because naive tools average the -1 as well.
"""

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longtake.evaluation.vbench.suites import NOT_APPLICABLE, SCORED_SUITES, Dimension, Suite
from longtake.runtime.errors import UserError
from longtake.runtime.files import write_json

RESULTS_ENDING = "_eval_results.json"
RECORD_ENDING = "_record.json"
RESULTS_FOLDER = "results"
RESULT_FILE = "result file"
_TOLERANCE = 1e-6
_MOSTLY = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoResult:
    """What one video got in one dimension (Diversity: all videos of a prompt)."""

    value: float
    """As in the file: in units of the dimension; -1 may mean not applicable."""
    frames: float = 1.0
    """Weight in the mean."""
    entry: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """As the public code wrote it, with the path and the reasons of its judge."""


@dataclass(kw_only=True)
class DimensionResults:
    """Everything known about one dimension of one model."""

    dimension: Dimension
    stated: float | None = None
    """Score that the file states; None when it states none."""
    videos: dict[str, VideoResult] = field(default_factory=dict)
    """By file name; finite and in range."""
    unscored: dict[str, str] = field(default_factory=dict)
    """Reason by file name, for videos without a usable result."""
    origin: str = RESULT_FILE
    """Who scored: `ours`, `upstream runner`, or somebody of whom only the file is known."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """What made the results, where our record says so: commit, digest of the suite."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the file as a whole."""
    source: str = ""
    """File that was read."""

    @property
    def applicable(self) -> dict[str, VideoResult]:
        """The videos that count."""
        if not self.dimension.may_not_apply:
            return self.videos
        return {n: v for n, v in self.videos.items() if v.value != NOT_APPLICABLE}

    @property
    def forced_to_zero(self) -> bool:
        """Whether upstream's rule for a dimension that applies to almost no video holds."""
        dropped = len(self.videos) - len(self.applicable)
        return self.dimension.mostly_inapplicable_is_zero and dropped > _MOSTLY * len(self.videos)

    @property
    def recomputed(self) -> float | None:
        """Score in [0, 1] from the videos; None when none counts."""
        if self.forced_to_zero:
            return 0.0
        counted = self.applicable.values()
        weight = sum(v.frames for v in counted)
        if not weight:
            return None
        return sum(v.value * v.frames for v in counted) / weight / self.dimension.unit

    @property
    def score(self) -> float | None:
        """The score to use: recomputed, unless only the file knows the weights."""
        if self.stated is not None and (self.dimension.frames_hidden or not self.videos):
            return self.stated
        return self.recomputed

    def notes(self) -> list[str]:
        """What a reader of the score must know: problems, corrections, upstream's hazards."""
        notes = list(self.problems)
        recomputed = self.recomputed
        if self.forced_to_zero:
            notes.append("more than 90 % of the videos are -1; upstream's rule makes this 0")
        if self.videos and recomputed is None:
            notes.append("no video counts: all are -1 (not applicable)")
        # The -1 in the mean, most often, or weights that only the file knows. NaN is off, too.
        stated = self.stated
        if (
            stated is not None
            and recomputed is not None
            and not abs(stated - recomputed) <= _TOLERANCE
        ):
            notes.append(
                f"the file states {stated:.6g}; the mean of its videos is {recomputed:.6g}"
            )
        if self.videos and self.dimension.hazard:
            notes.append(self.dimension.hazard)
        return notes


@dataclass(kw_only=True)
class ResultSet:
    """What a folder or zip says about one model."""

    suite: Suite
    source: Path
    dimensions: dict[str, DimensionResults] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Files that could not be used; nothing of them is in ``dimensions``."""


def read_results(suite: Suite, source: Path) -> ResultSet:
    """Read every JSON file below a folder (the public layout, or ours), in a zip, or one file.

    A torn or foreign file becomes a problem.
    """
    files = _json_files(source)
    if not files:
        raise UserError(
            "no result files here",
            received=str(source),
            expected=f"JSON files such as {next(iter(suite.dimensions))}{RESULTS_ENDING}",
            remedy="give the folder that `eval vbench run` or the public code wrote",
        )
    results = ResultSet(suite=suite, source=source)
    records: dict[str, list[Any]] = {}
    for name, text in files:
        try:
            content = json.loads(text)
        # One torn file of eighteen must not hide the others.
        except ValueError as error:
            results.problems.append(f"{name}: no JSON, maybe torn ({error})")
            continue
        if isinstance(content, dict) and any(_is_result(value) for value in content.values()):
            _add_results(results, name, content)
        elif isinstance(content, list) and name.endswith(RECORD_ENDING):
            records[name.rpartition("/")[2].removesuffix(RECORD_ENDING)] = content
    # After the results: a record may also speak of a dimension without any.
    for dimension, record in records.items():
        _add_record(results, dimension, record)
    return results


def read_any_suite(source: Path) -> ResultSet:
    """Results of the suite to which most of their dimensions belong."""
    read = [read_results(suite, source) for suite in SCORED_SUITES.values()]
    results = max(read, key=lambda found: len(found.dimensions))
    if not results.dimensions:
        raise UserError(
            "no VBench results here", received=str(source), expected="dimensions of a suite"
        )
    return results


def _json_files(source: Path) -> list[tuple[str, bytes]]:
    """Name and content of every JSON file; hidden ones and those of macOS are left out."""
    try:
        if source.is_dir():
            inner = source / RESULTS_FOLDER  # a run directory: its other files are no results
            root = inner if inner.is_dir() and (source / "plan.json").is_file() else source
            names = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*.json"))]
            return [(name, (root / name).read_bytes()) for name in names if _is_visible(name)]
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                names = [n for n in sorted(archive.namelist()) if n.endswith(".json")]
                return [(name, archive.read(name)) for name in names if _is_visible(name)]
        return [(source.name, source.read_bytes())]
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"the results cannot be read: {error}",
            received=str(source),
            expected="a folder, a zip or a JSON file",
        ) from error


def _is_visible(name: str) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _is_result(value: object) -> bool:
    return (
        isinstance(value, list)
        and (len(value) == 2 or (len(value) == 3 and isinstance(value[1], dict)))
        and isinstance(value[0], int | float | None)
        and isinstance(value[-1], list)
    )


def _add_results(results: ResultSet, name: str, content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        # The public code writes some names with spaces.
        dimension = results.suite.dimensions.get(key.replace(" ", "_"))
        if key in results.suite.outside_total:
            continue
        if dimension is None:
            results.problems.append(f"{name}: `{key}` is no dimension of {results.suite.title}")
        elif not _is_result(value):
            results.problems.append(f"{name}: `{key}` holds no [score, videos]")
        elif (first := results.dimensions.get(dimension.name)) is not None:
            # Which of two runs counts is for a person to say, so neither does.
            first.stated, first.videos = None, {}
            first.problems.append(f"two result files, {first.source} and {name}: remove one")
        else:
            results.dimensions[dimension.name] = parse_dimension(dimension, value[0], value[-1])
            results.dimensions[dimension.name].source = name


def parse_dimension(
    dimension: Dimension, stated: float | None, items: Sequence[object]
) -> DimensionResults:
    """The results of one dimension; what cannot be used is unscored with its reason."""
    parsed = DimensionResults(dimension=dimension, stated=stated)
    for number, item in enumerate(items):
        if not isinstance(item, Mapping) or not isinstance(item.get("video_path"), str):
            parsed.problems.append(f"entry {number} names no video: {str(item)[:80]}")
            continue
        # Paths are those of the machine that scored; only the name is the same everywhere.
        name = Path(item["video_path"]).name
        result = _video_result(dimension, item)
        if isinstance(result, str):
            parsed.unscored[name] = result
            parsed.videos.pop(name, None)
        elif name in parsed.videos and parsed.videos[name] != result:
            # Nobody can tell which of them is right, and their mean is neither.
            parsed.unscored[name] = f"two results: {parsed.videos.pop(name).value}, {result.value}"
        elif name not in parsed.unscored:
            parsed.videos[name] = result
    return parsed


def _video_result(dimension: Dimension, item: Mapping[str, Any]) -> VideoResult | str:
    """The result of one entry, or why it cannot be used."""
    value = item.get("video_results")
    if not isinstance(value, bool | int | float):
        return f"no number: {str(value)[:40]}"
    value = float(value)
    if not math.isfinite(value):
        return f"non-finite: {value}"
    # -1 is a legal similarity in some dimensions and "does not apply" in others.
    applies_or_not = value == NOT_APPLICABLE and dimension.may_not_apply
    if not dimension.lowest * dimension.unit <= value <= dimension.unit and not applies_or_not:
        return f"out of range: {value:g}"
    # Some public means are over frames, so a longer video weighs more.
    frames = item.get(dimension.frames_key, 1.0) if dimension.frames_key else 1.0
    weight = len(frames) if isinstance(frames, list) else frames
    if not isinstance(weight, int | float) or not 0 < weight < math.inf:
        return f"no usable number of frames: {frames!r}"
    return VideoResult(value=value, frames=float(weight), entry=dict(item))


def _add_record(results: ResultSet, name: str, record: Sequence[Any]) -> None:
    """Origin and reasons that :func:`write_results` left beside the results."""
    if name not in results.suite.dimensions:
        results.problems.append(f"{name}{RECORD_ENDING}: no dimension of {results.suite.title}")
        return
    empty = DimensionResults(dimension=results.suite.dimensions[name])
    own = results.dimensions.setdefault(name, empty)
    for item in record:
        if isinstance(item, Mapping) and "origin" in item:
            own.origin = str(item["origin"])
            own.provenance = dict(item)
            own.problems += [str(problem) for problem in item.get("problems", ())]
        elif isinstance(item, Mapping) and "video" in item:
            own.unscored[str(item["video"])] = str(item.get("reason", "no reason given"))


def write_results(folder: Path, results: DimensionResults, provenance: Mapping[str, Any]) -> None:
    """Write ``<folder>/<Dimension>/``: the public format, and our record beside it.

    One level deep, because deeper files score 0 at the leaderboard. ``provenance``: what made the
    results: commit, environment, digest of the prompts.
    """
    name = results.dimension.name
    reasons = [{"video": video, "reason": why} for video, why in results.unscored.items()]
    head = {"origin": results.origin, "problems": results.problems, **provenance}
    write_json(folder / name / f"{name}{RECORD_ENDING}", [head, *reasons])
    # No empty result file: the public aggregator would take it for a score.
    if results.videos:
        write_json(folder / name / f"{name}{RESULTS_ENDING}", public_content(results))


def public_content(results: DimensionResults) -> dict[str, list[Any]]:
    """One dimension as the public code writes it."""
    entries = [dict(result.entry) for result in results.videos.values()]
    return {results.dimension.name: [results.score, entries]}
