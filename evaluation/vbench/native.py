"""Dimensions that are scored here, without the public code: those that need no weights."""

from collections.abc import Callable, Mapping
from pathlib import Path

from longtake.evaluation.vbench.flickering import temporal_flickering
from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.records import RECORDS, read_records, rewrite_records
from longtake.evaluation.vbench.result_files import parse_dimension
from longtake.evaluation.vbench.results import DimensionResults
from longtake.evaluation.vbench.upstream_runner import Records
from longtake.evaluation.vbench.video_files import VideoFiles
from longtake.runtime.errors import UserError
from longtake.runtime.progress import progress_bar

ORIGIN = "ours"
SCORERS: dict[str, Callable[[Path], float]] = {"temporal_flickering": temporal_flickering}
"""Dimension -> score of one video."""


def score_natively(plan: Plan, files: VideoFiles, dimension: str, folder: Path) -> DimensionResults:
    """Score the videos of one dimension; started again, it goes on.

    Args:
        plan: the videos.
        files: where they are.
        dimension: a key of :data:`SCORERS`.
        folder: keeps the finished videos.
    """
    path = folder / RECORDS
    done = read_records(path)
    folder.mkdir(parents=True, exist_ok=True)
    rewrite_records(path, done)
    unscored: dict[str, str] = {}
    entries = list(done.values())
    names = plan.results_of(dimension)
    with progress_bar(dimension, len(names), completed=len(done)) as bar:
        for name in names:
            video = files.paths.get((dimension, name))
            if name in done:
                continue
            if video is None:
                unscored[name] = "the video is missing"
                continue
            try:
                score = SCORERS[dimension](video)
            except UserError as error:
                unscored[name] = error.what
                continue
            entry = {"video_path": str(video), "video_results": score}
            Records(str(path)).add([entry])
            entries.append(entry)
            bar.update(len(entries))
    results = parse_dimension(plan.suite.dimensions[dimension], None, entries)
    results.origin = ORIGIN
    results.unscored |= unscored
    results.problems += _remarks(dimension, files.paths)
    return results


def _remarks(dimension: str, paths: Mapping[tuple[str, str], Path]) -> list[str]:
    folders = {path.parent.name for (name, _), path in paths.items() if name == dimension}
    if dimension != "temporal_flickering" or folders == {dimension}:
        return []
    return [
        "without the static filter (it needs RAFT), so moving videos count as flickering: put the "
        "videos that it keeps into a folder temporal_flickering/"
    ]
