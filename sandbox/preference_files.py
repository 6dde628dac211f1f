"""Sandbox preference pairs on disk, in the public format of VideoAlign: a CSV and its clips.

The CSV is what users of real data bring, so the reward trainer has one kind of input. It holds
labels only: the oracle scores behind them are the held-out truth.
"""

import csv
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from rich.table import Table
from torch import Tensor

from longtake.core.video import write_mp4
from longtake.runtime.errors import RunDirectoryError
from longtake.runtime.files import replacing
from longtake.runtime.progress import progress_bar, result_table
from longtake.sandbox.annotators import DIMENSION_ORACLES, Annotator, Word, label_statistics
from longtake.sandbox.facts import FPS, Split
from longtake.sandbox.preferences import (
    DEFAULT_PAIRS,
    CandidatePair,
    PairConfig,
    candidate_pairs,
    label_pair,
    preference_prompts,
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
CLIPS = "clips"
PROMPTS_PER_JOB = 8

Row = dict[str, object]
Judgement = tuple[Word, float, float]
"""Label, oracle score of A minus B, colourfulness of A minus B."""
Judgements = dict[str, Judgement]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Prompts ``start`` to ``start + count - 1``: what a worker process renders and judges."""

    out: Path
    split: Split
    start: int
    count: int
    seed: int
    annotator: Annotator
    config: PairConfig
    samples: dict[str, numpy.ndarray]


def make_preferences(
    out: Path,
    split: Split,
    num_prompts: int,
    seed: int,
    annotator: Annotator,
    *,
    config: PairConfig = DEFAULT_PAIRS,
    samples: Mapping[str, Tensor] | None = None,
    workers: int = 0,
) -> tuple[Path, Table]:
    """Render, judge and write the pairs of the first prompts of a split, with progress.

    Args:
        out: directory; the CSV is ``out/SPLIT.csv``.
        split: "train" or "held_out".
        num_prompts: prompts; their number of pairs is that of ``config``.
        seed: names scenes, damage and labels.
        annotator: who judges.
        config: sizes of a prompt's pool.
        samples: clips of a model by prompt, uint8 [M, T, 3, H, W], added to its pool.
        workers: processes that render and judge; 0 is this one. The result does not depend on it.

    Returns:
        The path of the CSV, and a table of what the labels look like.

    Raises:
        RunDirectoryError: ``out`` cannot be written.
    """
    drawn = samples or {}
    jobs = [
        _Job(
            out=out,
            split=split,
            start=start,
            count=(count := min(PROMPTS_PER_JOB, num_prompts - start)),
            seed=seed,
            annotator=annotator,
            config=config,
            samples={
                prompt: drawn[prompt].numpy()
                for prompt in preference_prompts(split, start, count, seed)
                if prompt in drawn
            },
        )
        for start in range(0, num_prompts, PROMPTS_PER_JOB)
    ]
    seen: dict[str, list[Judgement]] = {d: [] for d in DIMENSION_ORACLES}
    with progress_bar("pairs", num_prompts * config.pairs_per_prompt) as bar:

        def rows() -> Iterator[Row]:
            count = 0
            for written in _results(jobs, workers):
                for row, judgements in written:
                    for dimension, judgement in judgements.items():
                        seen[dimension].append(judgement)
                    yield row
                count += len(written)
                bar.update(count)

        path = _write_table(rows(), out, f"{split}.csv")
    table: list[tuple[str, int, float, float, float]] = []
    for dimension, judged in seen.items():
        row = label_statistics(judged, annotator)
        table.append((dimension, row.count, row.tie_share, row.agreement, row.colour_preference))
    columns = ["dimension", "pairs", "ties", "agreement with the oracle", "preference for colour"]
    return path, result_table(str(path), columns, table)


def write_preferences(
    judged: Iterable[tuple[CandidatePair, Mapping[str, Word]]], out: Path, name: str = "pairs.csv"
) -> Path:
    """Write ``out/clips/*.mp4`` (lossless, 8 fps) and ``out/name``, one row per pair.

    A clip of several pairs is written once. Paths in the CSV are relative to ``out``.

    Args:
        judged: pairs and their labels; consumed one by one.
        out: directory; created when missing.
        name: name of the CSV, for example one per split.

    Returns:
        The path of the CSV.

    Raises:
        RunDirectoryError: ``out`` cannot be written.
        UserError: a clip cannot be written.
    """
    written: set[str] = set()
    return _write_table((_row(pair, labels, out, written) for pair, labels in judged), out, name)


def _results(jobs: Sequence[_Job], workers: int) -> Iterator[list[tuple[Row, Judgements]]]:
    """Results of the jobs, in their order."""
    if not workers:
        yield from map(_run, jobs)
        return
    # Forked children of a process with torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(_run, jobs)


def _run(job: _Job) -> list[tuple[Row, Judgements]]:
    """Render, judge and write the clips of a job; rows of the CSV and what was judged."""
    samples = {prompt: torch.from_numpy(clips) for prompt, clips in job.samples.items()}
    written: set[str] = set()
    rows: list[tuple[Row, Judgements]] = []
    for pair in candidate_pairs(
        job.split, job.start, job.count, job.seed, config=job.config, samples=samples.get
    ):
        labels = label_pair(pair, job.annotator, job.seed)
        judgements = {
            dimension: (label, pair.oracle_difference(dimension), pair.colour_difference)
            for dimension, label in labels.items()
        }
        rows.append((_row(pair, labels, job.out, written), judgements))
    return rows


def _row(pair: CandidatePair, labels: Mapping[str, Word], out: Path, written: set[str]) -> Row:
    """A row of the CSV; its clips are written unless ``written`` names them."""
    row: Row = {"prompt": pair.prompt, **labels}
    for side, clip in (("A", pair.a), ("B", pair.b)):
        path = f"{CLIPS}/{clip.name}.mp4"
        if path not in written:
            write_mp4(clip.video, out / path, fps=FPS, lossless=True)
            written.add(path)
        row[f"path_{side}"] = path
        row[f"fps_{side}"] = FPS
        row[f"num_frames_{side}"] = len(clip.video)
    return row


def _write_table(rows: Iterable[Row], out: Path, name: str) -> Path:
    target = out / name
    try:
        (out / CLIPS).mkdir(parents=True, exist_ok=True)
        with (
            replacing(target) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write preference pairs: {error.strerror or error}",
            received=str(out),
            expected="a writable directory with free space",
            remedy="choose another output directory",
        ) from error
    return target
