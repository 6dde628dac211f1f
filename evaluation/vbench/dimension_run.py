"""Score one dimension by the public code: attempts until every video has a result or a reason.

Finished videos are kept, so an attempt goes on where the last one ended. A video on which attempts
keep dying is given up with its reason, and the others go on.
"""

import fcntl
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longtake.evaluation.vbench.hazards import clear_stale_clips, inflated_results, unfit
from longtake.evaluation.vbench.plan import Plan
from longtake.evaluation.vbench.probe import VideoFacts
from longtake.evaluation.vbench.records import RECORDS, read_records, rewrite_records
from longtake.evaluation.vbench.result_files import parse_dimension
from longtake.evaluation.vbench.results import DimensionResults
from longtake.evaluation.vbench.upstream import Upstream
from longtake.evaluation.vbench.upstream_process import Attempt, Ending, run_attempt
from longtake.runtime.errors import RunDirectoryError

ORIGIN = "upstream runner"
_HOPELESS = 2
"""Videos given up in a row, with none ever finished, after which the dimension is given up."""


@dataclass(kw_only=True)
class DimensionRun:
    """The state of one dimension; :meth:`run` brings it to its end."""

    plan: Plan
    upstream: Upstream
    dimension: str
    links: Mapping[str, Path]
    """File that the public code is given, by file name."""
    facts: Mapping[str, VideoFacts]
    """By file name, of the videos in ``links``."""
    folder: Path
    """Keeps records, logs and the state of the attempts."""
    timeout_s: float
    attempts: int
    """Tries of a video before it is given up."""
    given_up: dict[str, str] = field(default_factory=dict)
    """Reason by file name."""
    problem: str = ""
    """Why the whole dimension ended early."""
    stated: float | None = None
    """The public code's own score, where one attempt scored every video."""

    @property
    def records(self) -> Path:
        """One line per finished video."""
        return self.folder / RECORDS

    def entries(self) -> dict[str, dict[str, Any]]:
        """The public code's entry of each finished video, by file name."""
        return read_records(self.records)

    def run(self, stop: threading.Event, gpu: str | None = None) -> DimensionResults:
        """Attempt until nothing is left, or nothing helps.

        Args:
            stop: ends the run early; what is finished stays.
            gpu: the only GPU to use; None hides none.

        Raises:
            RunDirectoryError: the folder is in use or cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _only_here(self.folder):
            self._give_up_unfit()
            self._attempts(stop, gpu)
            return self._results()

    def _give_up_unfit(self) -> None:
        samples = self.plan.scored_samples_of(self.dimension)
        for video in self.plan.of_dimension(self.dimension):
            if video.index >= samples:
                continue
            if video.name not in self.links:
                self.given_up[video.name] = "the video is missing"
            elif reason := unfit(self.dimension, self.facts[video.name]):
                self.given_up[video.name] = reason

    def pending(self) -> list[tuple[dict[str, Any], list[str]]]:
        """Rows for the public code with the names of their videos that still lack a result."""
        suite = self.plan.suite
        dimension = suite.dimensions[self.dimension]
        done = self.entries()
        rows = []
        for row in self.plan.rows:
            if self.dimension not in row.dimensions:
                continue
            samples = range(self.plan.scored_samples_of(self.dimension))
            names = [suite.video_name(row.prompt, index) for index in samples]
            lost = [name for name in names if name in self.given_up]
            if dimension.per_prompt:  # one result over all videos, filed under the first
                if lost:
                    self.given_up.setdefault(names[0], f"{lost[0]}: {self.given_up[lost[0]]}")
                left = [] if names[0] in done or lost else names
            else:
                left = [name for name in names if name not in done and name not in self.given_up]
            if left:
                paths = [str(self.links[name]) for name in left]
                rows.append((row.as_upstream(self.dimension, paths), left))
        return rows

    def _attempts(self, stop: threading.Event, gpu: str | None) -> None:
        failures: Counter[str] = Counter()
        hopeless = 0
        while (rows := self.pending()) and not stop.is_set():
            before = self.entries()
            rewrite_records(self.records, before)  # a torn line must not swallow the next one
            ending, log = self._attempt([row for row, _ in rows], stop, gpu)
            rejected = self._reject_unusable(before, failures, log)
            left = [name for _, names in self.pending() for name in names]
            if not left:
                self.stated = None if before or self.given_up else ending.score
                break
            if stop.is_set():
                self.problem = "stopped on request"
                break
            unfinished = [name for name in left if name not in rejected]
            if ending.stage == "done":
                if self.plan.suite.dimensions[self.dimension].leaves_out and not rejected:
                    break
                self._fail(unfinished, failures, "the public code returned no result")
            elif ending.stage == "compute":
                self._fail(unfinished[:1], failures, ending.reason)  # it was at this one
                lost = bool(unfinished) and unfinished[0] in self.given_up
                hopeless = 0 if self.entries() else hopeless + lost
                if hopeless >= _HOPELESS:
                    self.problem = f"{ending.reason} (see {log})"
                    break
            else:
                self.problem = f"{ending.stage}: {ending.reason} (see {log})"
                break

    def _fail(self, names: list[str], failures: Counter[str], reason: str) -> None:
        for name in names:
            failures[name] += 1
            if failures[name] >= self.attempts:
                self.given_up[name] = f"{reason} (tries: {failures[name]})"

    def _reject_unusable(
        self, before: Mapping[str, Any], failures: Counter[str], log: Path
    ) -> set[str]:
        """Drop results of the attempt that must not count, to try those videos again."""
        after = self.entries()
        fresh = {name: entry for name, entry in after.items() if name not in before}
        dimension = self.plan.suite.dimensions[self.dimension]
        reasons = parse_dimension(dimension, None, list(fresh.values())).unscored
        values = [(name, entry.get("video_results")) for name, entry in fresh.items()]
        reasons |= inflated_results(self.dimension, values, log)
        for name, reason in reasons.items():
            del after[name]
            self._fail([name], failures, reason)
        rewrite_records(self.records, after)
        return set(reasons)

    def _attempt(
        self, rows: list[dict[str, Any]], stop: threading.Event, gpu: str | None
    ) -> tuple[Ending, Path]:
        python, root = self.upstream.python(self.dimension), self.upstream.root
        assert python is not None and root is not None
        given = [Path(path) for row in rows for path in row["video_list"]]
        clear_stale_clips(self.dimension, root, given)
        number = 1 + len(list(self.folder.glob("attempt-*.log")))
        log = self.folder / f"attempt-{number}.log"
        attempt = Attempt(
            python=python,
            root=root,
            environment=self.upstream.environment(python, gpu),
            folder=self.folder,
            log=log,
            records=self.records,
            timeout_s=self.timeout_s,
        )
        job = {
            "package": self.plan.suite.package,
            "dimension": self.dimension,
            "device": self.upstream.device,
        }
        try:
            return run_attempt(attempt, job, rows, stop), log
        except OSError as error:
            raise RunDirectoryError(
                f"cannot start the public code for {self.dimension}: {error}",
                received=f"{python} in {root}",
                remedy="check the interpreter and the folder, then start the same command again",
            ) from error

    def _results(self) -> DimensionResults:
        dimension = self.plan.suite.dimensions[self.dimension]
        entries = self.entries()
        results = parse_dimension(dimension, self.stated, list(entries.values()))
        results.origin = ORIGIN
        results.unscored |= {n: why for n, why in self.given_up.items() if n not in entries}
        if dimension.per_prompt:  # reasons are filed under the first video, as results are
            filed = set(self.plan.results_of(self.dimension))
            results.unscored = {n: why for n, why in results.unscored.items() if n in filed}
        if self.problem:
            results.problems.append(f"ended early: {self.problem}")
        return results


@contextmanager
def _only_here(folder: Path) -> Iterator[None]:
    """Keep a second process out of a folder; the kernel frees it when the holder dies."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryError(
                "another process is scoring this dimension here",
                received=str(folder),
                remedy="wait for it, or choose another --output-dir",
            ) from error
        yield
    finally:
        os.close(descriptor)
