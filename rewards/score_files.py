"""Scoring of video files by registered rewards: the engine of ``rewards score``.

Every clip is decoded once, handed to all rewards in memory, and recorded as soon as it is scored;
small clips of one size are scored several at a time. A clip that cannot be scored is a row with the
reason, and the rest goes on.
"""

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from longtake.core.video import read_video
from longtake.rewards.contract import Reward, VideoBatch
from longtake.rewards.registry import load_suite, split_sources
from longtake.rewards.remote_protocol import fingerprint_digest
from longtake.rewards.score_inputs import ScoreInput, find_inputs
from longtake.rewards.score_table import ScoreRow, append_row, read_table, write_table
from longtake.rewards.suite import RewardSuite
from longtake.runtime.device import pick_device
from longtake.runtime.errors import UserError
from longtake.runtime.files import digest, to_plain
from longtake.runtime.progress import progress_bar, result_table

MAX_FRAMES = 1000
"""Longest clip by default: 93 frames of 480x832 take 106 MiB, 1000 frames of 1080p take 6 GiB."""

BATCH_CLIPS = 16
BATCH_BYTES = 2**25
"""Clips of one size are scored together up to here: small ones keep a GPU busy only in numbers, and
one of 93 frames of 480x832 is a batch by itself."""

_SHOWN_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """What :func:`score_files` did.

    Args:
        names: the rewards.
        rows: one row per clip, in the order of the input.
        resumed: how many rows were in the output already.
        fingerprint: fingerprints of the rewards.
    """

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


def score_files(
    source: Path,
    reward_names: Sequence[str],
    *,
    prompt: str = "",
    fps: float | None = None,
    output: Path | None = None,
    device: str = "auto",
    max_frames: int = MAX_FRAMES,
) -> ScoreReport:
    """Score a video, the videos of a folder, or the rows of a CSV.

    With ``output``, a row is written as soon as its clip is scored. Run again, rows that are
    completely scored from the same file, caption, rate and rewards are kept; the others are
    scored again.

    Args:
        source: see :func:`longtake.rewards.score_inputs.find_inputs`.
        reward_names: ``NAME`` or ``NAME=SOURCE`` (:mod:`longtake.rewards.registry`).
        prompt: caption of the clips that have none of their own.
        fps: playback rate of the clips that have none of their own; None takes the file's.
        output: ``.csv`` or ``.jsonl`` to write and to resume from; None keeps nothing.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_frames: longer clips are unscored instead of filling the memory.

    Raises:
        UserError: an input, a reward, a device or an output file that cannot be used.
    """
    return score_clips(
        find_inputs(source, prompt, fps),
        reward_names,
        output=output,
        device=device,
        max_frames=max_frames,
    )


def score_clips(
    inputs: Sequence[ScoreInput],
    reward_names: Sequence[str],
    *,
    output: Path | None = None,
    device: str = "auto",
    max_frames: int = MAX_FRAMES,
) -> ScoreReport:
    """Score clips that are known one by one; arguments and errors as :func:`score_files`."""
    target = pick_device(device)
    plain, sources = split_sources(reward_names)
    suite = load_suite(dict.fromkeys(plain, 1.0), sources, device=str(target))
    fingerprint = to_plain({name: reward.fingerprint() for name, reward in suite.rewards.items()})
    settings = fingerprint_digest(fingerprint)
    names = suite.names
    rows: dict[int, ScoreRow] = {}
    if output is not None:
        rows = _resume(output, names, settings, inputs)
    resumed = len(rows)
    with progress_bar("scoring", len(inputs), completed=resumed) as bar:
        missing = [index for index in range(len(inputs)) if index not in rows]
        decoded = (_decode(inputs[index], suite.rewards, max_frames) for index in missing)
        indices = iter(missing)
        for batch in _batches(decoded):
            for row in _score(batch, suite.rewards, settings, target):
                rows[next(indices)] = row
                if output is not None:
                    append_row(output, names, row)
            bar.update(len(rows), **row.scores)
    return ScoreReport(
        names=names,
        rows=[rows[index] for index in range(len(inputs))],
        resumed=resumed,
        fingerprint=fingerprint,
    )


