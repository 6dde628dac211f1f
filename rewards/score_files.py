"""Scoring of video files by rewards: the engine of ``rewards score``.

Every clip is decoded once, handed to all rewards in memory, and recorded soon after it is scored;
small clips of one size are scored several at a time. A clip that cannot be scored is a row with the
reason, and the rest goes on. The second half reads what is asked for, and the table of scores.
"""

import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.text import Text
from torch import Tensor

from longtake.core.video import read_video
from longtake.rewards.contract import Reward, VideoBatch, fingerprint_digest
from longtake.rewards.registry import load_rewards, split_sources
from longtake.rewards.suite import RewardSuite
from longtake.runtime.device import pick_device
from longtake.runtime.errors import UserError
from longtake.runtime.files import (
    checked_rows,
    digest,
    read_csv,
    read_jsonl,
    to_plain,
    write_csv,
    write_jsonl,
)
from longtake.runtime.progress import progress_bar, result_table

# Files of a folder that count as videos: formats that state a frame rate.
VIDEO_SUFFIXES = frozenset(
    [".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm"]
)
CAPTIONS = "captions.csv"
NAMED_NOTE = "the caption is the name of the file"

_BEFORE = ("path", "prompt", "fps", "frames")
_AFTER = ("unscored", "notes", "settings", "digest")
# Longest clip by default: 93 frames of 480x832 take 106 MiB, 1000 frames of 1080p take 6 GiB.
MAX_FRAMES = 1000
TINY_NOTE = (
    "These rewards learned from lossless 64x64 sandbox clips. Lossy H.264 moves them: clean renders"
    " score hpsv3_general 1.33 lossless, -0.60 as H.264 at 64 px, 0.46 at 256 px. Compare clips"
    " that were encoded alike."
)

# Small clips keep a GPU busy only in numbers; one of 93 frames of 480x832 is a batch by itself.
BATCH_CLIPS, BATCH_BYTES = 16, 2**25
# The table is written whole, so that a kill tears no row, and costs the rows of so many seconds.
SAVE_EVERY_S = 5.0

_SHOWN_ROWS = 20


class ScoreInput(BaseModel):
    """One clip to score; ``name`` is its path as it is recorded."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: Path
    prompt: str = ""
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


class ScoreRow(BaseModel):
    """Scores of one clip, by reward; None where unscored, with the reason in ``unscored``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    prompt: str
    fps: float | None
    frames: int | None
    """None when the file could not be read."""
    scores: Mapping[str, float | None]
    unscored: Mapping[str, str] = {}
    notes: Sequence[str] = ()
    settings: str
    """Digest of the fingerprints of the rewards."""
    digest: str
    """Digest of the file, the caption, the given rate and the settings; empty without a file."""


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """One row per clip in the order of the input, of which ``resumed`` were in the output."""

    names: tuple[str, ...]
    rows: Sequence[ScoreRow]
    resumed: int
    fingerprint: Mapping[str, object]

    def column(self, name: str) -> list[float]:
        """The scores of one reward that exist."""
        return [score for row in self.rows if (score := row.scores[name]) is not None]

    def unscored(self) -> dict[str, int]:
        """Number of clips without a score, by reward."""
        return {name: len(self.rows) - len(self.column(name)) for name in self.names}

    def means(self) -> dict[str, float]:
        """Mean of the scores that exist, by reward; NaN without any."""
        columns = {name: self.column(name) for name in self.names}
        return {name: sum(c) / len(c) if c else math.nan for name, c in columns.items()}


def score_clips(
    inputs: Sequence[ScoreInput],
    reward_names: Sequence[str],
    *,
    output: Path | None = None,
    device: str = "auto",
    max_frames: int = MAX_FRAMES,
) -> ScoreReport:
    """Score clips by rewards ``NAME`` or ``NAME=SOURCE`` (``rewards/registry.py``).

    Rows of ``output`` that are completely scored from the same file, caption, rate and rewards are
    kept. Clips of more than ``max_frames`` are unscored instead of filling the memory.
    """
    target = pick_device(device)
    if output is not None:
        check_table(output)
    rewards = load_rewards(*split_sources(reward_names), device=str(target))
    fingerprint = to_plain({name: reward.fingerprint() for name, reward in rewards.items()})
    settings = fingerprint_digest(fingerprint)
    names = tuple(rewards)
    rows: dict[int, ScoreRow] = {}
    others: list[ScoreRow] = []
    if output is not None:
        rows, others = _resumed(output, names, settings, inputs)

    def save() -> None:
        if output is not None:
            write_table(output, names, [*others, *(rows[index] for index in sorted(rows))])

    resumed = len(rows)
    save()  # tells at once when the file cannot be written
    saved = time.monotonic()
    with progress_bar("scoring", len(inputs), completed=resumed) as bar:
        missing = [index for index in range(len(inputs)) if index not in rows]
        # Lazily: one decoded batch is in memory, not all clips.
        decoded = (_decode(inputs[index], rewards, max_frames) for index in missing)
        indices = iter(missing)
        try:
            for batch in _batches(decoded):
                for row in _score(batch, rewards, settings, target):
                    rows[next(indices)] = row
                bar.update(len(rows), **row.scores)
                if time.monotonic() - saved > SAVE_EVERY_S:
                    save()
                    saved = time.monotonic()
        finally:
            save()
    ordered = [rows[index] for index in range(len(inputs))]
    return ScoreReport(names=names, rows=ordered, resumed=resumed, fingerprint=fingerprint)


