"""The repository root is the package, and nobody may take its folder `kernels` for another one."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, *path: Path, cwd: Path = ROOT, script: Path | None = None) -> str:
    """Standard output of a fresh interpreter that has `path` in front of its module search path."""
    arguments = [sys.executable, str(script)] if script else [sys.executable, "-c", code]
    done = subprocess.run(
        arguments,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def hugging_face_kernels(tmp_path: Path) -> Path:
    """A folder with a stand-in for Hugging Face's `kernels` distribution."""
    package = tmp_path / "site" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        '__version__ = "0.18.2"\nIS_HUGGING_FACE = True\n'
        "class Anything:\n"  # a class, a decorator and a decorator factory at once
        "    def __init__(self, *_, **__): ...\n"
        "    def __call__(self, first=None, *_, **__): return first\n"
        "def __getattr__(name):\n"
        "    if name.startswith('__'): raise AttributeError(name)\n"
        "    return type(name, (Anything,), {})\n"
    )
    info = tmp_path / "site" / "kernels-0.18.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    (info / "top_level.txt").write_text("kernels\n")
    return tmp_path / "site"


FIND = """
import importlib.util
spec = importlib.util.find_spec("kernels")
print("none" if spec is None else "namespace" if spec.origin is None else spec.origin)
"""


def test_from_the_root_no_code_of_ours_is_named_kernels() -> None:
    # With `python -c` the root is on the path: an `__init__.py` in kernels/ would be found here.
    found = python(FIND)
    assert found in {"none", "namespace"} or not found.startswith(str(ROOT / "kernels"))


def test_hugging_face_kernels_wins_even_with_the_root_first(hugging_face_kernels: Path) -> None:
    code = "import kernels; print(kernels.IS_HUGGING_FACE)"
    assert python(code, ROOT, hugging_face_kernels) == "True"


def test_transformers_and_diffusers_are_healthy_beside_both(hugging_face_kernels: Path) -> None:
    # `python -c` from the root has our folder and Hugging Face's package on the path at once.
    code = (
        "from transformers import UMT5EncoderModel\n"
        "from diffusers import AutoencoderKLWan\n"
        "import longtake.core, kernels\n"
        "print(UMT5EncoderModel.__name__, AutoencoderKLWan.__name__, kernels.IS_HUGGING_FACE)"
    )
    assert python(code, hugging_face_kernels) == "UMT5EncoderModel AutoencoderKLWan True"


def test_script_hides_the_root_and_binds_the_checkout(
    tmp_path: Path, hugging_face_kernels: Path
) -> None:
    # What `python cli.py` sees, asked from inside: the real header, then our questions.
    header = (ROOT / "cli.py").read_text(encoding="utf-8").split("from typing import")[0]
    assert "spec_from_file_location" in header
    copy = tmp_path / "checkout"
    copy.mkdir()
    (copy / "__init__.py").write_text((ROOT / "__init__.py").read_text(encoding="utf-8"))
    for folder in ("core", "kernels", "evaluation"):
        (copy / folder).mkdir()
        (copy / folder / "inside.py").write_text(f"NAME = {folder!r}\n")
    (copy / "script.py").write_text(
        header + "import importlib.util, json, kernels, longtake\n"
        "from longtake.kernels import inside\n"
        "print(json.dumps([longtake.__file__, inside.NAME, hasattr(kernels, 'IS_HUGGING_FACE'),\n"
        "    [importlib.util.find_spec(n) is None for n in ('core', 'evaluation')]]))\n"
    )
    answer = json.loads(python("", hugging_face_kernels, cwd=tmp_path, script=copy / "script.py"))
    assert answer == [str(copy / "__init__.py"), "kernels", True, [True, True]]


def test_modules_are_imported_under_one_name_only() -> None:
    # Under two names, a custom op would be registered twice.
    code = (
        "import runpy, sys\n"
        "sys.argv = ['cli.py', '--version']\n"
        "try:\n    runpy.run_path('cli.py', run_name='__main__')\nexcept SystemExit: pass\n"
        "import longtake.runtime.errors\n"
        "names = [n for n, m in sys.modules.items() if getattr(m, '__file__', None) and "
        "m.__file__.endswith('runtime/errors.py')]\n"
        "print(names)"
    )
    assert python(code).splitlines()[-1] == "['longtake.runtime.errors']"


def test_installed_command_points_to_the_cli() -> None:
    scripts = metadata.entry_points(group="console_scripts", name="longtake")
    assert [script.value for script in scripts] == ["longtake.cli:main"]


def test_constraints_are_exact_pins_without_addresses() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in pins)
    assert not [line for line in pins if "://" in line or line.startswith("-") or " @ " in line]


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    required = metadata.requires("longtake") or []
    names = {
        "".join(c if c.isalnum() or c in "-_." else " " for c in line).split()[0].lower()
        for line in required
        if "trackers" not in line  # services: tested by stand-ins, not pinned
    }
    names -= {"longtake"}  # the extra `dev` takes in the extra `clip`
    assert {name.replace("_", "-") for name in names} <= pinned


def test_wheel_holds_every_module(tmp_path: Path) -> None:
    """Build what `pip install .` would install, with the build backend already present."""
    code = (
        "import sys\n"
        "from setuptools import setup\n"
        f"sys.argv = ['setup.py', '-q', 'build', '--build-base', {str(tmp_path)!r}]\n"
        "setup()\n"
    )
    python(code)
    built = {p.relative_to(tmp_path / "lib" / "longtake") for p in tmp_path.rglob("*.py")}
    folders = (
        "commands",
        "core",
        "evaluation",
        "grpo",
        "kernels",
        "rewards",
        "runtime",
        "sandbox",
        "training",
    )
    expected = {p.relative_to(ROOT) for f in folders for p in (ROOT / f).rglob("*.py")}
    assert built == expected | {Path("__init__.py"), Path("cli.py")}
