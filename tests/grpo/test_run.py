"""Whole runs: artefacts, kill and resume bit for bit, Ctrl-C, wrong input."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.grpo.config import GRPOConfig
from longtake.grpo.run import run_grpo
from longtake.runtime.config import config_to_yaml
from longtake.runtime.errors import RunDirectoryError, UserError
from longtake.runtime.files import TEMPORARY
from longtake.runtime.run_directory import RunDirectory

SCRIPT = """
import sys
from pathlib import Path
from longtake.grpo.config import GRPOConfig
from longtake.grpo.run import Interrupted, run_grpo
from longtake.runtime.config import merge_config
config = merge_config(GRPOConfig(), Path(sys.argv[1]))
try:
    run_grpo(config, output_dir=Path(sys.argv[2]), resume=True)
except Interrupted:
    sys.exit(130)
"""


def start(config: Path, out: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(config), str(out)],
        env=environment,
        stderr=subprocess.PIPE,
    )


def wait_for(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    """Poll until the condition holds; the process must not have ended before."""
    deadline = time.monotonic() + 240
    while not reached():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def final_state(out: Path) -> dict[str, Tensor]:
    state = torch.load(out / "checkpoints" / "step-6" / "state.pt", weights_only=True)
    flat: dict[str, Tensor] = dict(state["adapter"])
    for index, moments in state["optimizer"]["state"].items():
        flat |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    return flat


@pytest.fixture(scope="module")
def whole_run(micro_config: GRPOConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of six updates, by the same subprocess as the killed ones."""
    root = tmp_path_factory.mktemp("whole")
    (root / "config.yaml").write_text(config_to_yaml(micro_config), encoding="utf-8")
    process = start(root / "config.yaml", root / "run")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error.decode()
    return root / "run"


def test_a_run_leaves_every_promised_file(whole_run: Path, micro_config: GRPOConfig) -> None:
    for name in (
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "timing.jsonl",
        "summary.json",
        "curves.png",
        "report.html",
        "held_out_before.jsonl",
        "held_out_after.jsonl",
        "samples/before_after.png",
        "lora/adapter_model.safetensors",
        "lora.safetensors",
    ):
        assert (whole_run / name).stat().st_size > 0, name
    summary = json.loads((whole_run / "summary.json").read_text())
    assert summary["updates"] == 6 and summary["seed"] == 0 and summary["stopped"] is None
    assert summary["nfe"]["rollout_naive"] == 6 * 3 * 4 * 8
    assert 0 < summary["nfe"]["rollout"] < summary["nfe"]["rollout_naive"]
    assert summary["nfe"]["train_forwards"] == 6 * 3 * 2
    assert set(summary["rewards"]) == set(micro_config.rewards.reward_weights)
    low, high = summary["rewards"]["general"]["ci95"]
    assert low <= summary["rewards"]["general"]["diff"] <= high
    assert [r["update"] for r in records(whole_run)] == list(range(6))


