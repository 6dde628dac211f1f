"""Run one dimension of the public code: executed by another environment's Python, stdlib only.

    ENV/bin/python -I -u runner.py JOB.json      (working directory: the checkout)

The public functions return everything at the end, so a crash would lose hours. They are called for
a few prompts at a time instead, and each call's results go to the records file at once. Nothing of
the public code is changed.
"""

import importlib
import json
import os
import sys
from typing import Any


def write_status(job: dict[str, Any], **fields: object) -> None:
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


def add_records(path: str, videos: list[dict[str, Any]]) -> None:
    """Append finished videos; they are on the disk when this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(plain(video)) + "\n" for video in videos))
        file.flush()
        os.fsync(file.fileno())


def run(job: dict[str, Any]) -> None:
    """Import, find the weights, compute; each stage is on the disk before it starts."""
    stage = "import"
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
        for number, rows in enumerate(job["calls"]):
            write_status(job, stage=stage, call=number)
            with open(job["info"], "w", encoding="utf-8") as file:
                json.dump(rows, file, ensure_ascii=False)
            try:
                videos = list(function(job["info"], device, submodules)[1])
            except ZeroDivisionError:
                if not job["may_not_apply"]:
                    raise
                # The public mean over the videos other than -1 has none to divide by.
                paths = [path for row in rows for path in row["video_list"]]
                videos = [{"video_path": path, "video_results": -1} for path in paths]
            add_records(job["records"], videos)
        write_status(job, stage="done")
    finally:
        error = sys.exc_info()[1]
        if error is not None:
            message = f"{type(error).__name__}: {error}"
            call = number if stage == "compute" else None
            write_status(job, stage=stage, call=call, error=message)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as job_file:
        run(json.load(job_file))
