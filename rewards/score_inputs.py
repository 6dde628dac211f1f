"""What is to be scored: one video file, the videos of a folder, or the rows of a CSV."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longtake.runtime.errors import UserError

VIDEO_SUFFIXES = frozenset(
    (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm")
)
"""Files of a folder that count as videos: formats that state a frame rate."""


@dataclass(frozen=True, kw_only=True)
class ScoreInput:
    """One clip to score."""

    name: str
    """Path as it is recorded: relative to the folder or as written in the CSV."""
    path: Path
    """Where the file is."""
    prompt: str = ""
    """Caption; empty when there is none."""
    fps: float | None = None
    """Playback rate that overrides the one of the file."""
    problem: str | None = None
    """Why this input cannot be scored, if that is known already."""


def one_source(video: Path | None, source: Path | None) -> Path:
    """The one that is given of ``--video`` and ``--input``.

    Raises:
        UserError: none or both.
    """
    given = [path for path in (video, source) if path is not None]
    if len(given) != 1:
        raise UserError(
            "name one thing to score",
            received=" and ".join(map(str, given)) or "nothing",
            expected="--video FILE, or --input with a folder or a CSV",
        )
    return given[0]


def find_inputs(source: Path, prompt: str = "", fps: float | None = None) -> list[ScoreInput]:
    """The clips of ``source``, in a fixed order.

    Args:
        source: a video file; a folder, searched with its subfolders, where ``clip.txt`` beside
            ``clip.mp4`` holds its caption; or a ``.csv`` with the columns ``path`` (relative to the
            CSV), ``prompt`` and optionally ``fps``.
        prompt: caption of the clips that have none of their own.
        fps: playback rate of the clips that have none of their own; None reads the files.

    Raises:
        UserError: nothing there, no videos in the folder, or a CSV that cannot be read. A row that
            cannot be used does not raise: it carries its ``problem``.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise UserError("fps cannot be used", received=fps, expected="a positive number")
    if source.is_dir():
        found = _from_folder(source)
    elif source.suffix.lower() == ".csv":
        found = _from_csv(source)
    elif source.exists():
        found = [ScoreInput(name=str(source), path=source)]
    else:
        raise UserError(
            "nothing to score",
            received=str(source),
            expected="a video file, a folder of videos, or a CSV with the columns path and prompt",
            remedy="check the path",
        )
    return [
        ScoreInput(
            name=item.name,
            path=item.path,
            prompt=item.prompt.strip() or prompt.strip(),
            fps=fps if item.fps is None else item.fps,
            problem=item.problem,
        )
        for item in found
    ]


def _from_folder(folder: Path) -> list[ScoreInput]:
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")
    )
    if not paths:
        raise UserError(
            "the folder holds no videos",
            received=str(folder),
            expected="files that end in " + ", ".join(sorted(VIDEO_SUFFIXES)),
        )
    return [_with_caption_file(path, path.relative_to(folder).as_posix()) for path in paths]


def _with_caption_file(path: Path, name: str) -> ScoreInput:
    caption = path.with_suffix(".txt")
    try:
        prompt = caption.read_text(encoding="utf-8") if caption.is_file() else ""
    except (OSError, ValueError) as error:
        return ScoreInput(name=name, path=path, problem=f"cannot read {caption.name}: {error}")
    return ScoreInput(name=name, path=path, prompt=prompt)


def _from_csv(path: Path) -> list[ScoreInput]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(reader.fieldnames or (), path)
            found = list(_rows(reader, path.parent))
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot read the CSV: {error}",
            received=str(path),
            expected="comma-separated values in UTF-8",
        ) from error
    if not found:
        raise UserError(
            "the CSV has no rows",
            received=str(path),
            expected="a header and one row per video",
        )
    return found


def _check_columns(columns: Sequence[str], path: Path) -> None:
    if "path" not in columns:
        raise UserError(
            "the CSV has no column path",
            received=f"columns {', '.join(columns) or 'none'} in {path}",
            expected="the columns path, prompt and optionally fps",
        )


def _rows(reader: Iterable[Mapping[str | None, object]], folder: Path) -> Iterable[ScoreInput]:
    for row in reader:
        name = str(row["path"] or "").strip()
        problem = None
        if not name:
            problem = "the row has no path"
        elif None in row:  # most likely a comma in a caption without quotes
            problem = "the row has more fields than the header; put captions with commas in quotes"
        fps, fps_problem = _read_fps(str(row.get("fps") or "").strip())
        yield ScoreInput(
            name=name,
            path=folder / name,
            prompt=str(row.get("prompt") or ""),
            fps=fps,
            problem=problem or fps_problem,
        )


def _read_fps(text: str) -> tuple[float | None, str | None]:
    if not text:
        return None, None
    try:
        fps = float(text)
    except ValueError:
        fps = math.nan
    if math.isfinite(fps) and fps > 0:
        return fps, None
    return None, f"fps {text!r} is not a positive number"
