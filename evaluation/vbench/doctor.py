"""What is missing before the public code can score a dimension, and how to get it."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longtake.evaluation.vbench.requirements import (
    NATIVE,
    REQUIREMENTS,
    Requirement,
    Weights,
    setup_command,
)
from longtake.evaluation.vbench.upstream import Upstream

_FIND_MODULES = (
    "import importlib.util, json, sys; "
    "print(json.dumps([m for m in sys.argv[1:] if importlib.util.find_spec(m) is None]))"
)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What one dimension needs on this machine."""

    dimension: str
    group: str
    """Dimensions of one group can share an environment."""
    memory_gib: float | None
    """GPU memory; None: not known."""
    is_native: bool
    """Whether an implementation of ours scores it without any of this."""
    missing: tuple[str, ...]
    """Each with how to get it; empty: ready to run."""


def examine(upstream: Upstream, dimensions: Sequence[str]) -> list[Diagnosis]:
    """Check checkout, environments, weights, programs and GPU memory; nothing is changed."""
    needs = REQUIREMENTS[upstream.suite.name]
    common = _checkout_problems(upstream)
    memory = _gpu_memory_gib() if upstream.device.startswith("cuda") else None
    found = []
    for name in dimensions:
        need = needs[name]
        missing = [
            *common,
            *_code_problems(upstream, need),
            *_python_problems(upstream, name, need),
            *_weight_problems(upstream, need),
            *_memory_problems(upstream, need, memory),
        ]
        found.append(
            Diagnosis(
                dimension=name,
                group=need.group,
                memory_gib=need.memory_gib,
                is_native=name in NATIVE[upstream.suite.name],
                missing=tuple(missing),
            )
        )
    return found


def head_commit(checkout: Path) -> str | None:
    """Commit of a checkout; None without git, or outside a repository."""
    try:
        done = subprocess.run(
            ("git", "-C", str(checkout), "rev-parse", "HEAD"),
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _checkout_problems(upstream: Upstream) -> list[str]:
    if upstream.checkout is None or upstream.root is None:
        return [
            "checkout: git clone https://github.com/Vchitect/VBench, "
            f"git checkout {upstream.commit}, then --checkout"
        ]
    package = upstream.root / upstream.suite.package
    if not (package / "__init__.py").is_file():
        return [f"checkout: no {upstream.suite.package} in {upstream.root}"]
    commit = head_commit(upstream.checkout)
    if commit is None or not commit.startswith(upstream.commit):
        return [
            f"checkout: it is at {(commit or 'an unknown commit')[:12]}, not {upstream.commit}: "
            f"git checkout {upstream.commit}, or say --commit (scores of other versions differ)"
        ]
    return []


def _code_problems(upstream: Upstream, need: Requirement) -> list[str]:
    if upstream.root is None or not need.folder or (upstream.root / need.folder).is_dir():
        return []
    return [f"checkout: {need.folder} is not there (the wheel and old commits lack it)"]


def _python_problems(upstream: Upstream, dimension: str, need: Requirement) -> list[str]:
    python = upstream.python(dimension)
    if python is None:
        how = setup_command(upstream.suite, need.group)
        return [f"environment ({need.group}): {how}; then --python [{dimension}=]ENV/bin/python"]
    problems = []
    absent = _absent_modules(python, need.modules)
    if absent is None:
        problems.append(f"environment: {python} does not start")
    elif absent:
        problems.append(f"packages in {python}: {', '.join(absent)}")
    path = upstream.environment(python)["PATH"]
    for program in need.programs:
        if shutil.which(program, path=path) is None:
            problems.append(f"program: {program} on PATH")
    if "ffmpeg" in need.programs and not _has_encoder("libx264", path):
        problems.append("program: ffmpeg with the encoder libx264 (without it, upstream scores 1)")
    return problems


def _absent_modules(python: Path, modules: tuple[str, ...]) -> tuple[str, ...] | None:
    """Modules that an environment cannot find; None when it does not start."""
    try:
        done = subprocess.run(
            (str(python), "-I", "-c", _FIND_MODULES, *modules),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return tuple(json.loads(done.stdout))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _has_encoder(name: str, path: str) -> bool:
    program = shutil.which("ffmpeg", path=path)
    if program is None:
        return True  # reported as missing already
    try:
        done = subprocess.run(
            (program, "-hide_banner", "-encoders"), capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return name in done.stdout


def _weight_problems(upstream: Upstream, need: Requirement) -> list[str]:
    if upstream.allow_downloads:
        return []
    problems = []
    for weights in need.weights:
        path = upstream.place(weights.place) / weights.path
        if not _has_content(path):
            problems.append(f"weights: {path} from {_how(upstream, weights)}")
    return problems


def _has_content(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.is_file() and path.stat().st_size > 0


def _how(upstream: Upstream, weights: Weights) -> str:
    return weights.get.replace("CACHE", str(upstream.place("cache")))


def _memory_problems(upstream: Upstream, need: Requirement, memory: float | None) -> list[str]:
    if not upstream.device.startswith("cuda"):
        return []
    if memory is None:
        return ["GPU: none is visible (or --device cpu, where the public code allows it)"]
    if need.memory_gib is not None and memory < need.memory_gib:
        return [f"GPU memory: {need.memory_gib:g} GiB, the largest GPU has {memory:.0f}"]
    return []


def _gpu_memory_gib() -> float | None:
    """Memory of the largest GPU; None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = (program, "--query-gpu=memory.total", "--format=csv,noheader,nounits")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return max(float(line) for line in done.stdout.splitlines() if line.strip()) / 1024
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
