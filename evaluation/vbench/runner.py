"""Call one function of the public code: executed by another environment's Python, stdlib only.

    ENV/bin/python -I -u runner.py JOB.json      (working directory: the checkout)

The public functions return everything at the end, so a crash would lose hours. They are called for
a few prompts at a time instead; nothing of the public code is changed.
"""

import importlib
import json
import os
import sys
from typing import Any


def write(path: str, **fields: object) -> None:
    """Replace the outcome: the stage reached, and what came of it."""
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(fields, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)


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


def run(job: dict[str, Any]) -> None:
    """Import, find the weights, compute; each stage is on the disk before it starts."""
    stage = "import"
    try:
        write(job["outcome"], stage=stage)
        sys.path.insert(0, job["root"])
        loading = importlib.import_module(f"{job['package']}.utils")
        name = job["dimension"].replace("-", "_").lower()
        function = getattr(importlib.import_module(f"{job['package']}.{name}"), f"compute_{name}")
        stage = "weights"
        write(job["outcome"], stage=stage)
        submodules = loading.init_submodules([job["dimension"]], local=True)[job["dimension"]]
        torch = sys.modules.get("torch")
        device = torch.device(job["device"]) if torch else job["device"]
        stage = "compute"
        write(job["outcome"], stage=stage)
        try:
            videos = list(function(job["info"], device, submodules)[1])
        except ZeroDivisionError:
            if not job["may_not_apply"]:
                raise
            # The public mean over the videos other than -1 has none to divide by.
            with open(job["info"], encoding="utf-8") as file:
                paths = [path for row in json.load(file) for path in row["video_list"]]
            videos = [{"video_path": path, "video_results": -1} for path in paths]
        write(job["outcome"], stage="done", videos=plain(videos))
    except BaseException as error:  # SystemExit too: the public code may leave anywhere
        write(job["outcome"], stage=stage, error=f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as job_file:
        run(json.load(job_file))
