"""Result files in the public code's format, read from any depth of a folder or zip, and written.

    <Dimension>_eval_results.json   {"<Dimension>": [score, [{"video_path", "video_results"}, ...]]}
    <Dimension>_record.json         ours: [{"origin": ...}, {"video", "reason"}, ...]

Camera motion of image-to-video is `[score, {kind of motion: score}, videos]`. The record is a
list, because the public aggregator takes every JSON object for results.
"""

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from longtake.evaluation.vbench.results import DimensionResults, VideoResult
from longtake.evaluation.vbench.suites import NOT_APPLICABLE, Dimension, Suite
from longtake.runtime.errors import RunDirectoryError, UserError
from longtake.runtime.files import replacing, to_plain

RESULTS_ENDING = "_eval_results.json"
RECORD_ENDING = "_record.json"
RESULTS_FOLDER = "results"


@dataclass(kw_only=True)
class ResultSet:
    """What a folder or zip says about one model."""

    suite: Suite
    source: Path
    dimensions: dict[str, DimensionResults] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Files that could not be used; nothing of them is in ``dimensions``."""
    ignored: list[str] = field(default_factory=list)
    """What no score uses: JSON files that are no results, such as the public code's
    `_full_info.json`, and dimensions outside of the total."""


def read_results(suite: Suite, source: Path) -> ResultSet:
    """Read every JSON file below a folder, or in a zip.

    A torn or foreign file becomes a problem of the set; the others are still read.

    Args:
        suite: whose dimensions are expected.
        source: folder at any depth (the public layout, or an output of ours), zip, or one file.

    Raises:
        UserError: nothing is at ``source``, or it holds no JSON file.
    """
    files = _json_files(source)
    if not files:
        raise UserError(
            "no result files here",
            received=str(source),
            expected=f"JSON files such as {next(iter(suite.dimensions))}{RESULTS_ENDING}",
            remedy="give the folder that `eval vbench run` or the public code wrote",
        )
    found = ResultSet(suite=suite, source=source)
    records: dict[str, list[Any]] = {}
    for name, text in files:
        try:
            content = json.loads(text)
        except ValueError as error:
            found.problems.append(f"{name}: no JSON, maybe torn ({error})")
            continue
        if _is_results(content):
            _add_results(found, name, content)
        elif isinstance(content, list) and name.endswith(RECORD_ENDING):
            records[_recorded(name)] = content
        else:
            found.ignored.append(name)
    for dimension, record in records.items():
        _add_record(found, dimension, record)
    return found


def named_dimensions(source: Path) -> frozenset[str]:
    """The dimensions, of whatever suite, that the result files of a folder or zip name.

    Raises:
        UserError: the files cannot be read.
        ValueError: one of them holds no JSON.
    """
    names: set[str] = set()
    for name, text in _json_files(source):
        content = json.loads(text)
        if _is_results(content):
            names |= {_dimension(key) for key, value in content.items() if _is_result(value)}
        elif isinstance(content, list) and name.endswith(RECORD_ENDING):
            names.add(_recorded(name))
    return frozenset(names)


def _json_files(source: Path) -> list[tuple[str, bytes]]:
    """Name and content of every JSON file; hidden ones and those of macOS are left out."""
    try:
        if source.is_dir():
            inner = source / RESULTS_FOLDER  # a run directory: its other files are no results
            root = inner if inner.is_dir() and (source / "plan.json").is_file() else source
            paths = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*.json"))}
            return [(name, path.read_bytes()) for name, path in paths.items() if _is_wanted(name)]
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                names = [n for n in sorted(archive.namelist()) if n.endswith(".json")]
                return [(name, archive.read(name)) for name in names if _is_wanted(name)]
        return [(source.name, source.read_bytes())]
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"the results cannot be read: {error}",
            received=str(source),
            expected="a folder, a zip or a JSON file",
        ) from error


def _is_wanted(name: str) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _is_results(content: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(content, dict) and any(_is_result(value) for value in content.values())


def _dimension(key: str) -> str:
    """The public code writes some names with spaces."""
    return key.replace(" ", "_")


def _recorded(name: str) -> str:
    """The dimension of a record of ours, by its file name."""
    return name.rpartition("/")[2].removesuffix(RECORD_ENDING)


def _is_result(value: object) -> bool:
    return (
        isinstance(value, list)
        and (len(value) == 2 or (len(value) == 3 and isinstance(value[1], dict)))
        and isinstance(value[0], int | float | None)
        and isinstance(value[-1], list)
    )


def _add_results(found: ResultSet, name: str, content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        dimension = found.suite.dimensions.get(_dimension(key))
        if key in found.suite.outside_total:
            found.ignored.append(f"{name}: {key}, which no total uses")
        elif dimension is None:
            found.problems.append(f"{name}: `{key}` is no dimension of {found.suite.title}")
        elif not _is_result(value):
            found.problems.append(f"{name}: `{key}` holds no [score, videos]")
        elif (first := found.dimensions.get(dimension.name)) is not None:
            # Which of two runs counts is for a person to say, so neither does.
            first.stated, first.videos = None, {}
            first.problems.append(f"two result files, {first.source} and {name}: remove one")
        else:
            results = parse_dimension(dimension, value[0], value[-1])
            results.source = name
            found.dimensions[dimension.name] = results


def parse_dimension(
    dimension: Dimension, stated: float | None, items: Sequence[object]
) -> DimensionResults:
    """Check the results of one dimension; what cannot be used is unscored with its reason."""
    parsed = DimensionResults(dimension=dimension, stated=stated, videos={})
    for number, item in enumerate(items):
        if not isinstance(item, Mapping) or not isinstance(item.get("video_path"), str):
            parsed.problems.append(f"entry {number} names no video: {str(item)[:80]}")
            continue
        name = Path(item["video_path"]).name
        result = _video_result(dimension, item)
        if isinstance(result, str):
            parsed.unscored[name] = result
            parsed.videos.pop(name, None)
        elif name in parsed.videos and parsed.videos[name] != result:
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
    applies_or_not = value == NOT_APPLICABLE and dimension.may_not_apply
    if not dimension.lowest * dimension.unit <= value <= dimension.unit and not applies_or_not:
        return f"out of range: {value:g}"
    frames = item.get(dimension.frames_key, 1.0) if dimension.frames_key else 1.0
    weight = len(frames) if isinstance(frames, list) else frames
    if not isinstance(weight, int | float) or not 0 < weight < math.inf:
        return f"no usable number of frames: {frames!r}"
    return VideoResult(value=value, frames=float(weight), entry=dict(item))


def _add_record(found: ResultSet, name: str, record: Sequence[Any]) -> None:
    """Origin and reasons that :func:`write_results` left beside the results."""
    if name not in found.suite.dimensions:
        found.problems.append(f"{name}{RECORD_ENDING}: no dimension of {found.suite.title}")
        return
    results = found.dimensions.setdefault(
        name,
        DimensionResults(dimension=found.suite.dimensions[name], stated=None, videos={}),
    )
    for item in record:
        if isinstance(item, Mapping) and "origin" in item:
            results.origin = str(item["origin"])
            results.provenance = dict(item)
            results.problems += [str(problem) for problem in item.get("problems", ())]
        elif isinstance(item, Mapping) and "video" in item:
            results.unscored[str(item["video"])] = str(item.get("reason", "no reason given"))


def write_results(folder: Path, results: DimensionResults, provenance: Mapping[str, Any]) -> None:
    """Write one dimension in the public format, and our record beside it.

    Args:
        folder: gets ``<Dimension>/``, one level deep: deeper files score 0 at the leaderboard.
        results: of the videos, with their entries; the score is computed from them.
        provenance: what made the results: commit, environment, digest of the prompts.

    Raises:
        RunDirectoryError: the folder cannot be written.
    """
    name = results.dimension.name
    target = folder / name
    reasons = [{"video": video, "reason": why} for video, why in results.unscored.items()]
    head = {"origin": results.origin, "problems": results.problems, **provenance}
    contents: dict[str, Any] = {f"{name}{RECORD_ENDING}": [head, *reasons]}
    if results.videos:
        contents[f"{name}{RESULTS_ENDING}"] = public_content(results)
    try:
        for file, content in contents.items():
            with replacing(target / file) as temporary:
                text = json.dumps(to_plain(content), indent=4, ensure_ascii=False)
                temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write the results of {name}: {error.strerror or error}",
            received=str(target),
            remedy="mend it and start the same command again; finished videos are kept",
        ) from error


def public_content(results: DimensionResults) -> dict[str, list[Any]]:
    """One dimension as the public code writes it."""
    entries = [dict(result.entry) for result in results.videos.values()]
    return {results.dimension.name: [results.score, entries]}
