"""The files of ``rewards score``: the clips that are asked for, and the table of their scores."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from longtake.runtime.errors import UserError
from longtake.runtime.files import checked_rows, read_csv, read_jsonl, write_csv, write_jsonl

VIDEO_SUFFIXES = frozenset(
    (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm")
)
"""Files of a folder that count as videos: formats that state a frame rate."""
CAPTIONS = "captions.csv"
"""File of a folder of videos with their captions."""
NAMED_NOTE = "the caption is the name of the file"

_BEFORE = ("path", "prompt", "fps", "frames")
_AFTER = ("unscored", "notes", "settings", "digest")


class ScoreInput(BaseModel):
    """One clip to score."""

    model_config = ConfigDict(frozen=True)

    name: str
    """Path as it is recorded: relative to the folder or as written in the CSV."""
    path: Path
    """Where the file is."""
    prompt: str = ""
    """Caption; empty when there is none."""
    fps: float | None = None
    """Playback rate that overrides the one of the file."""
    notes: tuple[str, ...] = ()
    """What a reader of the scores should know."""


class _Listed(BaseModel):
    """A row of a CSV of clips."""

    path: Annotated[str, Field(pattern=r"\S")]
    prompt: str = ""
    fps: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        BeforeValidator(lambda cell: cell or None),
    ] = None


def find_inputs(source: Path, prompt: str = "", fps: float | None = None) -> list[ScoreInput]:
    """The clips of ``source``, in a fixed order.

    ``source`` is a video file; a ``.csv`` with the columns ``path`` (relative to the CSV),
    ``prompt`` and optionally ``fps``; or a folder, searched with its subfolders. The caption of a
    clip of a folder is in ``captions.csv`` there (such a CSV), else in ``clip.txt`` beside
    ``clip.mp4``, else ``prompt``, else the name of the file if it has two or more words
    (``a_red_circle-3.mp4``). ``prompt`` and ``fps`` are for clips that have none of their own; a
    rate that nobody gives is the file's.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise UserError("fps cannot be used", received=fps, expected="a positive number")
    inputs = []
    if source.is_dir():
        inputs = _from_folder(source, prompt, fps)
    elif source.suffix.lower() == ".csv":
        rows = checked_rows(read_csv(source, ()), _Listed, source)
        inputs = [_input(source.parent, row.path, row, prompt, fps) for row in rows]
    elif source.exists():
        inputs = [ScoreInput(name=str(source), path=source, prompt=prompt.strip(), fps=fps)]
    if not inputs:
        raise UserError(
            "nothing to score",
            received=str(source),
            expected="a video file, a CSV with the columns path and prompt, or a folder with files "
            "that end in " + ", ".join(sorted(VIDEO_SUFFIXES)),
            remedy="check the path",
        )
    return inputs


def _from_folder(folder: Path, prompt: str, fps: float | None) -> list[ScoreInput]:
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")
    )
    listed = {}
    if (folder / CAPTIONS).is_file():
        rows = checked_rows(read_csv(folder / CAPTIONS, ()), _Listed, folder / CAPTIONS)
        listed = {row.path: row for row in rows}
        if absent := sorted(set(listed) - set(names)):
            raise UserError(
                f"{CAPTIONS} names videos that are not in the folder",
                received=", ".join(absent[:3]),
                expected=f"paths relative to {folder}",
            )
    inputs = []
    for name in names:
        row = listed.get(name) or _Listed(path=name, prompt=_beside(folder / name))
        item = _input(folder, name, row, prompt, fps)
        if not item.prompt and (words := _words(item.path.stem)):
            item = item.model_copy(update={"prompt": words, "notes": (NAMED_NOTE,)})
        inputs.append(item)
    return inputs


def _input(folder: Path, name: str, row: _Listed, prompt: str, fps: float | None) -> ScoreInput:
    return ScoreInput(
        name=name,
        path=folder / name,
        prompt=row.prompt.strip() or prompt.strip(),
        fps=fps if row.fps is None else row.fps,
    )


