"""The script that another environment's Python executes: stdlib only, and what it records."""

import ast
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from longtake.evaluation.vbench import upstream_runner
from longtake.evaluation.vbench.upstream_process import RUNNER
from longtake.evaluation.vbench.upstream_runner import Records, callers, finished_videos, plain


def test_it_needs_nothing_but_the_standard_library() -> None:
    tree = ast.parse(RUNNER.read_text(encoding="utf-8"))
    names = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_it_starts_in_isolation_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('a file of the checkout got in')")
    done = subprocess.run(
        [sys.executable, "-I", "-u", RUNNER, "no-job.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "FileNotFoundError" in done.stderr and "no-job.json" in done.stderr


def test_finished_videos_are_found_in_a_running_thread() -> None:
    half_way, go_on = threading.Event(), threading.Event()

    def inner() -> None:
        processed = [{"video_path": "a.mp4", "video_results": 1.0}]
        rows = [{"prompt_en": "x", "video_list": ["a.mp4"]}] * 5  # longer, but not results
        processed.append({"video_path": "b.mp4"})  # its judge is still at work
        half_way.set()
        go_on.wait(10)
        assert processed and rows

    def outer() -> None:
        inner()

    thread = threading.Thread(target=outer)
    thread.start()
    half_way.wait(10)
    assert thread.ident is not None
    found = finished_videos(callers(sys._current_frames()[thread.ident]))
    go_on.set()
    thread.join()
    assert found == [{"video_path": "a.mp4", "video_results": 1.0}]


def test_records_hold_each_video_of_a_growing_list_once(tmp_path: Path) -> None:
    records = Records(str(tmp_path / "records.jsonl"))
    videos = [{"video_path": f"{i}.mp4", "video_results": np.float32(i)} for i in range(5)]
    for count in (0, 2, 2, 5, 5):
        records.add(videos[:count])
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["video_results"] for line in lines] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.5), 0.5),
        (np.bool_(True), True),
        (torch.tensor(0.25), 0.25),
        (np.arange(3), [0, 1, 2]),
        ({1: (torch.ones(2), None)}, {"1": [[1.0, 1.0], None]}),
        (Path("a"), "a"),
    ],
)
def test_results_become_plain(value: object, expected: object) -> None:
    found = plain(value)
    assert found == expected and json.loads(json.dumps(found)) == expected


def test_it_is_short_enough_to_be_read_before_it_is_trusted() -> None:
    assert len(Path(upstream_runner.__file__).read_text().splitlines()) < 160
