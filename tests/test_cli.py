import json
import os
import signal
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from longtake import __version__, cli
from longtake.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    (),
    ("grpo",),
    ("grpo", "run"),
    ("rewards",),
    ("rewards", "score"),
    ("rewards", "serve"),
    ("rewards", "import"),
    ("rewards", "train"),
    ("rewards", "evaluate"),
    ("check",),
    ("check", "golden"),
    ("sandbox",),
    ("sandbox", "render"),
    ("sandbox", "pretrain"),
    ("sandbox", "oracles"),
    ("sandbox", "preferences"),
    ("sandbox", "heads"),
    ("sandbox", "judge"),
    ("eval",),
    ("eval", "mos"),
    ("eval", "mos", "assign"),
    ("eval", "mos", "score"),
    ("eval", "mos", "report"),
    ("eval", "mos", "simulate"),
    ("eval", "gsb"),
    ("eval", "gsb", "plan"),
    ("eval", "gsb", "score"),
    ("eval", "gsb", "report"),
    ("eval", "judge"),
    ("eval", "judge", "train"),
    ("eval", "judge", "calibrate"),
    ("eval", "judge", "score"),
    ("eval", "judge", "report"),
    ("eval", "vbench"),
    ("eval", "vbench", "plan"),
    ("eval", "vbench", "generate"),
    ("eval", "vbench", "check"),
    ("eval", "vbench", "doctor"),
    ("eval", "vbench", "run"),
    ("eval", "vbench", "aggregate"),
    ("eval", "vbench", "compare"),
    ("eval", "vbench", "submit"),
    ("eval", "report"),
    ("eval", "compare"),
    ("eval", "rescore"),
    ("eval", "power"),
    ("eval", "bench"),
    ("eval", "bench", "list"),
    ("eval", "bench", "sample"),
    ("eval", "bench", "render-images"),
    ("generate",),
]


def run(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "cli.py", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_works_and_explains(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli.app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output
    is_group = any(other[: len(command)] == command != other for other in COMMANDS)
    if not is_group:
        assert "Example: python cli.py" in result.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['cli.py', 'grpo', 'run', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'cli.py')!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'numpy', 'pandas', 'transformers', 'diffusers', 'omegaconf', 'av'}\n"
        "print('HEAVY', sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_version() -> None:
    assert run("--version").stdout.strip() == __version__


def test_repeated_names_match_their_owners() -> None:
    from longtake.commands import rewards, sandbox
    from longtake.rewards.spec import COLOR_MODES, RewardKind
    from longtake.sandbox import facts

    assert typing.get_args(sandbox.Split) == typing.get_args(facts.Split)
    assert typing.get_args(rewards.Kind) == typing.get_args(RewardKind)
    assert typing.get_args(rewards.ColorMode) == COLOR_MODES


def test_user_errors_have_no_traceback(tmp_path: Path) -> None:
    done = run("check", "golden", tmp_path / "[absent].safetensors")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "[absent].safetensors" in done.stderr and "remedy" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_setting_names_the_nearest(tmp_path: Path) -> None:
    arguments = ["generate", "x", "--out", str(tmp_path / "x.mp4"), "--set", "num_step=3"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert "did you mean `num_steps`?" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("w", remedy="r"), 2), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from longtake.sandbox import gallery

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(gallery, "render_to_directory", fail)
    result = CliRunner().invoke(cli.app, ["sandbox", "render", "--out", str(tmp_path)])
    assert result.exit_code == code
    assert "Traceback" not in result.output


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from longtake.sandbox import gallery

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(gallery, "render_to_directory", fail)
    result = CliRunner().invoke(cli.app, ["sandbox", "render", "--out", str(tmp_path)])
    assert isinstance(result.exception, RuntimeError)


WAITING = """
import sys, time
from types import ModuleType
from longtake import cli

def wait(*_):
    print("inside", flush=True)
    time.sleep(60)

gallery = ModuleType("longtake.sandbox.gallery")
gallery.render_to_directory = wait
sys.modules["longtake.sandbox.gallery"] = gallery
sys.argv = ["longtake", "sandbox", "render", "--out", "unused"]
cli.main()
"""


def test_interrupt_ends_a_real_process_with_130() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A runner started in the background hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stdout.readline() == "inside\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr and "Traceback" not in stderr


@pytest.mark.parametrize("name", ["hpsv3", "videoreward", "videoreward_lora"])
def test_golden_check_knows_reward_models(name: str) -> None:
    golden = str(ROOT / "tests" / "data" / f"{name}.safetensors")
    result = CliRunner().invoke(cli.app, ["check", "golden", golden])
    assert result.exit_code == 0 and "out.logits" in result.stdout


def test_golden_check_knows_block_sparse_attention() -> None:
    golden = str(ROOT / "tests" / "data" / "bsa.safetensors")
    result = CliRunner().invoke(cli.app, ["check", "golden", golden])
    assert result.exit_code == 0 and "topr_64.block_mask" in result.stdout


def test_golden_check_passes_and_fails_by_exit_code() -> None:
    golden = str(ROOT / "tests" / "data" / "schedules.json")
    assert CliRunner().invoke(cli.app, ["check", "golden", golden]).exit_code == 0
    result = CliRunner().invoke(cli.app, ["check", "golden", golden, "--tolerance", "-1"])
    assert result.exit_code == 1
    assert "FAILED" in result.stdout


def test_rendered_clips_score_high(tmp_path: Path) -> None:
    render = ["sandbox", "render", "--out", str(tmp_path), "--count", "2", "--seed", "3"]
    assert CliRunner().invoke(cli.app, render).exit_code == 0
    record = json.loads((tmp_path / "captions.jsonl").read_text().splitlines()[0])
    score = ["sandbox", "oracles", str(tmp_path / record["clip"]), "--prompt", record["caption"]]
    lines = CliRunner().invoke(cli.app, score).stdout.splitlines()
    scores = {name: float(value) for name, value in map(str.split, lines)}
    assert set(scores) == {"alignment", "motion", "visual"}
    assert min(scores.values()) > 0.9


def test_an_unfit_clip_is_refused(tmp_path: Path) -> None:
    from longtake.core.video import write_mp4

    clip = write_mp4(torch.zeros(5, 3, 48, 48), tmp_path / "c.mp4", fps=8)
    result = CliRunner().invoke(cli.app, ["sandbox", "oracles", str(clip), "--prompt", "x"])
    assert result.exit_code == 2
    assert "48x48" in result.stderr and "64x64" in result.stderr


def test_works_from_another_folder(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout.strip() == __version__
