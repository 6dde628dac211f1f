"""Run one dimension of the public code: executed by another environment's Python, stdlib only.

    ENV/bin/python -I -u upstream_runner.py JOB.json      (working directory: the checkout)

The public functions return everything at the end, so a crash would lose hours. Their finished
videos stand in a local list of dictionaries, though; a thread reads it while they run, and each
finished video goes to the records file at once. Nothing of the public code is changed.
"""

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from types import FrameType
from typing import Any

PERIOD_S = 0.25


def write_status(job: Mapping[str, Any], **fields: object) -> None:
    """Replace the status file: the stage reached, and how it ended."""
    temporary = job["status"] + ".tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(fields, file)
    os.replace(temporary, job["status"])


def plain(value: Any) -> Any:
    """A JSON-ready copy of what the public code puts into its results."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    return str(value)


def callers(frame: FrameType | None) -> Iterable[FrameType]:
    """A frame and the frames that called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def finished_videos(frames: Iterable[FrameType]) -> list[dict[str, Any]]:
    """The longest list of finished videos among the local variables of some frames."""
    best: list[dict[str, Any]] = []
    for frame in frames:
        for value in list(frame.f_locals.values()):
            if isinstance(value, list) and len(value) > len(best):
                items = list(value)
                if all(isinstance(item, dict) and "video_path" in item for item in items):
                    best = [item for item in items if "video_results" in item]
    return best


class Records:
    """Appends each finished video once; it is on the disk before the call returns."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._count = 0
        self._lock = threading.RLock()  # a signal may interrupt a call of the same thread

    def add(self, videos: Sequence[Mapping[str, Any]]) -> None:
        """Append those of a growing list that are new."""
        with self._lock:
            fresh = videos[self._count :]
            if not fresh:
                return
            with open(self._path, "a", encoding="utf-8") as file:
                for video in fresh:
                    file.write(json.dumps(plain(dict(video))) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._count += len(fresh)

    def watch(self, thread: int, stop: threading.Event) -> None:
        """Record what a thread has finished, until told to stop."""
        while not stop.wait(PERIOD_S):
            self.add(finished_videos(callers(sys._current_frames().get(thread))))


def run(job: Mapping[str, Any], records: Records) -> None:
    """Import, load the weights, compute; each stage is on the disk before it starts."""
    stage = "import"
    stop = threading.Event()
    watcher = threading.Thread(target=records.watch, args=(threading.get_ident(), stop))
    watcher.daemon = True
    try:
        write_status(job, stage=stage)
        sys.path.insert(0, job["root"])
        loading = importlib.import_module(f"{job['package']}.utils")
        name = job["dimension"].replace("-", "_").lower()
        function = getattr(importlib.import_module(f"{job['package']}.{name}"), f"compute_{name}")
        stage = "weights"
        write_status(job, stage=stage)
        submodules = loading.init_submodules([job["dimension"]], local=True)[job["dimension"]]
        torch = sys.modules.get("torch")
        device = torch.device(job["device"]) if torch else job["device"]
        stage = "compute"
        write_status(job, stage=stage)
        watcher.start()
        score, videos = function(job["info"], device, submodules)
        records.add(list(videos))
        write_status(job, stage="done", score=plain(score))
    finally:
        stop.set()
        error = sys.exc_info()[1]
        if error is not None:
            frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
            records.add(finished_videos(frames))
            write_status(job, stage=stage, error=f"{type(error).__name__}: {error}")


def main(path: str) -> None:
    """Run the job of a file; on SIGTERM, record what is finished and leave."""
    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    records = Records(job["records"])

    def leave(number: int, frame: FrameType | None) -> None:
        # No exception: the public code has a bare `except` that takes any for a good result.
        records.add(finished_videos(callers(frame)))
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    run(job, records)


if __name__ == "__main__":
    main(sys.argv[1])
