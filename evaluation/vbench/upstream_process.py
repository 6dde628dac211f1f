"""One attempt: start the public code in its environment, watch for progress, stop it if it hangs.

How it ended is read from the files it wrote; the exit code is never trusted.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

RUNNER = Path(__file__).with_name("upstream_runner.py")
_POLL_S = 0.1
_GRACE_S = 10.0
"""Time to record what is finished between SIGTERM and SIGKILL."""

Stage = Literal["start", "import", "weights", "compute", "done"]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an attempt ended."""

    stage: Stage
    """Last stage that was reached."""
    reason: str
    """Why it ended before `done`; empty when it reached it."""
    score: float | None = None
    """What the public code returned as the dimension's score."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Everything one start of the public code needs."""

    python: Path
    """Interpreter of the environment."""
    root: Path
    """Working directory: the folder of the checkout that holds the package."""
    environment: Mapping[str, str]
    folder: Path
    """Gets job, status and prompt files."""
    log: Path
    """Gets standard output and error."""
    records: Path
    """Gets one line per finished video."""
    timeout_s: float
    """Longest time without a finished video or a new stage."""


def run_attempt(
    attempt: Attempt,
    job: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    stop: threading.Event,
) -> Ending:
    """Run until the process ends, hangs or ``stop`` is set.

    Args:
        attempt: where and how.
        job: package, dimension and device for the runner.
        rows: prompts with the videos to score, as the public code reads them.
        stop: ends the attempt early; what is finished stays.

    Raises:
        OSError: the files cannot be written, or the interpreter does not start.
    """
    status = attempt.folder / "status.json"
    status.unlink(missing_ok=True)
    info = attempt.folder / "full_info.json"
    info.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    job_file = attempt.folder / "job.json"
    job_file.write_text(
        json.dumps(
            {
                **job,
                "root": str(attempt.root),
                "info": str(info),
                "records": str(attempt.records),
                "status": str(status),
            }
        ),
        encoding="utf-8",
    )
    with attempt.log.open("wb") as log:
        process = subprocess.Popen(
            (str(attempt.python), "-I", "-u", str(RUNNER), str(job_file)),
            cwd=attempt.root,
            env=dict(attempt.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its own children can be stopped with it
        )
        try:
            stopped = _wait(process, attempt, status, stop)
        finally:
            _end(process)
    return _ending(process, status, stopped)


def _wait(
    process: subprocess.Popen[bytes],
    attempt: Attempt,
    status: Path,
    stop: threading.Event,
) -> str:
    """Wait for the end; the reason when it was not the process that ended it."""
    seen = (-1, -1)
    last = time.monotonic()
    while process.poll() is None:
        state = (_size(attempt.records), _changed(status))
        if state != seen:
            seen, last = state, time.monotonic()
        if stop.wait(_POLL_S):
            return "stopped on request"
        if time.monotonic() - last > attempt.timeout_s:
            return f"no video finished for {attempt.timeout_s:g} s"
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and the children it left behind."""
    for number, grace in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _ending(process: subprocess.Popen[bytes], status: Path, stopped: str) -> Ending:
    try:
        content = json.loads(status.read_text(encoding="utf-8"))
        stage, error = content["stage"], content.get("error", "")
    except (OSError, ValueError, KeyError, TypeError):
        content, stage, error = {}, "start", ""
    if stage == "done":
        score = content.get("score")
        return Ending(
            stage="done", reason="", score=score if isinstance(score, int | float) else None
        )
    code = process.returncode
    if stopped:
        reason = stopped
    elif error:
        reason = error
    elif code < 0:
        reason = f"killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    else:
        reason = f"it left with exit code {code} and no word"
    return Ending(stage=stage, reason=reason)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
