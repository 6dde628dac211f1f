"""Score videos by the public code: every dimension in its own process and environment.

The output directory holds ``plan.json``, ``views/<model>/<Dimension>/`` (links to the videos),
``work/<Dimension>/`` (records of finished videos, logs, state) and ``results/<Dimension>/`` (the
public format, and our record).
"""

import hashlib
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from longtake.evaluation.vbench.aggregate import Scores, aggregate
from longtake.evaluation.vbench.dimension_run import DimensionRun
from longtake.evaluation.vbench.doctor import Diagnosis, examine, head_commit
from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.plan_file import read_plan, write_plan
from longtake.evaluation.vbench.probe import VideoFacts, probe, unlike_the_rest
from longtake.evaluation.vbench.records import RECORDS, read_records
from longtake.evaluation.vbench.result_files import RESULTS_FOLDER, ResultSet, write_results
from longtake.evaluation.vbench.results import DimensionResults
from longtake.evaluation.vbench.upstream import Upstream
from longtake.evaluation.vbench.video_files import VideoFiles, find_videos, link_view
from longtake.runtime.errors import UserError
from longtake.runtime.progress import progress_bar

_POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How to run."""

    timeout_s: float = 3600.0
    """Longest time without a finished video, > 0; loading the weights counts."""
    attempts: int = 2
    """Tries of a video before it is unscored, >= 1."""
    gpus: tuple[str, ...] = ()
    """GPUs to share the dimensions among, one dimension each at a time; empty: one, the default."""
    allow_missing: bool = False
    """Score what is there although videos are missing; they are unscored."""
    ignore_doctor: bool = False
    """Start dimensions although something they need seems to be missing."""
    model: str = ""
    """Name that the public code sees; empty makes one of the output directory's path."""

    def __post_init__(self) -> None:
        if not self.timeout_s > 0 or self.attempts < 1 or "/" in self.model:
            raise UserError(
                "a setting of the run cannot be used",
                received=f"timeout_s={self.timeout_s}, attempts={self.attempts}, "
                f"model={self.model!r}",
                expected="timeout_s > 0, attempts >= 1, a model without slashes",
            )


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What a run did."""

    results: Mapping[str, DimensionResults]
    """By dimension that was started."""
    scores: Scores
    """The same as a table with intervals."""
    not_run: Mapping[str, Diagnosis]
    """By dimension that could not be started."""
    odd_videos: Mapping[str, str]
    """Files unlike the others (rate, length, size, unreadable), with what is odd."""

    @property
    def is_complete(self) -> bool:
        """Whether every dimension was run and every video has a result."""
        return not self.not_run and not any(r.unscored for r in self.results.values())


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a run would do for one dimension."""

    diagnosis: Diagnosis
    videos: int
    """Videos that are there."""
    missing: int
    """Planned videos that are not."""
    finished: int
    """Results of an earlier run."""


def run_steps(
    plan: Plan, videos: Path, upstream: Upstream, output_dir: Path, dimensions: Sequence[str] = ()
) -> list[Step]:
    """What :func:`run_dimensions` would do; nothing is started or written."""
    wanted = _wanted(plan, dimensions)
    files = find_videos(plan, videos)
    return [
        Step(
            diagnosis=diagnosis,
            videos=sum(key[0] == diagnosis.dimension for key in files.paths),
            missing=sum(key[0] == diagnosis.dimension for key in files.missing),
            finished=len(read_records(_work(output_dir, diagnosis.dimension) / RECORDS)),
        )
        for diagnosis in examine(upstream, wanted)
    ]


def run_dimensions(
    plan: Plan,
    videos: Path,
    upstream: Upstream,
    output_dir: Path,
    dimensions: Sequence[str] = (),
    settings: RunSettings | None = None,
) -> RunReport:
    """Score the videos of a plan; started again, it continues with what is not finished.

    Args:
        plan: the videos.
        videos: their folder, flat or with a folder for each dimension.
        upstream: the user's installation of the public code.
        output_dir: see the head of this file.
        dimensions: only these; empty takes all of the plan.
        settings: None takes the defaults.

    Raises:
        UserError: videos are missing, the folder holds another plan, a dimension is not planned.
        RunDirectoryError: the folder cannot be written, or another process is at a dimension.
    """
    settings = settings or RunSettings()
    wanted = _wanted(plan, dimensions)
    files = find_videos(plan, videos)
    missing = [key for key in files.missing if key[0] in wanted]
    if missing and not settings.allow_missing:
        raise missing_videos(missing, videos)
    _keep_plan(plan, output_dir / "plan.json")
    diagnoses = {found.dimension: found for found in examine(upstream, wanted)}
    ready = [n for n in wanted if settings.ignore_doctor or not diagnoses[n].missing]
    native = [n for n in wanted if n not in ready and diagnoses[n].is_native]
    facts = {path: probe(path) for key, path in files.paths.items() if key[0] in ready}
    runs = {
        name: _prepare(plan, upstream, name, files, facts, output_dir, settings) for name in ready
    }
    results = _run_all(runs, settings)
    for name in native:
        from longtake.evaluation.vbench.native import score_natively  # needs torch

        results[name] = score_natively(plan, files, name, _work(output_dir, name))
        write_results(output_dir / RESULTS_FOLDER, results[name], {"suite_sha256": plan.digest})
    found = ResultSet(suite=plan.suite, source=output_dir, dimensions=dict(results))
    return RunReport(
        results=results,
        scores=aggregate(found, plan),
        not_run={name: diagnoses[name] for name in wanted if name not in results},
        odd_videos=unlike_the_rest({str(path): found for path, found in facts.items()}),
    )


