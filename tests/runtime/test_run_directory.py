import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from longtake.runtime.errors import RunDirectoryError
from longtake.runtime.run_directory import RunDirectory

CONFIG = "seed: 0\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", CONFIG, resume=False)


def reopen(run: RunDirectory) -> RunDirectory:
    run.close()
    return RunDirectory.create(run.path, CONFIG, resume=True)


def in_process(code: str, path: Path) -> subprocess.Popen[str]:
    """Python in another process, with `path` as its only argument."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_layout_of_a_new_run(run: RunDirectory) -> None:
    assert (run.path / "config.yaml").read_text() == CONFIG
    assert run.samples.is_dir() and run.checkpoints.is_dir()
    assert run.latest_checkpoint() is None
    assert run.read_metrics() == []


def test_existing_run_needs_resume(run: RunDirectory) -> None:
    run.close()
    with pytest.raises(RunDirectoryError, match="--resume"):
        RunDirectory.create(run.path, CONFIG, resume=False)
    RunDirectory.create(run.path, CONFIG, resume=True).close()


def test_resume_refuses_another_configuration(run: RunDirectory) -> None:
    run.close()
    with pytest.raises(RunDirectoryError, match="another configuration"):
        RunDirectory.create(run.path, "seed: 1\n", resume=True)
    assert (run.path / "config.yaml").read_text() == CONFIG


@pytest.mark.parametrize("resume", [True, False])
def test_empty_folder_counts_as_new(tmp_path: Path, resume: bool) -> None:
    with RunDirectory.create(tmp_path, CONFIG, resume=resume) as run:
        assert (run.path / "config.yaml").exists()


def test_metrics_keep_order_and_exact_values(run: RunDirectory) -> None:
    run.append_metrics(
        {
            "update": 0,
            "z": 1 / 3,
            "a": np.float32(0.1),
            "rewards": {"mq": torch.tensor(2.5), "ta": math.nan},
            "steps": [1, math.inf],
            "path": Path("x"),
            "ok": True,
        }
    )
    line = (run.path / "metrics.jsonl").read_text()
    assert list(json.loads(line)) == ["update", "z", "a", "rewards", "steps", "path", "ok"]
    assert "NaN" not in line and "Infinity" not in line
    assert run.read_metrics() == [
        {
            "update": 0,
            "z": 1 / 3,
            "a": float(np.float32(0.1)),
            "rewards": {"mq": 2.5, "ta": None},
            "steps": [1, None],
            "path": "x",
            "ok": True,
        }
    ]


def test_metrics_refuse_what_json_cannot_hold(run: RunDirectory) -> None:
    with pytest.raises(TypeError, match="object"):
        run.append_metrics({"x": object()})
    assert run.read_metrics() == []


def test_truncate_drops_redone_updates(run: RunDirectory) -> None:
    run.append_metrics({"event": "start"})
    for update in range(5):
        run.append_metrics({"update": update, "loss": update / 7})
    before = (run.path / "metrics.jsonl").read_text().splitlines()
    run.truncate_metrics(3)
    assert (run.path / "metrics.jsonl").read_text().splitlines() == before[:4]


def test_torn_last_line_is_left_out_and_removed(run: RunDirectory) -> None:
    run.append_metrics({"update": 0})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 1, "lo')
    with pytest.warns(UserWarning, match="torn"):
        assert run.read_metrics() == [{"update": 0}]
    again = reopen(run)
    again.append_metrics({"update": 1})
    assert again.read_metrics() == [{"update": 0}, {"update": 1}]


def test_checkpoints_are_kept_by_number_not_by_name(run: RunDirectory) -> None:
    for step in (8, 9, 10):
        run.save_checkpoint(step, lambda p: (p / "x").write_text("x") and None)
    assert names(run.checkpoints) == ["step-10", "step-9"]
    latest = run.latest_checkpoint()
    assert latest is not None and latest.name == "step-10"


def test_keep_zero_keeps_all(run: RunDirectory) -> None:
    for step in range(4):
        run.save_checkpoint(step, lambda p: None, keep=0)
    assert len(names(run.checkpoints)) == 4


def test_saving_a_step_again_replaces_it(run: RunDirectory) -> None:
    for text in ("old", "new"):
        run.save_checkpoint(1, lambda p, text=text: (p / text).write_text(text) and None)
    assert names(run.checkpoints) == ["step-1"]
    assert names(run.checkpoints / "step-1") == ["new"]


def test_kill_between_the_renames_of_a_replacement_loses_nothing(run: RunDirectory) -> None:
    run.save_checkpoint(1, lambda p: (p / "x").write_text("x") and None)
    (run.checkpoints / "step-1").rename(run.checkpoints / ".tmp-old-step-1")
    latest = reopen(run).latest_checkpoint()
    assert latest is not None and names(latest) == ["x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(errno.ENOSPC, "full")])
def test_failed_checkpoint_leaves_the_previous_one(
    run: RunDirectory, error: BaseException | type[BaseException]
) -> None:
    run.save_checkpoint(1, lambda p: (p / "x").write_text("x") and None)

    def fail(path: Path) -> None:
        (path / "half").write_text("half")
        raise error

    with pytest.raises((KeyboardInterrupt, ValueError)):
        run.save_checkpoint(2, fail)
    assert names(run.checkpoints) == ["step-1"]


def test_full_disk_names_the_remedy(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.append_metrics({"update": 0})
    real_write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 4:
            return real_write(descriptor, data[:4])  # a short write, then no space at all
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunDirectoryError, match=r"No space left[\s\S]*free some space"):
        run.append_metrics({"u": 1})
    monkeypatch.undo()
    assert (run.path / "metrics.jsonl").read_text() == '{"update": 0}\n'
    assert run.read_metrics() == [{"update": 0}]


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from longtake.runtime.errors import RunDirectoryError
from longtake.runtime.run_directory import RunDirectory

run = RunDirectory.create(Path(sys.argv[1]), "seed: 0\\n", resume=False)
save = {"safetensors": save_file, "torch": torch.save}[KIND]
run.save_checkpoint(1, lambda p: save({"x": torch.zeros(4)}, p / "weights"))
run.write_json("summary.json", {"small": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for attempt in (
    lambda: run.save_checkpoint(2, lambda p: save({"x": torch.zeros(20_000)}, p / "weights")),
    lambda: run.write_json("summary.json", {"big": "x" * 50_000}),
    lambda: run.append_metrics({"big": "x" * 50_000}),
):
    try:
        attempt()
    except RunDirectoryError as error:
        assert "--resume" in str(error), error
    else:
        sys.exit("no error")
"""


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_real_write_failures_keep_everything_written_before(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    done = in_process(f"KIND = {kind!r}\n{LIMITED}", path)
    _, stderr = done.communicate(timeout=60)
    assert done.returncode == 0, stderr
    assert names(path / "checkpoints") == ["step-1"]
    assert json.loads((path / "summary.json").read_text()) == {"small": 1}
    assert (path / "metrics.jsonl").read_bytes() == b""
    assert not [n for n in names(path) if n.startswith(".tmp")]


def test_a_programming_error_inside_a_writer_is_not_disguised(run: RunDirectory) -> None:
    def wrong(path: Path) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run.save_checkpoint(1, wrong)

    def unserialisable(path: Path) -> None:
        save_file({"x": torch.zeros(4, 4).T, "y": "no tensor"}, path / "w")  # type: ignore[dict-item]

    with pytest.raises((ValueError, TypeError, AttributeError)) as caught:
        run.save_checkpoint(1, unserialisable)
    assert not isinstance(caught.value, RunDirectoryError)


def test_path_through_a_file_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunDirectoryError, match="--output-dir"):
            RunDirectory.create(path, CONFIG, resume=False)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_unwritable_directory_names_the_remedy(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Faked: the tests may run as root, whom no permission stops.
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunDirectoryError, match="--output-dir"):
        RunDirectory.create(tmp_path / "run", CONFIG, resume=False)


