"""Score the videos of a study with a model: nothing is generated, everything is resumed.

A scorer looks at videos and their captions. Its scores become records of kind ``automatic`` in the
same log format as the ratings of people.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from longtake import __version__
from longtake.evaluation.ratings import (
    Finding,
    Rating,
    Sample,
    SampleList,
    append_ratings,
    read_ratings,
)
from longtake.rewards.contract import Score
from longtake.runtime.errors import UserError
from longtake.runtime.files import digest

VideoScores = Mapping[str, Score]
"""Of one video: dimension -> score."""


class Scorer(Protocol):
    """A model that rates videos."""

    name: str
    """Name and version: scores of two names are never mixed."""
    dimensions: tuple[str, ...]
    calibration: str
    """What maps its scores to the raters' scale; empty when nothing does."""
    batch: int
    """Videos that are scored together, and lost together when the run is stopped."""

    def score(self, clips: Sequence[tuple[Path, str]]) -> list[VideoScores]:
        """The scores of each video with its caption."""


class RewardScorer:
    """Reward models as a scorer: one dimension for each reward, on the reward's own scale.

    Longer clips than ``max_frames`` are unscored instead of filling the memory.
    """

    calibration = ""
    batch = 1

    def __init__(
        self, rewards: Sequence[str], *, device: str = "auto", max_frames: int = 1000
    ) -> None:
        from longtake.rewards.contract import fingerprint_digest
        from longtake.rewards.registry import load_rewards, split_sources
        from longtake.runtime.device import pick_device
        from longtake.runtime.files import to_plain

        names, sources = split_sources(rewards)
        self._device = pick_device(device)
        self._rewards = load_rewards(names, sources, device=str(self._device))
        fingerprint = {name: reward.fingerprint() for name, reward in self._rewards.items()}
        self._settings = fingerprint_digest(to_plain(fingerprint))
        self._max_frames = max_frames
        self.dimensions = tuple(names)
        self.name = f"rewards@{self._settings[:12]}"

    def score(self, clips: Sequence[tuple[Path, str]]) -> list[VideoScores]:
        """The scores of each video with its caption."""
        return [self._score(video, caption) for video, caption in clips]

    def _score(self, video: Path, caption: str) -> VideoScores:
        from longtake.rewards.score_files import ScoreInput, score_clip

        item = ScoreInput(name=str(video), path=video, prompt=caption)
        row = score_clip(item, self._rewards, self._settings, self._device, self._max_frames)
        return {
            name: Score.unscored(row.unscored.get(name, "")) if value is None else Score(value)
            for name, value in row.scores.items()
        }


@dataclass(frozen=True, kw_only=True)
class RescoreReport:
    """What :func:`rescore` did."""

    scored: int
    unscored: int
    """New records without a score, with a reason."""
    kept: int
    """Scores of this scorer for the same videos that were in the log."""
    findings: tuple[Finding, ...]


class _Task(NamedTuple):
    """A sample that the log lacks scores of."""

    sample: Sample
    path: Path | None
    content: str | None
    """Digest of the video; None where there is none."""
    dimensions: list[str]


def rescore(
    samples: SampleList,
    scorer: Scorer,
    log: Path,
    on_progress: Callable[[int], None] = lambda _: None,
) -> RescoreReport:
    """Score every sample that the log does not have, one appended record per dimension.

    A score is kept when the log has one of the same scorer for the same content of the video. A
    missing or unreadable video becomes records without a score; a later call tries it again.
    ``on_progress`` is called with the number of finished samples.
    """
    if log.suffix.lower() != ".jsonl":  # a log of another ending could not be read again
        raise UserError("unknown format", received=str(log), expected="a .jsonl file")
    earlier, findings = read_ratings([log]) if log.exists() else ([], ())
    done = {(*r.key, r.provenance.get("video")) for r in earlier if r.score is not None}
    scored = unscored = kept = 0
    for start in range(0, len(samples.samples), scorer.batch):
        chunk = samples.samples[start : start + scorer.batch]
        tasks: list[_Task] = []
        for sample in chunk:
            path = samples.video_path(sample)
            # By content: a video that was made again under its name is another video.
            content = digest(path) if path is not None and path.is_file() else None
            keys = ((sample.sample, d, scorer.name, content) for d in scorer.dimensions)
            dimensions = [key[1] for key in keys if key not in done]
            kept += len(scorer.dimensions) - len(dimensions)
            if dimensions:
                tasks.append(_Task(sample, path, content, dimensions))
        ratings = _ratings(scorer, tasks)
        # After each chunk: a stopped run loses one chunk, and the next run goes on from the log.
        append_ratings(log, ratings)
        unscored += sum(rating.score is None for rating in ratings)
        scored += sum(rating.score is not None for rating in ratings)
        on_progress(start + len(chunk))
    return RescoreReport(scored=scored, unscored=unscored, kept=kept, findings=findings)


def _ratings(scorer: Scorer, tasks: Sequence[_Task]) -> list[Rating]:
    """A record for each task and dimension that it lacks."""
    clips = [(t.path, t.sample.caption) for t in tasks if t.path is not None and t.content]
    results = iter(scorer.score(clips) if clips else [])
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    ratings = []
    for task in tasks:
        reason = f"video not found: {task.path}" if task.path else "the list names no video"
        scores: VideoScores = dict.fromkeys(scorer.dimensions, Score.unscored(reason))
        if task.content:
            scores = next(results)
        ratings += [
            Rating(
                sample=task.sample.sample,
                dimension=dimension,
                rater=scorer.name,
                score=scores[dimension].value,
                reason=scores[dimension].reason or "",
                kind="automatic",
                model=task.sample.model,
                prompt=task.sample.prompt,
                cluster=task.sample.cluster,
                time=now,
                provenance={
                    "video": task.content,
                    "longtake": __version__,
                    "calibration": scorer.calibration,
                },
            )
            for dimension in task.dimensions
        ]
    return ratings