def missing_videos(missing: Sequence[tuple[str, str]], folder: Path) -> UserError:
    """The error for planned videos that are not there."""
    names = list(dict.fromkeys(name for _, name in missing))
    shown = "\n    ".join(names[:5])
    return UserError(
        f"{len(names)} planned videos are missing",
        received=f"{folder}\n    {shown}" + ("\n    ..." if len(names) > 5 else ""),
        expected="every video of the plan, by its exact name",
        remedy="make them with `eval vbench generate`, or score the others with --allow-missing",
    )


def _wanted(plan: Plan, dimensions: Sequence[str]) -> list[str]:
    names = [plan.suite.dimension(name).name for name in dimensions] or list(plan.dimensions)
    if strange := [name for name in names if name not in plan.dimensions]:
        raise UserError(
            "the plan has no videos for these dimensions",
            received=", ".join(strange),
            expected=", ".join(plan.dimensions),
        )
    return names


def _model_name(output_dir: Path) -> str:
    """A name that no other run in this checkout has: the public code caches by it."""
    path = str(output_dir.absolute())
    return f"{output_dir.absolute().name}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def _work(output_dir: Path, dimension: str) -> Path:
    return (output_dir / "work" / dimension).absolute()


def _keep_plan(plan: Plan, path: Path) -> None:
    if path.exists():
        known = read_plan(path)
        if (known.digest, known.videos) != (plan.digest, plan.videos):
            raise UserError(
                "the folder holds results of another plan",
                received=str(path.parent),
                remedy="choose another --output-dir",
            )
        return
    write_plan(plan, path)


def _keep_commit(folder: Path, commit: str | None) -> None:
    """Refuse to mix records of two versions of the public code: their scores are two metrics."""
    path = folder / "commit.txt"
    known = path.read_text(encoding="utf-8").strip() if path.exists() else str(commit)
    if known != str(commit):
        raise UserError(
            "the finished videos were scored by another version of the public code",
            received=f"{folder}: {known}; the checkout is at {commit}",
            remedy="check that version out again, or choose another --output-dir",
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{commit}\n", encoding="utf-8")


def _prepare(
    plan: Plan,
    upstream: Upstream,
    dimension: str,
    files: VideoFiles,
    facts: Mapping[Path, VideoFacts],
    output_dir: Path,
    settings: RunSettings,
) -> DimensionRun:
    view = (output_dir / "views" / (settings.model or _model_name(output_dir))).absolute()
    folder = _work(output_dir, dimension)
    _keep_commit(folder, head_commit(upstream.checkout) if upstream.checkout else None)
    return DimensionRun(
        plan=plan,
        upstream=upstream,
        dimension=dimension,
        links=link_view(files.paths, dimension, view),
        facts={key[1]: facts[path] for key, path in files.paths.items() if key[0] == dimension},
        folder=folder,
        timeout_s=settings.timeout_s,
        attempts=settings.attempts,
    )


def _run_all(
    runs: Mapping[str, DimensionRun], settings: RunSettings
) -> dict[str, DimensionResults]:
    """One dimension per GPU at a time; Ctrl-C stops all of them and keeps what is finished."""
    if not runs:
        return {}
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for gpu in settings.gpus or (None,):
        free.put(gpu)
    stop = threading.Event()

    def work(run: DimensionRun) -> DimensionResults:
        gpu = free.get()
        try:
            results = run.run(stop, gpu)
            write_results(run.folder.parents[1] / RESULTS_FOLDER, results, _provenance(run))
            return results
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(max_workers=len(settings.gpus) or 1) as pool:
        try:
            futures = {pool.submit(work, run): name for name, run in runs.items()}
            _show_progress(runs, list(futures))
            return {name: future.result() for future, name in futures.items()}
        finally:  # after a failure or Ctrl-C, those that wait must not start
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _show_progress(
    runs: Mapping[str, DimensionRun], futures: list[Future[DimensionResults]]
) -> None:
    total = sum(len(run.links) for run in runs.values())
    with progress_bar("scoring", total) as bar:
        while True:
            finished, waiting = wait(futures, timeout=_POLL_S)
            for future in finished:
                future.result()  # an error ends the others early
            bar.update(sum(len(run.entries()) for run in runs.values()))
            if not waiting:
                return


def _provenance(run: DimensionRun) -> dict[str, object]:
    upstream = run.upstream
    return {
        "upstream_commit": head_commit(upstream.checkout) if upstream.checkout else None,
        "suite": run.plan.suite.name,
        "suite_sha256": run.plan.digest,
        "python": str(upstream.python(run.dimension)),
        "device": upstream.device,
        "seed": run.plan.seed,
        "plan_remarks": list(run.plan.remarks),
    }