def _resume(
    output: Path, names: Sequence[str], settings: str, inputs: Sequence[ScoreInput]
) -> dict[int, ScoreRow]:
    """Rows of the inputs that are done, by index; drops from the file what is scored again."""
    found = read_table(output, names)
    if other := {row.settings for row in found} - {settings}:
        raise UserError(
            "the output file was written by other versions or settings of the rewards",
            received=f"{output} with settings {sorted(other)[0][:12]}",
            expected=f"settings {settings[:12]}",
            remedy="choose another --output; scores of the two are not comparable",
        )
    by_clip: dict[tuple[str, str], dict[str, ScoreRow]] = {}
    for row in found:
        by_clip.setdefault((row.path, row.prompt), {})[row.digest] = row
    done: dict[int, ScoreRow] = {}
    for index, item in enumerate(inputs):
        candidates = by_clip.get((item.name, item.prompt), {})
        # Only files that have a row are read for their digest here.
        match = candidates.get(_digest(item, settings)) if candidates else None
        if match is not None and match.digest and not match.unscored:
            done[index] = match
    asked = {(item.name, item.prompt) for item in inputs}
    finished = {(row.path, row.digest) for row in done.values()}
    write_table(
        output,
        names,
        [
            row
            for row in found
            if (row.path, row.prompt) not in asked or (row.path, row.digest) in finished
        ],
    )
    return done


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
    """A decoded clip, or why there is none.

    Args:
        item: what was asked for.
        video: uint8 [T, 3, H, W]; None when it cannot be used.
        fps: playback rate, None when nothing states it.
        reasons: why rewards cannot score it, by reward.
    """

    item: ScoreInput
    video: Tensor | None
    fps: float | None
    reasons: Mapping[str, str]

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
        if item.problem is not None:
            raise UserError(item.problem)
        video, rate = read_video(item.path, max_frames + 1)
        if len(video) > max_frames:
            raise UserError(f"the clip has more than {max_frames} frames")
    except UserError as error:
        reasons = dict.fromkeys(rewards, error.what)
        return _Clip(item=item, video=None, fps=item.fps, reasons=reasons)
    fps = rate if item.fps is None and math.isfinite(rate) else item.fps
    return _Clip(item=item, video=video, fps=fps, reasons=_missing(rewards, item.prompt, fps))


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


def score_clip(
    item: ScoreInput,
    rewards: Mapping[str, Reward],
    settings: str,
    device: torch.device,
    max_frames: int,
) -> ScoreRow:
    """Decode and score one clip; whatever goes wrong becomes its reason.

    Args:
        item: the clip.
        rewards: by name.
        settings: digest of their fingerprints, recorded in the row.
        device: where the rewards are.
        max_frames: a longer clip is unscored.
    """
    return _score([_decode(item, rewards, max_frames)], rewards, settings, device)[0]


def _score(
    clips: Sequence[_Clip], rewards: Mapping[str, Reward], settings: str, device: torch.device
) -> list[ScoreRow]:
    """Rows of clips that fit into one batch."""
    scores: list[dict[str, float | None]] = [dict.fromkeys(rewards) for _ in clips]
    reasons = [dict(clip.reasons) for clip in clips]
    notes: list[list[str]] = [[] for _ in clips]
    ready = {name: (reward, 1.0) for name, reward in rewards.items() if name not in reasons[0]}
    videos = [clip.video for clip in clips if clip.video is not None]
    if videos and ready:
        batch = VideoBatch(
            video=torch.stack(videos).to(device),
            prompts=[clip.item.prompt for clip in clips],
            # Without a rate, only rewards are left that do not depend on it.
            fps=torch.tensor([clip.fps or 1.0 for clip in clips], dtype=torch.float64),
        )
        result = RewardSuite(ready).score(batch)
        for name, row in result.rows.items():
            for place, score in enumerate(row):
                scores[place][name] = score.value
                if score.reason is not None:
                    reasons[place][name] = score.reason
                if score.note:
                    notes[place].append(f"{name}: {score.note}")
    return [
        ScoreRow(
            path=clip.item.name,
            prompt=clip.item.prompt,
            fps=clip.fps,
            frames=None if clip.video is None else len(clip.video),
            scores=scores[place],
            unscored=reasons[place],
            notes=notes[place],
            settings=settings,
            digest=_digest(clip.item, settings),
        )
        for place, clip in enumerate(clips)
    ]


def _missing(rewards: Mapping[str, Reward], prompt: str, fps: float | None) -> dict[str, str]:
    """Reason by reward, for the rewards that need what the clip does not have."""
    reasons = {}
    for name, reward in rewards.items():
        if reward.needs_prompt and not prompt:
            reasons[name] = "the clip has no caption"
        elif reward.needs_time and fps is None:
            reasons[name] = "the file states no frame rate; give the fps"
    return reasons


def print_report(report: ScoreReport, *, as_json: bool) -> None:
    """Print to standard output: JSON for machines, or a table for people.

    The table shows the first rows, the means, and the reasons of unscored clips.
    """
    if as_json:
        content = {
            "rewards": report.fingerprint,
            "mean": report.means(),
            "unscored": report.unscored(),
            "resumed": report.resumed,
            "rows": [vars(row) for row in report.rows],
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
    if len(report.rows) > _SHOWN_ROWS:
        console.print(Text(f"{len(report.rows) - _SHOWN_ROWS} more rows are not shown"))
    for line in _remarks(report):
        console.print(Text(line), soft_wrap=True)


def _remarks(report: ScoreReport) -> list[str]:
    """Reasons and notes, each once with the number of clips."""
    tally: dict[str, int] = {}
    for row in report.rows:
        by_reason: dict[str, list[str]] = {}
        for name, reason in row.unscored.items():
            by_reason.setdefault(reason, []).append(name)
        texts = [f"unscored by {', '.join(names)}: {why}" for why, names in by_reason.items()]
        for text in (*texts, *row.notes):
            tally[text] = tally.get(text, 0) + 1
    return [f"{text} ({count})" for text, count in tally.items()]
