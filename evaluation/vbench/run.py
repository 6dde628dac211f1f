"""Score videos by the public code: every dimension in its own process and environment.

The output directory holds ``plan.json``, ``views/<model>/<Dimension>/`` (links to the videos),
``work/<Dimension>/`` (records of finished videos, logs, state) and ``results/<Dimension>/`` (the
public format, and our record). Finished videos are kept, so a run that is started again goes on;
prompts on which the public code keeps dying are given up with their reason, the others go on.
"""

import hashlib
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.evaluation.vbench.plan import Plan, read_plan, write_plan
from longtake.evaluation.vbench.results import (
    RESULTS_FOLDER,
    DimensionResults,
    ResultSet,
    parse_dimension,
    write_results,
)
from longtake.evaluation.vbench.scores import Scores, aggregate
from longtake.evaluation.vbench.upstream import (
    Upstream,
    inflated_results,
    is_native,
    unfit,
)
from longtake.evaluation.vbench.videos import (
    VideoFiles,
    find_videos,
    link_view,
    probe,
    temporal_flickering,
)
from longtake.runtime.errors import UserError
from longtake.runtime.files import append_jsonl, explained, read_jsonl, write_json
from longtake.runtime.progress import progress_bar
from longtake.runtime.run_directory import acquire_lock

_SCORERS = {"temporal_flickering": temporal_flickering}
"""Dimensions that are scored here: those that need no weights."""
_GRACE_S = 10.0
"""Time between SIGTERM and SIGKILL."""
_TRIES = 2
"""Failed calls of a prompt before its videos are unscored; the last one has it alone."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How to run."""

    timeout_s: float = 3600.0
    """Of one call; making the environment and loading weights count."""
    prompts_per_call: int = 8
    """Prompts that one call of the public function scores. A crash loses the call, and every call
    loads the weights."""
    gpu: str | None = None
    """The only GPU that the public code may see; None hides none."""
    allow_missing: bool = False
    """Score what is there although videos are missing; they are unscored."""
    ignore_doctor: bool = False
    """Start dimensions although something they need seems to be missing."""


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What a run did, by dimension."""

    results: Mapping[str, DimensionResults]
    """Of those that were started."""
    scores: Scores
    not_run: Mapping[str, Mapping[str, str]]
    """Of the others: what is missing, and how to get it."""

    @property
    def is_complete(self) -> bool:
        """Whether every dimension was run and every video has a result."""
        return not self.not_run and not any(r.unscored for r in self.results.values())


def run_dimensions(
    plan: Plan,
    videos: Path,
    upstream: Upstream,
    output_dir: Path,
    dimensions: Sequence[str] = (),
    settings: RunSettings = RunSettings(),
) -> RunReport:
    """Score the videos of a plan; started again, it continues with what is not finished.

    ``videos`` is flat or has a folder for each dimension; no ``dimensions`` takes all of the plan.
    """
    names = [plan.suite.dimension(name).name for name in dimensions] or list(plan.dimensions)
    if strange := [name for name in names if name not in plan.dimensions]:
        raise UserError(
            "the plan has no videos for these dimensions",
            received=", ".join(strange),
            expected=", ".join(plan.dimensions),
        )
    files = find_videos(plan, videos)
    missing = list(dict.fromkeys(name for owner, name in files.missing if owner in names))
    if missing and not settings.allow_missing:
        raise UserError(
            f"{len(missing)} planned videos are missing",
            received=f"{videos} without {missing[0]}",
            expected="every video of the plan, by its exact name; `eval vbench check` lists them",
            remedy="make them with `eval vbench generate`, or score the others by --allow-missing",
        )
    # Before anything is scored: a second plan in this folder would mix two sets of videos.
    kept = output_dir / "plan.json"
    if kept.exists() and read_plan(kept).videos != plan.videos:
        raise UserError(
            "the folder holds results of another plan",
            received=str(output_dir),
            remedy="choose another --output-dir, or give the plan of this one",
        )
    write_plan(plan, kept)
    lacking = {name: upstream.missing(name) for name in names}
    results: dict[str, DimensionResults] = {}
    for name in names:
        # The public code goes first where it can run: it applies the static filter.
        if settings.ignore_doctor or not lacking[name]:
            run = _DimensionRun(plan, upstream, name, files, output_dir, settings)
            results[name] = run.run()
            write_results(output_dir / RESULTS_FOLDER, results[name], run.provenance)
        elif is_native(plan.suite, name):
            results[name] = score_natively(plan, files, name, output_dir)
    found = ResultSet(suite=plan.suite, source=output_dir, dimensions=dict(results))
    return RunReport(
        results=results,
        scores=aggregate(found, plan),
        not_run={name: lacking[name] for name in names if name not in results},
    )


def read_entries(work: Path) -> dict[str, dict[str, Any]]:
    """The public code's entry of each finished video of a dimension, by file name."""
    path = work / "records.jsonl"
    records = read_jsonl(path) if path.exists() and path.stat().st_size else []
    return {Path(record["video_path"]).name: record for record in records}