def score_clip(
    item: ScoreInput,
    rewards: Mapping[str, Reward],
    settings: str,
    device: torch.device,
    max_frames: int = MAX_FRAMES,
) -> ScoreRow:
    """Score one clip; ``settings`` is the digest of the rewards' fingerprints."""
    return _score([_decode(item, rewards, max_frames)], rewards, settings, device)[0]


def _resumed(
    output: Path, names: Sequence[str], settings: str, inputs: Sequence[ScoreInput]
) -> tuple[dict[int, ScoreRow], list[ScoreRow]]:
    """Rows of the inputs that are done, by index, and rows of other clips, which stay."""
    table = read_table(output, names)
    if other := {row.settings for row in table} - {settings}:
        raise UserError(
            "the output file was written by other versions or settings of the rewards",
            received=f"{output} with settings {sorted(other)[0][:12]}",
            expected=f"settings {settings[:12]}, since scores of the two are not comparable",
            remedy="choose another --output",
        )
    by_clip: dict[tuple[str, str], dict[str, ScoreRow]] = {}
    for row in table:
        by_clip.setdefault((row.path, row.prompt), {})[row.digest] = row
    done: dict[int, ScoreRow] = {}
    for index, item in enumerate(inputs):
        # Only files that have a row are read for their digest here.
        if candidates := by_clip.get((item.name, item.prompt)):
            match = candidates.get(_digest(item, settings))
            # Unscored clips are tried again: a server may be back, a file mended.
            if match is not None and match.digest and not match.unscored:
                done[index] = match
    asked = {(item.name, item.prompt) for item in inputs}
    return done, [row for row in table if (row.path, row.prompt) not in asked]


def _digest(item: ScoreInput, settings: str) -> str:
    """Digest of everything that fixes the row; empty when the file cannot be read."""
    try:
        row = {"video": digest(item.path), "prompt": item.prompt, "fps": item.fps}
    except OSError:
        return ""
    return fingerprint_digest({**row, "settings": settings})


@dataclass(frozen=True, kw_only=True, eq=False)
class _Clip:
    """A decoded clip uint8 [T, 3, H, W], or why rewards cannot score it, by reward."""

    item: ScoreInput
    video: Tensor | None
    fps: float | None
    """None when nothing states it."""
    reasons: Mapping[str, str]

    def batch_key(self) -> object:
        """Equal for clips that can be scored in one batch; one without a video goes alone."""
        shape = id(self) if self.video is None else self.video.shape
        return shape, self.reasons.keys(), self.fps is None


def _decode(item: ScoreInput, rewards: Mapping[str, Reward], max_frames: int) -> _Clip:
    try:
        # One more than allowed tells a long clip without decoding all of it.
        video, rate = read_video(item.path, max_frames + 1)
        if len(video) > max_frames:
            raise UserError(f"the clip has more than {max_frames} frames")
    except UserError as error:
        reasons = dict.fromkeys(rewards, error.what)
        return _Clip(item=item, video=None, fps=item.fps, reasons=reasons)
    fps = rate if item.fps is None and math.isfinite(rate) else item.fps
    reasons = {}
    for name, reward in rewards.items():
        if reward.needs_prompt and not item.prompt:
            reasons[name] = "the clip has no caption"
        elif reward.needs_time and fps is None:
            reasons[name] = "the file states no frame rate; give the fps"
    return _Clip(item=item, video=video, fps=fps, reasons=reasons)


def _batches(clips: Iterable[_Clip]) -> Iterator[list[_Clip]]:
    """Neighbours that fit, up to the size of a batch, in their order."""
    batch: list[_Clip] = []
    for clip in clips:
        size = 0 if clip.video is None else clip.video.nbytes
        full = len(batch) == BATCH_CLIPS or (len(batch) + 1) * size > BATCH_BYTES
        if batch and (full or clip.batch_key() != batch[0].batch_key()):
            yield batch
            batch = []
        batch.append(clip)
    if batch:
        yield batch


