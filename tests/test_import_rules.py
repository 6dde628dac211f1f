"""House rules that no linter knows: who may import whom, where Triton may be named, file sizes."""

import ast
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW = {
    "runtime": set(),
    "kernels": {"runtime"},
    "core": {"runtime", "kernels"},
    "rewards": {"runtime", "kernels", "core"},
    "grpo": {"runtime", "kernels", "core", "rewards"},
    "evaluation": {"runtime", "kernels", "core", "rewards", "training"},
    "training": {"runtime", "kernels", "core"},
    # The sandbox's recipes make checkpoints/tiny by what users call; only commands may use them.
    "sandbox": {"runtime", "kernels", "core", "rewards", "grpo", "training", "evaluation"},
    # The groups of the command line, which only cli.py imports.
    "commands": {
        "runtime",
        "kernels",
        "core",
        "sandbox",
        "rewards",
        "grpo",
        "evaluation",
        "training",
    },
}
# The one way on which what the oracles say reaches a training: as labels, with noise and biases, of
# annotators and raters that are simulated (importer -> oracles).
SIMULATED_ANNOTATORS = "longtake.sandbox.preferences"
ORACLES = "longtake.sandbox.oracles"
NOT_PACKAGES = {"tests", "docs", "notebooks", "bench", "benchmarks_data", "checkpoints", "runs"}
MAX_LINES = 600


def sources() -> list[Path]:
    folders = [folder for folder in BELOW if (ROOT / folder).is_dir()]
    below = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [ROOT / "__init__.py", ROOT / "cli.py", *below]


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(absolute dotted name, line) of every import, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            assert node.module is not None
            for alias in node.names:  # `from longtake import core` names core in the alias
                yield f"{node.module}.{alias.name}", node.lineno


