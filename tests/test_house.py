"""Limits of the house; ``python tests/test_house.py [ROOT]`` prints its sizes, folder by folder.

Lines are physical lines of tracked Python files. A *check* is what refuses input: an ``if`` whose
only statement raises, an ``except`` that only raises again with other words, a bare ``raise`` of an
error and an ``assert``; its lines are compared with the number of statements, docstrings apart. A
*reason* is a comment line that is no instruction to a tool.
"""

import ast
import io
import subprocess
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUDGET = {
    "core": 6_500,
    "kernels": 5_500,
    "rewards": 5_900,
    "grpo": 5_500,
    "training": 3_000,
    "curation": 3_000,
    "evaluation": 9_000,
    "sandbox": 7_000,
    "runtime": 1_700,
    "commands": 1_600,
    "bench": 1_800,
}
"""Lines that a folder may have (DESIGN.md); who needs more deletes first."""


STILL_OVER = {"evaluation": 9_750, "rewards": 6_150, "commands": 1_700}
"""Folders above their budget, which may only shrink (docs/decisions.md says who misses what)."""
ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 600
MAX_TRACKED_BYTES = 48 * 2**20
SMALL = 80
ALONE = {
    "evaluation/vbench/generate.py": "needs torch, which planning and scoring must not import",
    "evaluation/vbench/runner.py": "runs in VBench's own environment, which has no longtake",
}
"""File of under 80 lines with one importer -> why it does not belong into that importer."""


@dataclass
class Size:
    """What is counted in a file or a folder."""

    files: int = 0
    lines: int = 0
    statements: int = 0
    checks: int = 0
    reasons: int = 0

    def add(self, other: "Size") -> None:
        """Take in another part."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def measure(source: str) -> Size:
    """The size of one file."""
    statements = 0
    checks: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        statements += isinstance(node, ast.stmt) and not is_docstring
        only_raises = (
            isinstance(node, ast.If | ast.ExceptHandler)
            and not getattr(node, "orelse", [])
            and all(isinstance(inner, ast.Raise) for inner in node.body)
        )
        if only_raises or isinstance(node, ast.Raise | ast.Assert):
            assert isinstance(node, ast.stmt | ast.ExceptHandler)
            checks.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    reasons = sum(
        token.type == tokenize.COMMENT
        and not token.string.lstrip("#: ").startswith(("noqa", "type:", "fmt:", "pragma", "!"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
    )
    return Size(1, source.count("\n"), statements, len(checks), reasons)


def sizes(root: Path) -> dict[str, Size]:
    """Folder -> size, of the Python files that git tracks; the root's own files are ``.``."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "*.py"], capture_output=True, text=True, check=True
    )
    folders: dict[str, Size] = {}
    for name in listed.stdout.splitlines():
        if (root / name).is_file():
            folder = name.split("/")[0] if "/" in name else "."
            part = measure((root / name).read_text(encoding="utf-8"))
            folders.setdefault(folder, Size()).add(part)
    return folders


def table(root: Path) -> str:
    """The sizes of a checkout as text."""
    rows = ["folder        files   lines  budget  checks  reasons per 100 lines"]
    total = Size()
    parts = sizes(root)
    for folder, size in sorted(parts.items(), key=lambda item: (item[0] == "tests", item[0])):
        if folder != "tests":
            total.add(size)
        rows.append(_row(folder, size))
    rows.insert(len(rows) - ("tests" in parts), _row("all but tests", total))
    return "\n".join(rows)


def _row(name: str, size: Size) -> str:
    budget = f"{BUDGET[name]:,}" if name in BUDGET else ""
    checks, reasons = size.checks / max(size.statements, 1), 100 * size.reasons / max(size.lines, 1)
    return f"{name:<13}{size.files:6}{size.lines:8,}{budget:>8}{checks:8.1%}{reasons:8.1f}"


def tracked(pattern: str = "*") -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", pattern], capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def modules() -> dict[str, Path]:
    """Dotted name -> file of everything that can be imported; tests and benchmarks apart."""
    return {
        ".".join(("longtake", *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in tracked("*.py")
        if path.relative_to(ROOT).parts[0] not in ("tests", "bench") and path.name != "__init__.py"
    }


def importers() -> dict[str, set[str]]:
    """Module -> the modules that name it, benchmarks and package files included."""
    files = modules()
    users: dict[str, set[str]] = {name: set() for name in files}
    for path in tracked("*.py"):
        if path.relative_to(ROOT).parts[0] == "tests":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names)):
                    if name in users and files[name] != path:
                        users[name].add(str(path))
    return users


def test_every_folder_keeps_its_budget(capsys: Any) -> None:
    with capsys.disabled():
        print(f"\n{table(ROOT)}")  # noqa: T201 (people look at it in every run)
    over = {
        name: f"{size.lines} lines, budget {BUDGET[name]}"
        for name, size in sizes(ROOT).items()
        if name in BUDGET and size.lines > STILL_OVER.get(name, BUDGET[name])
    }
    assert over == {}


def test_no_module_is_too_long() -> None:
    lines = {str(p.relative_to(ROOT)): p.read_text("utf-8").count("\n") for p in tracked("*.py")}
    code = {name: n for name, n in lines.items() if not name.startswith("tests/")}
    assert {name: n for name, n in code.items() if n > MAX_LINES} == {}
    assert lines["cli.py"] <= 100


def test_small_files_with_one_importer_have_a_reason() -> None:
    files, users = modules(), importers()
    small = {
        str(files[name].relative_to(ROOT))
        for name, who in users.items()
        if len(who) == 1
        and files[name].read_text("utf-8").count("\n") < SMALL
        and not name.startswith("longtake.commands.")  # a file there is a group of commands
    }
    assert small - set(ALONE) == set()
    assert set(ALONE) - small == set(), "a reason that nothing needs any more"


def test_every_module_is_used() -> None:
    sources = {path: path.read_text("utf-8") for path in tracked("*.py") + tracked("*.toml")}
    unused = set()
    for name, who in importers().items():
        path = modules()[name]
        # GPU kernels, the runner of VBench and rewards as sources are named in strings.
        names = (".".join(path.with_suffix("").parts[-2:]), path.name)
        others = [text for other, text in sources.items() if other != path]
        if not who and not any(n in text for n in names for text in others):
            unused.add(name)
    assert unused == set()


def test_the_repository_stays_light() -> None:
    assert sum(path.stat().st_size for path in tracked()) <= MAX_TRACKED_BYTES


if __name__ == "__main__":
    print(table(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT).resolve()))  # noqa: T201
