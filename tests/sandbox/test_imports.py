import ast
from pathlib import Path

import longtake.sandbox

ALLOWED = {"sandbox", "runtime", "core"}
# The training entry point of the sandbox may also use the training loop.
EXTRA = {"pretrain.py": {"training"}}


def test_sandbox_imports_runtime_and_core_only() -> None:
    root = Path(longtake.sandbox.__file__).parent
    files = sorted(root.rglob("*.py"))
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: relative import"
                names = [node.module or ""]
            for name in names:
                parts = name.split(".")
                if parts[0] == "longtake":
                    assert len(parts) > 1, f"{path.name}: import the module, not the package"
                    assert parts[1] in ALLOWED | EXTRA.get(path.name, set()), f"{path.name}: {name}"


def test_the_world_itself_needs_no_core() -> None:
    root = Path(longtake.sandbox.__file__).parent
    world = ["facts.py", "scene.py", "render.py", "captions.py", "splits.py", "corruptions.py"]
    files = [root / name for name in world] + sorted((root / "oracles").glob("*.py"))
    assert all("longtake.core" not in path.read_text() for path in files)