def records(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_kill_and_resume_equals_an_uninterrupted_run_bit_for_bit(
    whole_run: Path, micro_yaml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    # Killed in the first evaluation, between two saved states, and right after one.
    moments: list[Callable[[], bool]] = [
        lambda: (out / "config.yaml").exists(),
        lambda: lines(out) >= 3,
        lambda: (out / "checkpoints" / "step-4").exists(),
    ]
    for reached in moments:
        process = start(micro_yaml, out)
        wait_for(process, reached)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(micro_yaml, out)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error.decode()

    assert (out / "metrics.jsonl").read_bytes() == (whole_run / "metrics.jsonl").read_bytes()
    for name in ("lora.safetensors", "lora/adapter_model.safetensors", "held_out_after.jsonl"):
        assert (out / name).read_bytes() == (whole_run / name).read_bytes(), name
    mine, theirs = final_state(out), final_state(whole_run)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(mine[name], value), name


def test_ctrl_c_saves_the_state_and_says_how_to_go_on(
    whole_run: Path, micro_yaml: Path, tmp_path: Path
) -> None:
    out = tmp_path / "interrupted"
    process = start(micro_yaml, out)
    wait_for(process, lambda: lines(out) >= 1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error.decode()
    assert b"--resume" in error
    done = lines(out)
    assert 1 <= done < 6 and (out / "checkpoints" / f"step-{done}").is_dir()
    assert (out / "metrics.jsonl").read_bytes() == b"".join(
        (whole_run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:done]
    )


def test_a_dry_run_writes_nothing(
    micro_config: GRPOConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dry"
    assert run_grpo(micro_config, output_dir=out, dry_run=True) is None
    assert not out.exists()
    text = capsys.readouterr().err
    assert "6 of 3 prompts" in text and "36 training forwards" in text


# What is wrong -> changes of the configuration, and words of the answer.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "metric": ({"evaluation": {"metrics": ["beauty"]}}, "metric that is not there"),
    "reward": ({"rewards": {"reward_weights": {"beauty": 1.0}}}, "beauty"),
    "source": ({"rewards": {"reward_weights": {"hpsv3_general": 1.0}}}, "hpsv3_general"),
    "checkpoint": ({"checkpoint": "nowhere"}, "no such checkpoint"),
    "prompts": ({"prompts": "nowhere.txt"}, "prompt file cannot be read"),
    "number of prompts": ({"evaluation": {"num_prompts": 6}}, "too few held-out prompts"),
}


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_refused_before_any_work(
    micro_config: GRPOConfig, tmp_path: Path, name: str, dry_run: bool
) -> None:
    changes, words = WRONG[name]
    for key, value in changes.items():
        group = getattr(micro_config, key)
        whole = group.replace(**value) if isinstance(value, dict) else value
        micro_config = micro_config.replace(**{key: whole})
    with pytest.raises(UserError, match=words):
        run_grpo(micro_config, output_dir=tmp_path / "run", dry_run=dry_run)
    assert not (tmp_path / "run").exists()


def test_resume_needs_a_directory(micro_config: GRPOConfig) -> None:
    with pytest.raises(UserError, match="nothing to resume"):
        run_grpo(micro_config, resume=True)


def test_a_finished_or_foreign_run_directory_is_not_overwritten(
    whole_run: Path, micro_config: GRPOConfig, tmp_path: Path
) -> None:
    before = (whole_run / "summary.json").read_bytes()
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        run_grpo(micro_config, output_dir=whole_run)
    with pytest.raises(RunDirectoryError, match="another configuration"):
        run_grpo(micro_config.replace(seed=9), output_dir=whole_run, resume=True)
    assert (whole_run / "summary.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError):
        run_grpo(micro_config, output_dir=tmp_path / "file" / "run")


def test_a_full_disk_during_the_evaluation_is_explained_and_leaves_nothing(
    micro_config: GRPOConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("longtake.grpo.held_out.save_file", full)
    with pytest.raises(RunDirectoryError, match="free some space") as caught:
        run_grpo(micro_config, output_dir=tmp_path / "run")
    assert "held_out_before" in str(caught.value)
    assert not [p for p in (tmp_path / "run").iterdir() if "held_out" in p.name]


def test_what_a_kill_leaves_of_the_evaluation_is_swept(
    micro_config: GRPOConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are written beside their place under the name that a run directory sweeps."""
    left = []

    class Killed(Exception):
        pass

    def kill(source: Path, target: Path) -> None:
        if "held_out" in Path(target).name:
            left.append(Path(source).name)
            shutil.copy(source, tmp_path / "run" / f"{Path(source).name}-left")
            raise Killed
        os.rename(source, target)

    monkeypatch.setattr(Path, "replace", kill)
    with pytest.raises(Killed):
        run_grpo(micro_config, output_dir=tmp_path / "run")
    assert left and all(name.startswith(TEMPORARY) for name in left)
    RunDirectory.create(tmp_path / "run", config_to_yaml(micro_config), resume=True).close()
    assert not list((tmp_path / "run").glob("*held_out*"))
