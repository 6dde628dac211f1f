"""Score the videos of a study again, with a model: nothing is generated, everything is resumed.

A scorer looks at one video and its caption. Its scores become records of kind ``automatic`` in the
same log format as the ratings of people.
"""

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from longtake import __version__
from longtake.evaluation.findings import Finding
from longtake.evaluation.records import Rating, append_ratings, read_log
from longtake.evaluation.samples import Sample, SampleList
from longtake.runtime.errors import UserError
from longtake.runtime.provenance import digest


class Scorer(Protocol):
    """A model that rates one video."""

    @property
    def name(self) -> str:
        """Name and version: scores of two names are never mixed."""

    @property
    def dimensions(self) -> tuple[str, ...]:
        """What it scores."""

    @property
    def calibration(self) -> str:
        """What maps its scores to the raters' scale; empty when nothing does."""

    def score(self, video: Path, caption: str) -> Mapping[str, tuple[float | None, str]]:
        """Dimension -> (score, why there is none)."""


class RewardScorer:
    """Reward models as a scorer: one dimension for each reward, on the reward's own scale.

    Args:
        rewards: ``NAME`` or ``NAME=SOURCE`` (:mod:`longtake.rewards.sources`).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_frames: longer clips are unscored instead of filling the memory.

    Raises:
        UserError: a reward or a device that cannot be used.
    """

    calibration = ""

    def __init__(
        self, rewards: Sequence[str], *, device: str = "auto", max_frames: int = 1000
    ) -> None:
        from longtake.rewards import load_rewards
        from longtake.rewards.remote_protocol import fingerprint_digest
        from longtake.rewards.sources import split_sources
        from longtake.runtime.device import pick_device
        from longtake.runtime.run_directory import to_plain

        names, sources = split_sources(rewards)
        self._device = pick_device(device)
        self._rewards = load_rewards(names, sources, device=str(self._device))
        fingerprint = {name: reward.fingerprint() for name, reward in self._rewards.items()}
        self._settings = fingerprint_digest(to_plain(fingerprint))
        self._max_frames = max_frames
        self.dimensions = tuple(names)
        self.name = f"rewards@{self._settings[:12]}"

    def score(self, video: Path, caption: str) -> Mapping[str, tuple[float | None, str]]:
        """Dimension -> (score, why there is none)."""
        from longtake.rewards.score_files import score_clip
        from longtake.rewards.score_inputs import ScoreInput

        item = ScoreInput(name=str(video), path=video, prompt=caption)
        row = score_clip(item, self._rewards, self._settings, self._device, self._max_frames)
        return {name: (score, row.unscored.get(name, "")) for name, score in row.scores.items()}


@dataclass(frozen=True, kw_only=True)
class RescoreReport:
    """What :func:`rescore` did."""

    scored: int
    """New scores in the log."""
    unscored: int
    """New records without a score, with a reason."""
    kept: int
    """Scores of this scorer for the same videos that were in the log."""
    findings: tuple[Finding, ...]
    """What is irregular in the log."""


def rescore(
    samples: SampleList,
    scorer: Scorer,
    log: Path,
    on_progress: Callable[[int], None] = lambda _: None,
) -> RescoreReport:
    """Score every sample that the log does not have, one appended record per dimension.

    A score is kept when the log has one of the same scorer for the same content of the video. A
    missing or unreadable video becomes records without a score; a later call tries it again.

    Args:
        samples: the videos.
        scorer: the model.
        log: ``.jsonl`` to continue or to begin.
        on_progress: called with the number of finished samples.

    Raises:
        UserError: the log cannot be read or written.
    """
    if log.suffix.lower() != ".jsonl":
        raise UserError(
            "the log has an unknown format", received=str(log), expected="a .jsonl file"
        )
    earlier, findings = read_log(log) if log.exists() else ([], ())
    done = {
        (*rating.key, rating.provenance.get("video"))
        for rating in earlier
        if rating.score is not None
    }
    scored = unscored = kept = 0
    for finished, sample in enumerate(samples.samples, start=1):
        path = samples.video_path(sample)
        content = digest(path) if path is not None and path.is_file() else None
        keys = ((sample.sample, d, scorer.name, content) for d in scorer.dimensions)
        open_dimensions = [key[1] for key in keys if key not in done]
        kept += len(scorer.dimensions) - len(open_dimensions)
        if open_dimensions:
            found = _score(scorer, sample, path, content)
            ratings = list(_records(scorer, sample, content, open_dimensions, found))
            append_ratings(log, ratings)
            unscored += sum(rating.score is None for rating in ratings)
            scored += sum(rating.score is not None for rating in ratings)
        on_progress(finished)
    return RescoreReport(scored=scored, unscored=unscored, kept=kept, findings=findings)


def _score(
    scorer: Scorer, sample: Sample, path: Path | None, content: str | None
) -> Mapping[str, tuple[float | None, str]]:
    if path is not None and content is not None:
        return scorer.score(path, sample.caption)
    reason = "the list names no video" if path is None else f"video not found: {path}"
    return dict.fromkeys(scorer.dimensions, (None, reason))


def _records(
    scorer: Scorer,
    sample: Sample,
    content: str | None,
    dimensions: Iterable[str],
    found: Mapping[str, tuple[float | None, str]],
) -> Iterable[Rating]:
    provenance = {"video": content, "longtake": __version__, "calibration": scorer.calibration}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for dimension in dimensions:
        score, reason = found[dimension]
        yield Rating(
            sample=sample.sample,
            dimension=dimension,
            rater=scorer.name,
            score=score,
            reason=reason,
            kind="automatic",
            model=sample.model,
            prompt=sample.prompt,
            cluster=sample.cluster,
            time=now,
            provenance=provenance,
        )
