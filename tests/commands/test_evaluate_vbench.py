"""`eval vbench` from the command line, from plan to submission."""

import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from longtake.commands import evaluate_vbench
from longtake.commands.evaluate_vbench import vbench
from longtake.commands.options import Commands
from longtake.evaluation.vbench.suites import SUITES, VBENCH2

COMMANDS = ["plan", "generate", "check", "doctor", "run", "aggregate", "compare", "submit"]
FAST = ["--set", "num_steps=1", "--set", "num_frames=5", "--set", "height=32", "--set", "width=32"]


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    whole = typer.Typer(cls=Commands)
    whole.add_typer(vbench, name="vbench")
    whole.command("other")(lambda: None)
    return whole


@pytest.fixture
def call(app: typer.Typer) -> typing.Callable[..., Result]:
    def run(*arguments: object, code: int = 0) -> Result:
        words = ["vbench", *map(str, arguments)]
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return run


Call = typing.Callable[..., Result]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    rows = [
        {"prompt_en": f"a red circle moves left, {name} {i}", "dimension": [name]}
        for name in VBENCH2.dimensions
        for i in range(2)
    ]
    path = tmp_path / "VBench2_full_info.json"
    path.write_text(json.dumps(rows))
    return path


def results(folder: Path, plan: Path, skip: str = "") -> Path:
    """Results of every planned video in the public layout, two folders deep."""
    videos = json.loads(plan.read_text())["videos"]
    for name, dimension in VBENCH2.dimensions.items():
        if name == skip:
            continue
        entries = [
            {"video_path": f"/v/{v['name']}", "video_results": v["index"] % 2}
            for v in videos
            if name in v["dimensions"] and (v["index"] == 0 or not dimension.per_prompt)
        ]
        path = folder / name / "model" / "r_eval_results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({name: [None, entries]}))
    return folder


def test_help_explains_every_command_and_imports_nothing_heavy(call: Call) -> None:
    assert all(name in call("--help").output for name in COMMANDS)
    for name in COMMANDS:
        assert "Example: python cli.py eval vbench" in call(name, "--help").output
    code = (
        "import sys\nfrom longtake.commands.evaluate_vbench import vbench\n"
        "import typer\n"
        "try:\n    vbench(['run', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'av', 'longtake.evaluation.vbench.suites'}\n"
        "print('HEAVY', sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in done.stdout, done.stderr


def test_repeated_names_match_their_owners() -> None:
    assert set(typing.get_args(evaluate_vbench.SuiteName)) == set(SUITES)


def test_from_plan_to_submission(call: Call, suite: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert "142 videos" in call("plan", "--source", suite, "--out", plan).output
    folder = results(tmp_path / "evaluation_results", plan)
    table = tmp_path / "scores.json"
    out = call("aggregate", folder, "--plan", plan, "--json", table).output
    assert "Total" in out and "Human_Anatomy" in out
    record = json.loads(table.read_text())
    assert record["categories"]["Total"]["score"] == pytest.approx(
        (1 / 6 + 1 / 3 + 1 / 3 + 1 / 3 + 1 / 3) / 5  # Diversity is 0: its first video has index 0
    )
    call("submit", folder, "--plan", plan, "--out", tmp_path / "x.zip")
    assert (tmp_path / "x.zip").is_file()
    out = call("compare", folder, tmp_path / "x.zip", "--plan", plan).output
    assert "not separable" in out and "paired prompts" in out
    out = call("compare", folder, "LongCat-Video", "--plan", plan).output
    assert "rough bound" in out and "62.11" in out


def test_a_missing_dimension_exits_with_1_and_prints_no_total(
    call: Call, suite: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    call("plan", "--source", suite, "--out", plan)
    folder = results(tmp_path / "evaluation_results", plan, skip="Material")
    out = call("aggregate", folder, "--plan", plan, code=1).output
    assert "Total: no score without Material" in out
    out = call("submit", folder, "--plan", plan, "--out", tmp_path / "x.zip", code=2).output
    assert "not complete" in out and not (tmp_path / "x.zip").exists()


def test_generate_check_doctor_and_run(call: Call, suite: Path, tmp_path: Path) -> None:
    plan, videos = tmp_path / "plan.json", tmp_path / "videos"
    call("plan", "--source", suite, "--out", plan, "--dimension", "Material", "--samples", 1)
    generate = ["generate", "--plan", plan, "--out", videos, "--device", "cpu", *FAST]
    assert "1 made, 0 were there" in call(*generate, "--rank", 1, "--world", 2).output
    out = call("check", "--plan", plan, "--videos", videos, code=1).output
    assert "missing: a red circle moves left, Material 0-0.mp4" in out
    assert "1 made, 1 were there" in call(*generate).output
    call(*generate, "--rank", 2, "--world", 2, code=2)
    (videos / "stranger-0.mp4").write_text("")
    out = call("check", "--plan", plan, "--videos", videos).output
    assert "0 are missing, 0 are unreadable" in out and "not planned" in out
    out = call("doctor", "--dimension", "Human Anatomy", code=1).output
    assert "YOLO-World" in out and "git clone" in out
    assert "temporal_flickering" in call("doctor", "--suite", "vbench1", code=1).output
    arguments = ["run", "--plan", plan, "--videos", videos, "--output-dir", tmp_path / "scores"]
    out = call(*arguments, code=1).output
    assert "Material: not run, missing: checkout, environment llava" in out


def test_the_sample_scores_what_needs_no_download(call: Call, tmp_path: Path) -> None:
    arguments = ["--output-dir", tmp_path, "--prompts", 2, "--samples", 1, "--device", "cpu", *FAST]
    for _ in range(2):  # the second time it goes on, with everything there
        out = call(*arguments).output
        assert "Scored: temporal_flickering (1 of 34 dimensions), on 2 videos of 2 prompts" in out
        assert "Not scored: the other 33" in out and "a missing dimension is not 0" in out
        assert "prompts of the sandbox" in out and "ours" in out
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 2
    result = json.loads(next((tmp_path / "results").rglob("*_eval_results.json")).read_text())
    assert 0.5 < result["temporal_flickering"][0] <= 1.0


def test_errors_of_the_user_have_no_traceback(call: Call, tmp_path: Path) -> None:
    for words in (
        ["plan", "--source", tmp_path, "--out", tmp_path / "p.json"],
        ["aggregate", tmp_path],
        ["compare", "nobody", "Veo3"],
        ["generate", "--plan", tmp_path / "none.json", "--out", tmp_path],
        ["doctor", "--python", tmp_path / "python"],
    ):
        out = call(*words, code=2).output
        assert out.startswith("error: ") and "Traceback" not in out