def score_natively(
    plan: Plan, files: VideoFiles, dimension: str, output_dir: Path
) -> DimensionResults:
    """Score a dimension that needs no weights; started again, it goes on."""
    work = output_dir / "work" / dimension
    entries = read_entries(work)
    paths = files.of_dimension(dimension)
    unscored: dict[str, str] = {}
    names = plan.results_of(dimension)
    with progress_bar(dimension, len(names), completed=len(entries)) as bar:
        for name in names:
            if name in entries:
                continue
            if name not in paths:
                unscored[name] = "the video is missing"
                continue
            try:
                score = _SCORERS[dimension](paths[name])
            except UserError as error:
                unscored[name] = error.what
                continue
            entries[name] = {"video_path": str(paths[name]), "video_results": score}
            # At once, so that a stop costs one video.
            append_jsonl(work / "records.jsonl", [entries[name]])
            bar.update(len(entries))
    results = parse_dimension(plan.suite.dimensions[dimension], None, list(entries.values()))
    results.origin = "ours"
    results.unscored |= unscored
    if {path.parent.name for path in paths.values()} - {dimension}:
        results.problems.append(
            "without the static filter (it needs RAFT), so moving videos count as flickering: put "
            "the videos that it keeps into a folder temporal_flickering/"
        )
    write_results(output_dir / RESULTS_FOLDER, results, {"suite_sha256": plan.digest})
    return results