def _beside(video: Path) -> str:
    """Text of the file beside a video, if there is one."""
    caption = video.with_suffix(".txt")
    try:
        return caption.read_text(encoding="utf-8") if caption.is_file() else ""
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read a caption: {error}", received=str(caption), expected="text in UTF-8"
        ) from error


def _words(stem: str) -> str:
    """Two or more words of a file's name without the number at its end, else nothing."""
    # Generators number their samples: `a cat-3` is the fourth sample of "a cat", no other prompt.
    words = re.sub(r"[-_ ]*\d+$", "", stem).replace("_", " ").split()
    return " ".join(words) if sum(word.isalpha() for word in words) > 1 else ""


class ScoreRow(BaseModel):
    """Scores of one clip."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Name of the clip: relative to the folder or as in the CSV."""
    prompt: str
    """Caption that was used."""
    fps: float | None
    """Playback rate that was used; None when there is none."""
    frames: int | None
    """Number of frames; None when the file could not be read."""
    scores: Mapping[str, float | None]
    """Score by reward; None where unscored."""
    unscored: Mapping[str, str] = {}
    """Reason by reward, for the unscored ones."""
    notes: Sequence[str] = ()
    """What a reader of the scores should know."""
    settings: str
    """Digest of the fingerprints of the rewards."""
    digest: str
    """Digest of the file, the caption, the given rate and the settings; empty without a file."""


def check_table(path: Path) -> None:
    """Refuse an output of another format before anything is scored."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(
            "the output format is unknown",
            received=path.name,
            expected="a name that ends in .csv or .jsonl",
        )


def read_table(path: Path, names: Sequence[str]) -> list[ScoreRow]:
    """The rows of a table of scores of these rewards; none without a file."""
    if not path.exists():
        return []
    try:
        records = read_jsonl(path) if path.suffix.lower() == ".jsonl" else _csv_records(path, names)
        rows = [ScoreRow.model_validate(record) for record in records]
        if any(set(row.scores) != set(names) for row in rows):
            raise ValueError(f"it holds scores of {', '.join(rows[0].scores)}")
    except (OSError, ValueError, UserError) as error:  # pydantic's and JSON's are ValueErrors
        reason = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else error
        raise UserError(
            f"the output file cannot be continued: {reason}",
            received=str(path),
            expected=f"a table of scores of {', '.join(names)}",
            remedy="choose another --output",
        ) from error
    return rows


def write_table(path: Path, names: Sequence[str], rows: Sequence[ScoreRow]) -> None:
    """Write the whole table; the file is the old one or the new one, also after a kill."""
    records = [row.model_dump() for row in rows]
    if path.suffix.lower() == ".jsonl":
        write_jsonl(path, records)
        return
    cells = [
        [
            *(record[name] for name in _BEFORE),
            *(record["scores"][name] for name in names),
            _text(record["unscored"]),
            _text(list(record["notes"])),
            record["settings"],
            record["digest"],
        ]
        for record in records
    ]
    # As objects: pandas would write whole numbers beside a gap as 17.0.
    write_csv(path, pd.DataFrame(cells, columns=[*_BEFORE, *names, *_AFTER], dtype=object))


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""


def _csv_records(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    table = read_csv(path, ())
    if list(table.columns) != [*_BEFORE, *names, *_AFTER]:
        raise ValueError(f"its columns are {', '.join(table.columns)}")
    return [
        {
            "path": cells["path"],
            "prompt": cells["prompt"],
            "fps": cells["fps"] or None,
            "frames": cells["frames"] or None,
            "scores": {name: cells[name] or None for name in names},
            "unscored": json.loads(cells["unscored"] or "{}"),
            "notes": json.loads(cells["notes"] or "[]"),
            "settings": cells["settings"],
            "digest": cells["digest"],
        }
        for cells in table.to_dict("records")
    ]
