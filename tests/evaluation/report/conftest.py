"""Small evaluations on disk: a study with videos, blind pairs, VBench results."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from longtake.core.video import write_mp4
from longtake.evaluation.dimensions import dimension_names
from longtake.evaluation.gsb_plan import plan_pairs, write_plan
from longtake.evaluation.model_comparison import ComparisonSettings
from longtake.evaluation.records import append_ratings
from longtake.evaluation.report.build import ReportSettings
from longtake.evaluation.samples import SampleList, write_samples
from longtake.evaluation.simulated_raters import (
    SimulatedStudy,
    rater_pool,
    simulate_answers,
    simulated_samples,
    write_study,
)
from longtake.evaluation.vbench.result_files import parse_dimension, write_results
from longtake.evaluation.vbench.suites import VBENCH2

EVIL = "A <script>alert('x')</script> & \"quoted\" | prompt"
SETTINGS = ReportSettings(comparison=ComparisonSettings(resamples=400))


@pytest.fixture
def settings() -> ReportSettings:
    return SETTINGS


@pytest.fixture
def evil() -> str:
    return EVIL


def simulated(
    qualities: dict[str, float], dimensions: tuple[str, ...] = (), prompts: int = 24
) -> SimulatedStudy:
    dimensions = dimension_names("t2v", dimensions)
    truth = {name: dict.fromkeys(dimensions, value) for name, value in qualities.items()}
    return SimulatedStudy(quality=truth, raters=rater_pool(8, 0), num_prompts=prompts)


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """A folder with samples.csv, ratings.jsonl and, if asked, videos with a dangerous caption."""

    def make(
        qualities: dict[str, float], *, seed: int = 0, name: str = "study", videos: bool = False
    ) -> Path:
        folder = tmp_path / name
        study = simulated(qualities)
        write_study(study, folder, seed=seed)
        if videos:
            rng = np.random.default_rng(seed)
            first = folder / "videos" / "first.mp4"
            write_mp4(torch.from_numpy(rng.random((3, 3, 16, 16), dtype=np.float32)), first, 8.0)
            listed = [
                dataclasses.replace(item, caption=EVIL, video=f"videos/{item.sample}.mp4")
                for item in simulated_samples(study)
            ]
            for item in listed:
                (folder / item.video).write_bytes(first.read_bytes())
            write_samples(folder / "samples.csv", listed)
        return folder

    return make


@pytest.fixture
def make_pairs(tmp_path: Path) -> Callable[..., Path]:
    """A folder with a plan of blind pairs and its answers."""

    def make(qualities: dict[str, float], *, seed: int = 0, name: str = "pairs") -> Path:
        study = simulated(qualities, ("overall",))  # rankings of many dimensions take seconds
        listed = SampleList(samples=tuple(simulated_samples(study)), folder=tmp_path)
        pairs, _ = plan_pairs(listed, reference=next(iter(qualities)), seed=seed)
        folder = tmp_path / name
        write_plan(folder, pairs, listed, study.dimensions)
        append_ratings(folder / "answers.jsonl", simulate_answers(study, pairs, seed=seed))
        return folder

    return make


@pytest.fixture
def make_vbench(tmp_path: Path) -> Callable[..., Path]:
    """Results of a model on 12 prompts of every dimension of VBench 2.0."""

    def make(name: str, quality: float, seed: int) -> Path:
        rng = np.random.default_rng(seed)
        difficulty = np.random.default_rng(99).normal(0, 0.15, 12)
        chance = np.clip(quality + difficulty, 0, 1)
        for dimension in VBENCH2.dimensions.values():
            samples = 1 if dimension.per_prompt else 3
            entries = [
                {"video_path": f"/x/p{p}-{i}.mp4", "video_results": int(rng.random() < chance[p])}
                for p in range(12)
                for i in range(samples)
            ]
            results = parse_dimension(dimension, None, entries)
            write_results(tmp_path / "vbench" / name, results, {})
        return tmp_path / "vbench" / name

    return make