class _DimensionRun:
    """One dimension of the public code; :meth:`run` brings it to its end.

    Its records lie in a folder of the commit: scores of two versions are two metrics.
    """

    def __init__(
        self,
        plan: Plan,
        upstream: Upstream,
        dimension: str,
        files: VideoFiles,
        output_dir: Path,
        settings: RunSettings,
    ) -> None:
        self.plan, self.upstream, self.settings = plan, upstream, settings
        self.dimension = plan.suite.dimensions[dimension]
        path = output_dir.absolute()
        # A model's name that no other run in this checkout has: the public code caches by it.
        model = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        self.links = link_view(files, dimension, path / "views" / model)
        self.work = path / "work" / dimension / (upstream.head or "no commit")[:7]
        self.given_up: dict[str, str] = {}  # reason by file name
        self.left_out: set[str] = set()  # videos of which the public code says nothing
        self.failures: Counter[str] = Counter()  # failed calls by prompt
        self.problem = ""  # why the whole dimension ended early

    def run(self) -> DimensionResults:
        """Call the public code until nothing is left or nothing helps; a stop keeps the records."""
        self.work.mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(self.work)
        try:
            self._give_up_unfit()
            with progress_bar(self.dimension.name, len(self.links)) as bar:
                while not self.problem and (rows := self._next_rows()):
                    outcome, log = self._call(rows)
                    if "videos" in outcome:
                        self._keep(rows, outcome["videos"], log)
                    elif outcome["stage"] == "compute":
                        self._blame(rows, outcome["error"], log)
                    else:  # no call will come further
                        self.problem = f"{outcome['stage']}: {outcome['error']} (see {log})"
                    bar.update(len(read_entries(self.work)))
            return self._results()
        finally:
            os.close(lock)

    @property
    def provenance(self) -> dict[str, object]:
        """What made the results."""
        return {
            "upstream_commit": self.upstream.head,
            "suite": self.plan.suite.name,
            "suite_sha256": self.plan.digest,
            "command": self.upstream.command(self.dimension.name, self.work / "job.json"),
            "device": self.upstream.device,
            "seed": self.plan.seed,
            "plan_remarks": list(self.plan.remarks),
        }

    def _give_up_unfit(self) -> None:
        samples = self.plan.scored_samples_of(self.dimension.name)
        for video in self.plan.of_dimension(self.dimension.name):
            if video.index >= samples:
                continue
            if video.name not in self.links:
                self.given_up[video.name] = "the video is missing"
            elif reason := unfit(self.dimension.name, probe(self.links[video.name])):
                self.given_up[video.name] = reason

    def _next_rows(self) -> list[dict[str, Any]]:
        """Rows for the next call, with the videos that lack a result: a suspect comes alone."""
        done = read_entries(self.work).keys() | self.given_up.keys() | self.left_out
        rows = []
        for row in self.plan.rows:
            if self.dimension.name not in row.dimensions:
                continue
            samples = range(self.plan.scored_samples_of(self.dimension.name))
            names = [self.plan.suite.video_name(row.prompt, index) for index in samples]
            left = [name for name in names if name not in done]
            if self.dimension.per_prompt:  # one result over all videos, filed under the first
                if lost := [name for name in names if name in self.given_up]:
                    self.given_up.setdefault(names[0], f"{lost[0]}: {self.given_up[lost[0]]}")
                left = [] if names[0] in done or lost else names
            if left:
                paths = [str(self.links[name]) for name in left]
                rows.append(row.as_upstream(self.dimension.name, paths))
        # Suspects last: a prompt that kills the process must not keep the others waiting.
        fresh = [row for row in rows if not self.failures[row["prompt_en"]]]
        return fresh[: self.settings.prompts_per_call] or rows[:1]

    def _keep(self, rows: list[dict[str, Any]], entries: list[dict[str, Any]], log: Path) -> None:
        """Record the results of a call that may count; a later run tries the others again."""
        by_name = {Path(entry["video_path"]).name: entry for entry in entries}
        reasons = parse_dimension(self.dimension, None, entries).unscored
        reasons |= inflated_results(self.dimension.name, by_name, log)
        kept = [entry for name, entry in by_name.items() if name not in reasons]
        append_jsonl(self.work / "records.jsonl", kept)
        for row in rows:
            names = [Path(path).name for path in row["video_list"]]
            for name in names[:1] if self.dimension.per_prompt else names:
                if name not in by_name and self.dimension.leaves_out:
                    self.left_out.add(name)
                elif name not in by_name:
                    reasons[name] = "the public code returned no result"
        self.given_up |= reasons

    def _blame(self, rows: list[dict[str, Any]], reason: str, log: Path) -> None:
        """Count a failed call against its prompts."""
        self.failures.update(row["prompt_en"] for row in rows)
        tries = self.failures[rows[0]["prompt_en"]]
        if len(rows) > 1 or tries < _TRIES:
            return
        # Where nothing has ever come out, the environment is at fault and not the prompts.
        if self.given_up and not read_entries(self.work):
            self.problem = f"{reason} (see {log})"
        for path in rows[0]["video_list"]:
            self.given_up[Path(path).name] = f"{reason} (tries: {tries})"

    def _call(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], Path]:
        """What the runner wrote, or stage and error (the exit code is never trusted); the log.

        A process for each call costs its imports, and the public function loads its weights in
        every call anyway; a crash or a leak ends with it.
        """
        log = self.work / f"call-{1 + len(list(self.work.glob('call-*.log')))}.log"
        job, outcome = self.work / "job.json", self.work / "outcome.json"
        # That of an earlier call would be taken for this one's.
        outcome.unlink(missing_ok=True)
        info = write_json(self.work / "full_info.json", rows)
        content = {
            "package": self.plan.suite.package,
            "dimension": self.dimension.name,
            "device": self.upstream.device,
            "may_not_apply": self.dimension.may_not_apply,
            "root": str(self.upstream.root),
            "info": str(info),
            "outcome": str(outcome),
        }
        write_json(job, content)
        with (
            explained(f"start the public code for {self.dimension.name}", self.upstream.root),
            log.open("wb") as output,
        ):
            process = subprocess.Popen(
                self.upstream.command(self.dimension.name, job),
                cwd=self.upstream.root,
                env=self.upstream.variables(
                    self.settings.gpu, self.upstream.python(self.dimension.name)
                ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its own children can be stopped with it
            )
            try:
                hangs = False
                process.wait(self.settings.timeout_s)
            except subprocess.TimeoutExpired:
                hangs = True
            finally:
                _end(process)
        content = {"stage": "start"}
        if outcome.exists():
            content = json.loads(outcome.read_text(encoding="utf-8"))
        if hangs:
            content["error"] = f"not finished after {self.settings.timeout_s:g} s"
        elif "error" not in content:
            code = process.returncode
            # The kernel ends what takes too much memory by SIGKILL, without a word.
            memory = " (out of memory?)" if code == -signal.SIGKILL else ""
            content["error"] = f"it left with code {code}{memory} and no word"
        return content, log

    def _results(self) -> DimensionResults:
        entries = read_entries(self.work)
        results = parse_dimension(self.dimension, None, list(entries.values()))
        results.origin = "upstream runner"
        # What Diversity gives up is a prompt, not each of its twenty videos.
        filed = set(self.plan.results_of(self.dimension.name))  # per prompt: under the first video
        results.unscored |= {
            name: why
            for name, why in self.given_up.items()
            if name in filed and name not in entries
        }
        if self.problem:
            results.problems.append(f"ended early: {self.problem}")
        if self.dimension.frames_hidden:
            results.problems.append("plain mean over videos; upstream weighs them by their frames")
        return results


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and the children it left behind."""
    # The whole group: ffmpeg and data loaders outlive their parent.
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    process.wait()
