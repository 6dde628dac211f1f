"""A small rated study whose truth is in plain sight: the brightness of a clip is its quality."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from longtake.core.video import write_mp4
from longtake.evaluation.judge.rated_clips import JUDGED
from longtake.evaluation.records import Rating, append_ratings
from longtake.evaluation.samples import Sample, write_samples
from longtake.rewards.tiny_base import TinySize, write_tiny_base

SIZE = TinySize(
    width=32, layers=1, heads=2, vision_width=32, vision_layers=1, side=28, frames_per_second=4.0
)


@dataclass(frozen=True)
class Study:
    folder: Path
    samples: Path
    ratings: Path
    base: Path


def make_study(folder: Path, num_prompts: int = 20, models: str = "ABC", seed: int = 0) -> Study:
    rng = np.random.default_rng(seed)
    samples, ratings = [], []
    for p in range(num_prompts):
        caption = f"a gray wall number {p} in room {p // 2}"
        for m, model in enumerate(models):
            name = f"s{p:03d}{model}"
            level = float(np.clip(0.2 + 0.2 * m + rng.normal(0, 0.15), 0.02, 0.98))
            clip = torch.full((4, 3, 28, 28), level)
            write_mp4(clip, folder / f"clips/{name}.mp4", fps=4, lossless=True)
            samples.append(
                Sample(
                    sample=name,
                    model=model,
                    prompt=f"p{p}",
                    caption=caption,
                    video=f"clips/{name}.mp4",
                )
            )
            for rater in range(3):
                for dimension in JUDGED:
                    score = np.clip(np.round(1 + 4 * level + rng.normal(0, 0.3)), 1, 5)
                    ratings.append(
                        Rating(
                            sample=name, dimension=dimension, rater=f"r{rater}", score=float(score)
                        )
                    )
    append_ratings(folder / "ratings.jsonl", ratings)
    write_samples(folder / "samples.csv", samples)
    base = write_tiny_base(
        folder / "base", "videoreward", [item.caption for item in samples], SIZE, seed
    )
    return Study(folder, folder / "samples.csv", folder / "ratings.jsonl", base.path)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))
