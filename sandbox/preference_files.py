"""Sandbox preference pairs on disk, in the public format of VideoAlign: a CSV and its clips.

The CSV is what users of real data bring, so the reward trainer has one kind of input. It holds
labels only: the oracle scores behind them are the held-out truth.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rich.table import Table

from longtake.core.video import write_mp4
from longtake.runtime.errors import RunDirectoryError
from longtake.runtime.progress import progress_bar, result_table
from longtake.runtime.replacing import replacing
from longtake.sandbox.annotators import DIMENSION_ORACLES, Annotator, Word, label_statistics
from longtake.sandbox.facts import FPS, Split
from longtake.sandbox.preferences import (
    DEFAULT_PAIRS,
    CandidatePair,
    candidate_pairs,
    label_pair,
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


def make_preferences(
    out: Path, split: Split, num_prompts: int, seed: int, annotator: Annotator
) -> tuple[Path, Table]:
    """Render, judge and write the pairs of the first prompts of a split, with progress.

    Args:
        out: directory; the CSV is ``out/SPLIT.csv``.
        split: "train" or "held_out".
        num_prompts: prompts; their number of pairs is that of ``PairConfig``.
        seed: names scenes, damage and labels.
        annotator: who judges.

    Returns:
        The path of the CSV, and a table of what the labels look like.

    Raises:
        RunDirectoryError: ``out`` cannot be written.
    """
    seen: dict[str, list[tuple[Word, float, float]]] = {d: [] for d in DIMENSION_ORACLES}
    with progress_bar("pairs", num_prompts * DEFAULT_PAIRS.pairs_per_prompt) as bar:

        def judge() -> Iterator[tuple[CandidatePair, Mapping[str, Word]]]:
            for count, pair in enumerate(candidate_pairs(split, 0, num_prompts, seed), start=1):
                labels = label_pair(pair, annotator, seed)
                for dimension, rows in seen.items():  # without the clips, which fill the memory
                    difference = pair.oracle_difference(dimension)
                    rows.append((labels[dimension], difference, pair.colour_difference))
                yield pair, labels
                bar.update(count)

        path = write_preferences(judge(), out, f"{split}.csv")
    table: list[tuple[str, int, float, float, float]] = []
    for dimension, rows in seen.items():
        row = label_statistics(rows, annotator)
        table.append((dimension, row.count, row.tie_share, row.agreement, row.colour_preference))
    columns = ["dimension", "pairs", "ties", "agreement with the oracle", "preference for colour"]
    return path, result_table(str(path), columns, table)


def write_preferences(
    judged: Iterable[tuple[CandidatePair, Mapping[str, Word]]], out: Path, name: str = "pairs.csv"
) -> Path:
    """Write ``out/clips/*.mp4`` (lossless, 8 fps) and then ``out/name``, one row per pair.

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
    target = out / name
    written: set[str] = set()
    try:
        (out / CLIPS).mkdir(parents=True, exist_ok=True)
        with (
            replacing(target) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            for pair, labels in judged:
                row: dict[str, object] = {"prompt": pair.prompt, **labels}
                for side, clip in (("A", pair.a), ("B", pair.b)):
                    path = f"{CLIPS}/{clip.name}.mp4"
                    if path not in written:
                        write_mp4(clip.video, out / path, fps=FPS, lossless=True)
                        written.add(path)
                    row[f"path_{side}"] = path
                    row[f"fps_{side}"] = FPS
                    row[f"num_frames_{side}"] = len(clip.video)
                table.writerow(row)
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write preference pairs: {error.strerror or error}",
            received=str(out),
            expected="a writable directory with free space",
            remedy="choose another output directory",
        ) from error
    return target
