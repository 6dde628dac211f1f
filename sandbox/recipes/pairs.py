"""Sandbox preference pairs on disk, in the public format of VideoAlign: a CSV and its clips.

The CSV is what users of real data bring, so the reward trainer has one kind of input. It holds
labels only: the oracle scores behind them are the held-out truth.
"""

from functools import partial
from pathlib import Path

import pandas as pd

from longtake.core.video import write_mp4
from longtake.runtime.files import explained, replacing
from longtake.runtime.progress import progress_bar
from longtake.sandbox.annotators import (
    DIMENSION_ORACLES,
    Annotator,
    Judgement,
    LabelStatistics,
    label_statistics,
)
from longtake.sandbox.facts import FPS, Split
from longtake.sandbox.preferences import (
    DEFAULT_PAIRS,
    PairConfig,
    PoolJob,
    Samples,
    label_pair,
    pool_jobs,
    run_jobs,
)

COLUMNS = (
    "path_A",
    "path_B",
    "prompt",
    *DIMENSION_ORACLES,
    "fps_A",
    "num_frames_A",
    "fps_B",
    "num_frames_B",
)

Row = dict[str, object]


def make_preferences(
    out: Path,
    split: Split,
    num_prompts: int,
    seed: int,
    annotator: Annotator,
    *,
    config: PairConfig = DEFAULT_PAIRS,
    samples: Samples | None = None,
    workers: int = 0,
) -> tuple[Path, dict[str, LabelStatistics]]:
    """Render, judge and write the pairs of the first prompts of a split, with progress.

    ``out`` gets ``SPLIT.csv`` and ``clips``, to which the paths in it are relative. ``samples`` of
    a model join the pools of their prompts. The result does not depend on the number of worker
    processes; 0 is this one. Returns the path of the CSV, and by dimension what labels look like.
    """
    rows: list[Row] = []
    judgements: dict[str, list[Judgement]] = {dimension: [] for dimension in DIMENSION_ORACLES}
    jobs = pool_jobs(split, num_prompts, seed, config, samples or {})
    target = out / f"{split}.csv"
    with (
        explained("write preference pairs", out),
        progress_bar("pairs", num_prompts * config.pairs_per_prompt) as bar,
    ):
        for judged in run_jobs(partial(_judge, out=out, annotator=annotator), jobs, workers):
            for row, by_dimension in judged:
                rows.append(row)
                for dimension, judgement in by_dimension.items():
                    judgements[dimension].append(judgement)
            bar.update(len(rows))
        with replacing(target) as temporary:
            pd.DataFrame(rows, columns=COLUMNS).to_csv(temporary, index=False, lineterminator="\n")
    return target, {name: label_statistics(seen, annotator) for name, seen in judgements.items()}


def _judge(job: PoolJob, out: Path, annotator: Annotator) -> list[tuple[Row, dict[str, Judgement]]]:
    """Render, judge and write the clips of a job; rows of the CSV and what was judged."""
    written: set[str] = set()  # a clip of several pairs is written once
    judged: list[tuple[Row, dict[str, Judgement]]] = []
    for pair in job.pairs():
        labels = label_pair(pair, annotator, job.seed)
        row: Row = {"prompt": pair.prompt, **labels}
        for side, clip in (("A", pair.a), ("B", pair.b)):
            path = f"clips/{clip.name}.mp4"
            if path not in written:
                write_mp4(clip.video, out / path, fps=FPS, lossless=True)
                written.add(path)
            row[f"path_{side}"] = path
            row[f"fps_{side}"] = FPS
            row[f"num_frames_{side}"] = len(clip.video)
        judged.append(
            (
                row,
                {
                    dimension: (label, pair.oracle_difference(dimension), pair.colour_difference)
                    for dimension, label in labels.items()
                },
            )
        )
    return judged