def _score(
    clips: Sequence[_Clip], rewards: Mapping[str, Reward], settings: str, device: torch.device
) -> list[ScoreRow]:
    """Rows of clips that fit into one batch."""
    scores: list[dict[str, float | None]] = [dict.fromkeys(rewards) for _ in clips]
    reasons = [dict(clip.reasons) for clip in clips]
    notes = [list(clip.item.notes) for clip in clips]
    ready = {name: (reward, 1.0) for name, reward in rewards.items() if name not in reasons[0]}
    videos = [clip.video for clip in clips if clip.video is not None]
    if videos and ready:
        batch = VideoBatch(
            video=torch.stack(videos).to(device),
            prompts=[clip.item.prompt for clip in clips],
            # Without a rate, only rewards are left that do not depend on it.
            fps=torch.tensor([clip.fps or 1.0 for clip in clips], dtype=torch.float64),
        )
        for name, column in RewardSuite(ready).score(batch).rows.items():
            for index, score in enumerate(column):
                scores[index][name] = score.value
                if score.reason is not None:
                    reasons[index][name] = score.reason
                if score.note:
                    notes[index].append(f"{name}: {score.note}")
    return [
        ScoreRow(
            path=clip.item.name,
            prompt=clip.item.prompt,
            fps=clip.fps,
            frames=None if clip.video is None else len(clip.video),
            scores=scores[index],
            unscored=reasons[index],
            notes=notes[index],
            settings=settings,
            digest=_digest(clip.item, settings),
        )
        for index, clip in enumerate(clips)
    ]


def print_report(report: ScoreReport, *, as_json: bool, note: str = "") -> None:
    """Print JSON for machines, or for people the first rows, the means and what is missing."""
    if as_json:
        content = {
            "rewards": report.fingerprint,
            "mean": report.means(),
            "unscored": report.unscored(),
            "resumed": report.resumed,
            "rows": [row.model_dump() for row in report.rows],
        }
        sys.stdout.write(json.dumps(to_plain(content), indent=2, allow_nan=False) + "\n")
        return
    cells = [
        [row.path, row.frames, *(row.scores[name] for name in report.names)]
        for row in report.rows[:_SHOWN_ROWS]
    ]
    if len(report.rows) > 1:
        means = report.means()
        cells.append([f"mean of {len(report.rows)}", None, *(means[name] for name in report.names)])
    console = Console()
    console.print(result_table("scores", ["clip", "frames", *report.names], cells))
    more = len(report.rows) - _SHOWN_ROWS
    lines = [f"{more} more rows are not shown"] if more > 0 else []
    for line in (*lines, *_remarks(report), *([note] if note else [])):
        console.print(Text(line), soft_wrap=True)


def _remarks(report: ScoreReport) -> list[str]:
    """Reasons and notes, each once with the number of clips."""
    tally: Counter[str] = Counter()
    for row in report.rows:
        for why in dict.fromkeys(row.unscored.values()):
            names = ", ".join(name for name, reason in row.unscored.items() if reason == why)
            tally[f"unscored by {names}: {why}"] += 1
        tally.update(row.notes)
    return [f"{text} ({count})" for text, count in tally.items()]


def find_inputs(source: Path, prompt: str = "", fps: float | None = None) -> list[ScoreInput]:
    """The clips of ``source``, in a fixed order.

    ``source`` is a video file; a ``.csv`` with the columns ``path`` (relative to the CSV),
    ``prompt`` and optionally ``fps``; or a folder, searched with its subfolders. The caption of a
    clip of a folder is in ``captions.csv`` there (such a CSV), else in ``clip.txt`` beside
    ``clip.mp4``, else ``prompt``, else the name of the file if it has two or more words
    (``a_red_circle-3.mp4``). ``prompt`` and ``fps`` are for clips that have none of their own; a
    rate that nobody gives is the file's.
    """
    if source.is_dir():
        inputs = _from_folder(source, prompt, fps)
    elif source.suffix.lower() == ".csv":
        rows = checked_rows(read_csv(source, ()), _Listed, source)
        inputs = [_input(source.parent, row.path, row, prompt, fps) for row in rows]
    else:
        inputs = [ScoreInput(name=str(source), path=source, prompt=prompt.strip(), fps=fps)]
        inputs = inputs if source.exists() else []
    if not inputs or not 0 < (1.0 if fps is None else fps) < math.inf:
        raise UserError(
            "nothing to score, or no usable fps",
            received=f"{source}, fps {fps}",
            expected="a video file, a CSV with the columns path and prompt, or a folder with files "
            f"that end in {', '.join(sorted(VIDEO_SUFFIXES))}; a positive fps, or none",
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
        {
            **{name: record[name] for name in _BEFORE},
            **record["scores"],
            **{name: _text(record[name]) for name in ("unscored", "notes")},
            **{name: record[name] for name in ("settings", "digest")},
        }
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
            **{name: cells[name] for name in ("path", "prompt", "settings", "digest")},
            **{name: cells[name] or None for name in ("fps", "frames")},
            "scores": {name: cells[name] or None for name in names},
            "unscored": json.loads(cells["unscored"] or "{}"),
            "notes": json.loads(cells["notes"] or "[]"),
        }
        for cells in table.to_dict("records")
    ]