HOLDER = """
import sys, time
from pathlib import Path
from longtake.runtime.run_directory import RunDirectory

run = RunDirectory.create(Path(sys.argv[1]), "seed: 0\\n", resume=True)
def write(path):
    (path / "half").write_text("half")
    print("inside", flush=True)
    time.sleep(60)
run.append_metrics({"update": 0})
run.save_checkpoint(1, lambda path: (path / "whole").write_text("whole"))
run.save_checkpoint(2, write)
"""


def test_kill_inside_a_checkpoint_and_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "run"
    holder = in_process(HOLDER, path)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "inside\n"
        with pytest.raises(RunDirectoryError, match="in use by another process"):
            RunDirectory.create(path, CONFIG, resume=True)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=30)
    assert ".tmp-step-2" in names(path / "checkpoints")  # the kill did fall inside
    with RunDirectory.create(path, CONFIG, resume=True) as run:  # the lock died with its holder
        assert names(run.checkpoints) == ["step-1"]
        assert run.read_metrics() == [{"update": 0}]


def test_two_openings_in_one_process_exclude_each_other(run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match="in use"):
        RunDirectory.create(run.path, CONFIG, resume=True)
    run.close()
    run.close()
    RunDirectory.create(run.path, CONFIG, resume=True).close()


def test_a_refused_opening_gives_the_lock_back(run: RunDirectory) -> None:
    run.close()
    for _ in range(3):
        with pytest.raises(RunDirectoryError, match="already holds a run"):
            RunDirectory.create(run.path, CONFIG, resume=False)


def test_readers_never_see_half_a_file(run: RunDirectory) -> None:
    texts = ["a" * 200_000, "b" * 300_000]
    run.write_text("report.html", texts[0])
    code = (
        "import json, sys, time\n"
        "end = time.monotonic() + 1.0\n"
        "seen = set()\n"
        "while time.monotonic() < end:\n"
        "    text = open(sys.argv[1]).read()\n"
        "    seen.add((text[:1], len(text)))\n"
        "print(json.dumps(sorted(seen)))\n"
    )
    reader = in_process(code, run.path / "report.html")
    for _ in range(400):
        for text in texts:
            run.write_text("report.html", text)
        if reader.poll() is not None:
            break
    out, _ = reader.communicate(timeout=30)
    seen = json.loads(out)
    assert seen and all(pair in (["a", 200_000], ["b", 300_000]) for pair in seen)


def test_json_has_no_nan(run: RunDirectory) -> None:
    run.write_json("summary.json", {"diff": math.nan, "ci95": (np.float64(0.5), -math.inf)})
    text = (run.path / "summary.json").read_text()
    assert json.loads(text) == {"diff": None, "ci95": [0.5, None]}
