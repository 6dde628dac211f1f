"""What the doctor finds, on a stand-in checkout with some things missing."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from longtake.evaluation.vbench import doctor, requirements
from longtake.evaluation.vbench.doctor import Diagnosis, examine
from longtake.evaluation.vbench.native import SCORERS
from longtake.evaluation.vbench.requirements import NATIVE, REQUIREMENTS, Requirement, Weights
from longtake.evaluation.vbench.suites import SUITES, VBENCH1, VBENCH2
from longtake.evaluation.vbench.upstream import Upstream, parse_pythons
from longtake.runtime.errors import UserError


@pytest.fixture
def upstream(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Upstream:
    need = Requirement(
        group="test",
        modules=("json",),
        weights=(Weights(name="the model", path="model.bin", get="a shop"),),
        memory_gib=50,
    )
    monkeypatch.setitem(
        requirements.REQUIREMENTS, "vbench2", dict.fromkeys(VBENCH2.dimensions, need)
    )
    return upstream


def one(upstream: Upstream) -> Diagnosis:
    (found,) = examine(upstream, ["Material"])
    return found


def whats(upstream: Upstream) -> list[str]:
    return [thing.what for thing in one(upstream).missing]


def need_of(**changes: object) -> None:
    table = requirements.REQUIREMENTS["vbench2"]
    table["Material"] = replace(table["Material"], **changes)  # type: ignore[arg-type]


def test_everything_there_is_ready(upstream: Upstream) -> None:
    found = one(upstream)
    assert found.missing == () and found.memory_gib == 50 and not found.is_native


def test_each_missing_thing_is_named_with_how_to_get_it(upstream: Upstream, tmp_path: Path) -> None:
    assert whats(replace(upstream, checkout=None)) == ["checkout"]
    assert whats(replace(upstream, checkout=tmp_path)) == ["checkout"]
    (wrong,) = one(replace(upstream, commit="1234567")).missing
    assert wrong.what == "the commit" and "another version is another metric" in wrong.how
    (environment,) = one(replace(upstream, pythons={})).missing
    assert environment.what == "environment test" and "--python" in environment.how
    (weights,) = one(replace(upstream, weights=tmp_path)).missing
    assert weights.what == "the model" and "a shop" in weights.how
    assert str(tmp_path / "model.bin") in weights.how
    assert whats(replace(upstream, weights=tmp_path, allow_downloads=True)) == []


def test_empty_weights_do_not_count(upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("")
    assert whats(replace(upstream, weights=tmp_path)) == ["the model"]
    (tmp_path / "model.bin").unlink()
    (tmp_path / "model.bin").mkdir()
    assert whats(replace(upstream, weights=tmp_path)) == ["the model"]


def test_packages_are_looked_up_in_the_other_environment(upstream: Upstream) -> None:
    need_of(modules=("json", "no_such_package_a", "no_such_package_b"))
    (packages,) = one(upstream).missing
    assert "no_such_package_a, no_such_package_b" in packages.how
    broken = replace(upstream, pythons={"": Path("/bin/false")})
    assert whats(broken) == ["environment"]
    # One dimension can have an environment of its own.
    both = replace(upstream, pythons={"": Path("/bin/false"), "Mechanics": Path(sys.executable)})
    assert [len(found.missing) for found in examine(both, ["Material", "Mechanics"])] == [1, 0]


def test_programs_and_encoders(upstream: Upstream, tmp_path: Path) -> None:
    need_of(programs=("no-such-program",))
    assert whats(upstream) == ["no-such-program"]
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    ffmpeg = python.with_name("ffmpeg")
    for encoders, expected in ((" V..... libx264 H.264", []), (" V..... mpeg4", ["libx264"])):
        ffmpeg.write_text(f"#!/bin/sh\necho '{encoders}'\n")
        ffmpeg.chmod(0o755)
        need_of(programs=("ffmpeg",))
        assert whats(replace(upstream, pythons={"": python})) == expected


def test_gpu_memory(upstream: Upstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cuda = replace(upstream, device="cuda")
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    monkeypatch.setenv("PATH", str(smi.parent), prepend=":")
    for output, expected in (("24576\n24576", ["GPU memory"]), ("24576\n81920", [])):
        smi.write_text(f"#!/bin/sh\nprintf '{output}\\n'\n")
        smi.chmod(0o755)
        assert whats(cuda) == expected
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert whats(cuda) == ["GPU"]


def test_files_that_only_the_right_version_has(upstream: Upstream, stand_in) -> None:  # type: ignore[no-untyped-def]
    need_of(folder="vbench2/third_party/Instance_detector")
    assert whats(upstream) == ["vbench2/third_party/Instance_detector"]
    config = stand_in.root / "vbench2" / "config.py"
    need_of(folder="", config="vbench2/config.py")
    assert whats(upstream) == []
    config.write_text("text_model_name = 'openai/clip'\ntext_model_name = '/home/author/clip'\n")
    assert whats(upstream) == ["text model of YOLO-World"]
    config.write_text("text_model_name = '/home/author/clip'\ntext_model_name = 'openai/clip'\n")
    assert whats(upstream) == []


def test_interpreters_from_the_command_line(tmp_path: Path) -> None:
    python = sys.executable
    assert parse_pythons(VBENCH2, [python, f"Human Anatomy={python}"]) == {
        "": Path(python),
        "Human_Anatomy": Path(python),
    }
    for wrong, problem in (
        ([str(tmp_path / "absent")], "no such interpreter"),
        ([str(tmp_path)], "no such interpreter"),
        ([f"Hair={python}"], "unknown dimension"),
        ([python, python], "two interpreters"),
    ):
        with pytest.raises(UserError, match=problem):
            parse_pythons(VBENCH2, wrong)


def test_a_child_sees_nothing_of_this_python(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    child = upstream.environment(Path("/envs/a/bin/python"), gpu="3")
    assert "PYTHONPATH" not in child and "VIRTUAL_ENV" not in child
    assert child["PATH"].startswith("/envs/a/bin:")
    assert child["CUDA_VISIBLE_DEVICES"] == "3" and child["HF_HUB_OFFLINE"] == "1"
    assert child["VBENCH2_CACHE_DIR"] == str(upstream.weights)
    online = replace(upstream, allow_downloads=True).environment(Path("/envs/a/bin/python"))
    assert "HF_HUB_OFFLINE" not in online


def test_every_dimension_has_needs_and_only_one_needs_no_weights() -> None:
    without = set()
    for name, suite in SUITES.items():
        assert set(REQUIREMENTS[name]) == set(suite.dimensions)
        without |= {dim for dim, need in REQUIREMENTS[name].items() if not need.weights}
    assert without == set(NATIVE[VBENCH1.name]) | set(NATIVE[VBENCH2.name]) == set(SCORERS)
    assert all(need.memory_gib for need in REQUIREMENTS["vbench2"].values())


def test_a_machine_with_nothing_gets_the_whole_list(tmp_path: Path) -> None:
    for suite in SUITES.values():
        nothing = Upstream(suite=suite, weights=tmp_path)
        for found in examine(nothing, list(suite.dimensions)):
            need = REQUIREMENTS[suite.name][found.dimension]
            expected = {"checkout", f"environment {need.group}"}
            expected |= {w.name for w in need.weights if w.place == "cache"}
            assert expected <= {thing.what for thing in found.missing}
    assert doctor.head_commit(tmp_path) is None
