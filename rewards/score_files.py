"""Scoring of video files by rewards: the engine of ``rewards score``.

Every clip is decoded once, handed to all rewards in memory, and recorded soon after it is scored;
small clips of one size are scored several at a time. A clip that cannot be scored is a row with the
reason, and the rest goes on.
"""

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from longtake.core.video import read_video
from longtake.rewards.contract import Reward, VideoBatch, fingerprint_digest
from longtake.rewards.registry import load_rewards, split_sources
from longtake.rewards.score_table import (
    ScoreInput,
    ScoreRow,
    check_table,
    read_table,
    write_table,
)
from longtake.rewards.suite import RewardSuite
from longtake.runtime.device import pick_device
from longtake.runtime.errors import UserError
from longtake.runtime.files import digest, to_plain
from longtake.runtime.progress import progress_bar, result_table

MAX_FRAMES = 1000
"""Longest clip by default: 93 frames of 480x832 take 106 MiB, 1000 frames of 1080p take 6 GiB."""
TINY_NOTE = (
    "These rewards learned from lossless 64x64 sandbox clips. Lossy H.264 moves them: clean renders"
    " score hpsv3_general 1.33 lossless, -0.60 as H.264 at 64 px, 0.46 at 256 px. Compare clips"
    " that were encoded alike."
)

BATCH_CLIPS = 16
BATCH_BYTES = 2**25
"""Clips of one size are scored together up to here: small ones keep a GPU busy only in numbers, and
one of 93 frames of 480x832 is a batch by itself."""
SAVE_EVERY_S = 5.0
"""The table is written whole, so that a kill tears no row, and costs the rows of so many seconds at
most."""

_SHOWN_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """What :func:`score_clips` did: one row per clip, in the order of the input."""

    names: tuple[str, ...]
    """The rewards."""
    rows: Sequence[ScoreRow]
    resumed: int
    """How many rows were in the output already."""
    fingerprint: Mapping[str, object]
    """Fingerprints of the rewards."""

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

    With ``output``, a ``.csv`` or ``.jsonl``, rows that are there and completely scored from the
    same file, caption, rate and rewards are kept, the others are scored again. Clips of more than
    ``max_frames`` are unscored instead of filling the memory.
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
        # Lazily: one decoded batch is in memory, not all clips.
        missing = [index for index in range(len(inputs)) if index not in rows]
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
    return ScoreReport(
        names=names,
        rows=[rows[index] for index in range(len(inputs))],
        resumed=resumed,
        fingerprint=fingerprint,
    )


def score_clip(
    item: ScoreInput,
    rewards: Mapping[str, Reward],
    settings: str,
    device: torch.device,
    max_frames: int = MAX_FRAMES,
) -> ScoreRow:
    """Decode and score one clip; whatever goes wrong becomes its reason.

    ``settings`` is the digest of the rewards' fingerprints, which the row records.
    """
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
            expected=f"settings {settings[:12]}",
            remedy="choose another --output; scores of the two are not comparable",
        )
    by_clip: dict[tuple[str, str], dict[str, ScoreRow]] = {}
    for row in table:
        by_clip.setdefault((row.path, row.prompt), {})[row.digest] = row
    done: dict[int, ScoreRow] = {}
    for index, item in enumerate(inputs):
        candidates = by_clip.get((item.name, item.prompt), {})
        # Only files that have a row are read for their digest here.
        match = candidates.get(_digest(item, settings)) if candidates else None
        # Unscored clips are tried again: a server may be back, a file mended.
        if match is not None and match.digest and not match.unscored:
            done[index] = match
    asked = {(item.name, item.prompt) for item in inputs}
    return done, [row for row in table if (row.path, row.prompt) not in asked]


def _digest(item: ScoreInput, settings: str) -> str:
    """Digest of everything that fixes the row; empty when the file cannot be read."""
    try:
        content = digest(item.path)
    except OSError:
        return ""
    return fingerprint_digest(
        {"video": content, "prompt": item.prompt, "fps": item.fps, "settings": settings}
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Clip:
    """A decoded clip, or why there is none."""

    item: ScoreInput
    video: Tensor | None
    """uint8 [T, 3, H, W]."""
    fps: float | None
    """None when nothing states it."""
    reasons: Mapping[str, str]
    """Why rewards cannot score it, by reward."""

    def fits(self, other: "_Clip") -> bool:
        """Whether both can be scored in one batch."""
        if self.video is None or other.video is None:
            return False
        return (
            self.video.shape == other.video.shape
            and self.reasons.keys() == other.reasons.keys()
            and (self.fps is None) == (other.fps is None)
        )


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
        if batch and (full or not clip.fits(batch[0])):
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
        by_reason: dict[str, list[str]] = {}
        for name, reason in row.unscored.items():
            by_reason.setdefault(reason, []).append(name)
        tally.update(f"unscored by {', '.join(names)}: {why}" for why, names in by_reason.items())
        tally.update(row.notes)
    return [f"{text} ({count})" for text, count in tally.items()]