def module_level_imports(tree: ast.Module) -> Iterator[str]:
    """Names that are imported when the file is: everything outside function bodies."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (name for name, _ in imports(ast.Module([node], [])))
        pending.extend(ast.iter_child_nodes(node))


def violations(source: str, folder: str, where: str) -> list[str]:
    """Imports in a file of `folder` that point upwards or to a bare folder name."""
    found = []
    for name, line in imports(ast.parse(source)):
        parts = name.split(".")
        if parts[0] in BELOW:
            found.append(f"{where}:{line} imports bare `{name}`; write longtake.{name}")
        if parts[0] == "longtake" and len(parts) > 1:
            target = parts[1]
            if target == "cli":
                found.append(f"{where}:{line} imports the command line")
            elif target in BELOW and target != folder and target not in BELOW[folder]:
                found.append(f"{where}:{line} {folder} must not import {target}")
    return found


def test_imports_point_one_way() -> None:
    found = []
    for path in sources():
        relative = path.relative_to(ROOT)
        if len(relative.parts) > 1:  # the two root files may import everything
            found += violations(path.read_text(encoding="utf-8"), relative.parts[0], str(relative))
    assert not found, "\n".join(found)


def test_the_table_has_no_cycle() -> None:
    for folder, below in BELOW.items():
        for lower in below:
            assert folder not in BELOW[lower], f"{folder} <-> {lower}"
            assert BELOW[lower] <= below | {"kernels"}, f"{folder} skips what {lower} needs"


def import_graph() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, also inside functions."""
    paths = {
        ".".join(("longtake", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in sources()
    }
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        graph[module] = set()
        for name, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
            # Importing a.b.c runs a and a.b too; the last part may be a name of the module.
            parts = name.split(".")
            ancestors = {".".join(parts[:n]) for n in range(2, len(parts) + 1)}
            graph[module] |= ancestors & paths.keys()
    return graph


def chain_to(graph: dict[str, set[str]], start: str, goal: str) -> list[str]:
    """A shortest chain of imports from `start` to `goal` or a module below it; [] without one."""
    chains, seen = [[start]], {start}
    for chain in chains:
        for module in sorted(graph[chain[-1]] - seen):
            if module == goal or module.startswith(f"{goal}."):
                return [*chain, module]
            seen.add(module)
            chains.append([*chain, module])
    return []


def test_no_training_reaches_the_oracles() -> None:
    graph = import_graph()
    # Without it the rule below would be empty: labels come from the oracles this way only.
    assert any(module.startswith(ORACLES) for module in graph[SIMULATED_ANNOTATORS])
    graph[SIMULATED_ANNOTATORS] -= {m for m in graph if m.startswith(ORACLES)}
    folders = ("runtime", "kernels", "core", "rewards", "grpo", "training", "evaluation")
    trainings = tuple(f"longtake.{folder}." for folder in (*folders, "sandbox.recipes"))
    starts = [module for module in graph if module.startswith(trainings)]
    assert {"longtake.grpo.loss", "longtake.sandbox.recipes.heads"} <= set(starts)
    found = [" -> ".join(chain) for s in starts if (chain := chain_to(graph, s, ORACLES))]
    assert not found, "\n".join(found)


def test_what_users_train_with_knows_no_sandbox() -> None:
    graph = import_graph()
    users = [m for m in graph if not m.startswith(("longtake.sandbox", "longtake.commands"))]
    found = [m for m in users if m != "longtake.cli" and chain_to(graph, m, "longtake.sandbox")]
    assert not found


def test_chains_are_followed_to_their_end() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e.f"}, "e.f": set()}
    assert chain_to(graph, "a", "e") == ["a", "b", "d", "e.f"]
    assert chain_to(graph, "a", "x") == []


@pytest.mark.parametrize(
    ("source", "folder", "word"),
    [
        ("import longtake.grpo.loss", "core", "grpo"),
        ("def f():\n    from longtake.sandbox.oracles import ORACLES", "grpo", "sandbox"),
        ("from longtake import sandbox", "rewards", "sandbox"),
        ("from longtake.cli import app", "grpo", "command line"),
        ("from longtake import cli", "training", "command line"),
        ("from kernels import get_kernel", "core", "bare"),
        ("import core.flow", "grpo", "bare"),
        ("if True:\n    import longtake.core.flow as flow", "runtime", "core"),
    ],
)
def test_the_check_itself_sees_violations(source: str, folder: str, word: str) -> None:
    found = violations(source, folder, "file.py")
    assert len(found) == 1 and word in found[0]


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("from longtake.core import flow", "grpo"),
        ("from longtake.grpo.loss import policy_loss", "grpo"),
        ("import torch\nfrom longtake import __version__", "runtime"),
    ],
)
def test_the_check_itself_lets_good_imports_pass(source: str, folder: str) -> None:
    assert violations(source, folder, "file.py") == []


def is_for_gpus(parts: Sequence[str]) -> bool:
    """Whether a file or module of kernels/ may import Triton, and is imported when needed."""
    return "kernels" in parts and not {"triton", "gluon"}.isdisjoint(parts)


def test_triton_is_named_only_where_it_is_needed() -> None:
    found = [
        f"{path.relative_to(ROOT)} imports {name} at import time"
        for path in sources()
        if not is_for_gpus(path.relative_to(ROOT).parts)
        for name in module_level_imports(ast.parse(path.read_text(encoding="utf-8")))
        if name.split(".")[0] == "triton" or is_for_gpus(name.split("."))
    ]
    assert not found, "\n".join(found)


def test_files_stay_small() -> None:
    lines = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in sources()}
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}
    assert lines["cli.py"] <= 100


def test_kernels_has_no_init_file() -> None:
    # With one, transformers takes the folder for Hugging Face's `kernels` package and breaks.
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_every_package_folder_is_listed_and_has_an_init_file() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(config["tool"]["setuptools"]["packages"])
    folders = {
        path.parent.relative_to(ROOT)
        for top in ROOT.iterdir()
        if top.is_dir() and not top.name.startswith(".") and top.name not in NOT_PACKAGES
        for path in top.rglob("*.py")
        if "build" not in path.relative_to(ROOT).parts
    }
    found = {".".join(("longtake", *folder.parts)) for folder in folders}
    assert found | {"longtake", "longtake.kernels"} == listed
    without = {str(f) for f in folders if not (ROOT / f / "__init__.py").exists()}
    assert {name for name in without if not name.startswith("kernels")} == set()


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
