"""Playable videos for a page: a few prompts, the models beside each other, within a budget.

Small videos go into the page as data URIs. Larger ones are linked relative to the page.
"""

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from longtake.evaluation.report.content import Video, VideoRow
from longtake.evaluation.samples import Sample, SampleList
from longtake.runtime.html import MEDIA, Embedder

VIDEO_NOTE = (
    "Beside each video: the mean of its n ratings, too few for an interval. The prompts with the "
    "largest differences are extremes, not typical."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoSettings:
    """How many videos, and how large."""

    prompts: int = 6
    """Prompts of each study, >= 0."""
    max_bytes: int = 2_000_000
    """A larger video is linked."""
    budget: int = 20_000_000
    """Characters that all videos in the page may take; what does not fit any more is linked."""
    seed: int = 0
    """Of the drawn prompts."""


class VideoShelf:
    """Puts videos into a page until its budget is spent.

    Args:
        page: where the page will be; links are relative to its folder.
        settings: limits.
    """

    def __init__(self, page: Path, settings: VideoSettings) -> None:
        self.settings = settings
        self._folder = page.resolve().parent
        self._embedder = Embedder(settings.budget)
        self.linked: set[str] = set()
        """Folders that the page links into."""

    def rows(
        self, scores: pd.DataFrame, lists: Mapping[str, SampleList], models: Mapping[str, str]
    ) -> tuple[VideoRow, ...]:
        """The videos of some prompts.

        Args:
            scores: one row for each video and dimension, see
                :class:`longtake.evaluation.report.score_sets.ScoreSet`; models by their labels.
            lists: for each label the list that names its videos.
            models: name in its list for each label, in the order of showing.
        """
        named = {
            label: _videos_by_prompt(lists[label], model)
            for label, model in models.items()
            if label in lists
        }
        made = []
        for prompt, why in pick_prompts(scores, self.settings.prompts, self.settings.seed):
            videos, caption = [], prompt
            for label, by_prompt in named.items():
                own = scores[(scores["model"] == label) & (scores["prompt"] == prompt)]
                for item in by_prompt.get(prompt, ()):
                    path = lists[label].video_path(item)
                    if path is not None:
                        caption = item.caption or caption
                        videos.append(self._video(label, _label(own, item), path))
            if videos:
                made.append(VideoRow(caption=caption, why=why, videos=tuple(videos)))
        return tuple(made)

    def _video(self, model: str, label: str, path: Path) -> Video:
        def shown(uri: str = "", problem: str = "") -> Video:
            return Video(model=model, label=label, path=str(path), uri=uri, problem=problem)

        try:
            size = path.stat().st_size
            if not size:
                return shown(problem="the file is empty")
            if path.suffix.lower() not in MEDIA:
                return shown(self._link(path), f"browsers may not play {path.suffix or 'it'}")
            if size <= self.settings.max_bytes and (uri := self._embedder.uri(path)) is not None:
                return shown(uri)
        except OSError as error:
            return shown(problem=f"no video: {error.strerror or error}")
        return shown(self._link(path), f"linked, not in the page: {size / 1e6:.1f} MB")

    def _link(self, path: Path) -> str:
        relative = Path(os.path.relpath(path.resolve(), self._folder)).as_posix()
        self.linked.add(str(Path(relative).parent))
        return quote(relative)


def pick_prompts(scores: pd.DataFrame, limit: int, seed: int) -> list[tuple[str, str]]:
    """Prompts to show and why: those on which the models differ most, and as many drawn ones.

    Args:
        scores: columns model, dimension, prompt, score.
        limit: number of prompts.
        seed: of the drawing.
    """
    cells = scores.groupby(["dimension", "prompt", "model"], sort=True)["score"].mean().unstack()
    spread = (cells.max(axis=1) - cells.min(axis=1)).groupby("prompt").mean()
    ranked = [str(name) for name in spread.sort_values(ascending=False, kind="stable").index]
    most = ranked[: limit - limit // 2] if scores["model"].nunique() > 1 else []
    rest = sorted(set(ranked) - set(most))
    drawn = random.Random(seed).sample(rest, min(limit - len(most), len(rest)))
    return [
        *((name, f"largest difference ({spread[name]:.2f} on average)") for name in most),
        *((name, "drawn at random") for name in drawn),
    ]


def _videos_by_prompt(samples: SampleList, model: str) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for item in samples.samples:
        if item.model == model:
            found.setdefault(item.prompt, []).append(item)
    return found


def _label(scores: pd.DataFrame, item: Sample) -> str:
    own = scores[scores["sample"] == item.sample]
    cells = zip(own["dimension"], own["score"], own["n_ratings"], strict=True)
    return ", ".join(f"{name} {score:.2f} (n={n})" for name, score, n in cells) or "not rated"
