import dataclasses
import json
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from longtake.commands import evaluate_bench
from longtake.evaluation.internal_benchmark import importers, schema, suite
from longtake.evaluation.internal_benchmark.schema import (
    INTERNAL_SUITE,
    TextPrompt,
    read_jsonl,
    write_jsonl,
)
from longtake.runtime.errors import UserError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(
        evaluate_bench.bench, [str(argument) for argument in arguments], env={"COLUMNS": "120"}
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(INTERNAL_SUITE, tmp_path / "suite"))


def test_repeated_names_match_their_owners() -> None:
    assert set(typing.get_args(evaluate_bench.SuiteName)) == set(importers.SUITES)
    assert (*typing.get_args(evaluate_bench.TextSet), "i2v") == suite.SETS
    assert typing.get_args(evaluate_bench.Resolution) == ("listed", *schema.RESOLUTIONS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from longtake.commands.evaluate_bench import bench\n"
        "try:\n    bench(['validate', '--help'])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "print('HEAVY', sorted({'torch', 'numpy', 'PIL'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_validate_passes_the_shipped_suite_without_torch() -> None:
    code = (
        "import sys\n"
        "from longtake.commands.evaluate_bench import bench\n"
        "try:\n    bench(['validate', '--json'])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "print('TORCH', 'torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "TORCH False" in done.stderr, done.stderr
    checks = json.loads(done.stdout)
    assert set(checks) == {"t2v_human", "t2v_auto", "i2v", "t2v_human and t2v_auto"}
    assert all(check["passed"] for found in checks.values() for check in found)


def test_validate_names_what_is_violated(copy: Path) -> None:
    prompts = read_jsonl(copy / schema.T2V_HUMAN_FILE, TextPrompt)
    write_jsonl(prompts[:-1], copy / schema.T2V_HUMAN_FILE)
    done = run("validate", "--dir", copy, "--set", "t2v_human")
    assert done.exit_code == 1
    assert "violated: number of prompts" in done.output
    assert "words of the longest prompt" in done.output and "known images" not in done.output


def test_validate_prints_examples_as_plain_text(copy: Path) -> None:
    lines = (copy / schema.T2V_HUMAN_FILE).read_text(encoding="utf-8").split("\n")
    row = json.loads(lines[2]) | {"id": "[bold]", "language": "de"}
    lines[2] = json.dumps(row)
    (copy / schema.T2V_HUMAN_FILE).write_text("\n".join(lines), encoding="utf-8")
    done = run("validate", "--dir", copy, "--set", "t2v_human")
    assert "violated: language is en: [bold]" in done.output


def test_list_counts_and_prints(copy: Path) -> None:
    done = run("list")
    assert done.exit_code == 0
    rows = [line.replace("│", " ").split() for line in done.output.splitlines()]
    assert ["t2v_human", "500"] in rows and ["t2v_auto", "728"] in rows and ["i2v", "400"] in rows
    assert any(row[:2] == ["entity_generation", "196"] for row in rows)
    found = run("list", "--category", "inductive_reasoning").output.splitlines()
    auto = sum("inductive_reasoning" in p.categories for p in suite.read_text_set("t2v_auto"))
    assert len(found) == 11 + auto and all(line.startswith("t2v-") for line in found)
    assert isinstance(run("list", "--category", "drama").exception, UserError)


def test_import_writes_records_and_says_what_it_could_not_sort(tmp_path: Path) -> None:
    source = tmp_path / "bench.csv"
    source.write_text("prompt,concept,motion_level\nA dog runs.,animal,high\nA bay.,scene,low\n")
    done = run("import", "moviegen", source, "--out", tmp_path / "out.jsonl")
    assert done.exit_code == 0
    assert "2 prompts of 2 rows" in done.output and "1 prompts are marked unsorted" in done.output
    assert "scene (1)" in done.output
    assert [p.prompt for p in read_jsonl(tmp_path / "out.jsonl", TextPrompt)] == [
        "A dog runs.",
        "A bay.",
    ]


def test_sample_prints_one_prompt_a_line() -> None:
    plain = run("sample", 3, "--seed", 4).output.splitlines()
    full = [
        json.loads(line) for line in run("sample", 3, "--seed", 4, "--json").output.splitlines()
    ]
    assert plain == [record["prompt"] for record in full] and len(plain) == 3
    assert plain != run("sample", 3, "--seed", 5).output.splitlines()


def few_images(copy: Path, *rows: int) -> list[schema.ReferenceImage]:
    listed = suite.read_images()
    kept = [listed[row] for row in rows]
    write_jsonl(kept, copy / schema.IMAGES_FILE)
    return kept


def test_render_images_reproduces_the_listed_pictures(copy: Path, tmp_path: Path) -> None:
    kept = few_images(copy, 0, 28)  # a flat one; a solid one of standard quality
    done = run("render-images", "--dir", copy, "--out", tmp_path / "images")
    assert done.exit_code == 0 and "2 of 2 have the listed digest" in done.output
    assert suite.read_images(tmp_path / "images") == kept
    checks = suite.check_suite(copy, ["t2v_human"], tmp_path / "images")["image files"]
    assert all(check.passed for check in checks)


def test_render_images_at_another_resolution(copy: Path, tmp_path: Path) -> None:
    few_images(copy, 2)
    done = run("render-images", "--dir", copy, "--out", tmp_path, "--resolution", "1080p")
    assert done.exit_code == 0 and "listed digest" not in done.output
    (image,) = suite.read_images(tmp_path)
    assert (image.resolution, image.size()) == ("1080p", (1080, 1080))


def test_render_images_notices_other_pixels(copy: Path, tmp_path: Path) -> None:
    (image,) = few_images(copy, 0)
    changed = dataclasses.replace(image, sha256="0" * 64)
    write_jsonl([changed], copy / schema.IMAGES_FILE)
    done = run("render-images", "--dir", copy, "--out", tmp_path)
    assert done.exit_code == 1 and "0 of 1 have the listed digest" in done.output


def test_the_group_can_be_mounted() -> None:
    app = typer.Typer()
    app.add_typer(evaluate_bench.bench, name="bench")
    done = CliRunner().invoke(app, ["bench", "--help"])
    for command in ("validate", "list", "import", "sample", "render-images"):
        assert command in done.output
