"""What is missing before the public code can score a dimension, and how to get it."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longtake.evaluation.vbench.requirements import (
    NATIVE,
    REQUIREMENTS,
    Requirement,
    setup_command,
)
from longtake.evaluation.vbench.upstream import Upstream

_FIND_MODULES = (
    "import importlib.util, json, sys; "
    "print(json.dumps([m for m in sys.argv[1:] if importlib.util.find_spec(m) is None]))"
)
_TEXT_MODEL = re.compile(r"^text_model_name = ['\"](.+)['\"]", re.MULTILINE)


@dataclass(frozen=True)
class Missing:
    """One thing that is not there."""

    what: str
    """In a word."""
    how: str
    """How to get it."""

    def __str__(self) -> str:
        return f"{self.what}: {self.how}"


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
    missing: tuple[Missing, ...]
    """Empty: ready to run."""


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


def _checkout_problems(upstream: Upstream) -> list[Missing]:
    if upstream.checkout is None or upstream.root is None:
        clone = "git clone https://github.com/Vchitect/VBench; "
        return [Missing("checkout", f"{clone}git checkout {upstream.commit}; then --checkout")]
    package = upstream.root / upstream.suite.package
    if not (package / "__init__.py").is_file():
        return [Missing("checkout", f"there is no {upstream.suite.package} in {upstream.root}")]
    commit = head_commit(upstream.checkout)
    if commit is None or not commit.startswith(upstream.commit):
        return [
            Missing(
                "the commit",
                f"the checkout is at {(commit or 'an unknown commit')[:17]}: git checkout "
                f"{upstream.commit}, or say --commit (another version is another metric)",
            )
        ]
    return []


def _code_problems(upstream: Upstream, need: Requirement) -> list[Missing]:
    if upstream.root is None:
        return []
    if need.folder and not (upstream.root / need.folder).is_dir():
        return [Missing(need.folder, "the wheel and old commits lack it: take the checkout")]
    config = upstream.root / need.config
    if not config.is_file():
        return []
    named = _TEXT_MODEL.findall(config.read_text(encoding="utf-8", errors="replace"))
    if named and named[-1].startswith("/") and not Path(named[-1]).exists():
        how = f"{config} names {named[-1]}: set text_model_name to openai/clip-vit-base-patch32"
        return [Missing("text model of YOLO-World", how)]
    return []


def _python_problems(upstream: Upstream, dimension: str, need: Requirement) -> list[Missing]:
    python = upstream.python(dimension)
    if python is None:
        how = setup_command(upstream.suite, need.group)
        return [Missing(f"environment {need.group}", f"{how}; then --python [NAME=]ENV/bin/python")]
    problems: list[Missing] = []
    absent = _absent_modules(python, need.modules)
    if absent is None:
        problems.append(Missing("environment", f"{python} does not start"))
    elif absent:
        how = f"install {', '.join(absent)} for {python}"
        problems.append(Missing(f"packages of {need.group}", how))
    path = upstream.environment(python)["PATH"]
    for program in need.programs:
        if shutil.which(program, path=path) is None:
            problems.append(Missing(program, "must be on PATH"))
    if "ffmpeg" in need.programs and not _has_encoder("libx264", path):
        problems.append(Missing("libx264", "ffmpeg must have it; without it, upstream scores 1"))
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


def _weight_problems(upstream: Upstream, need: Requirement) -> list[Missing]:
    if upstream.allow_downloads:
        return []
    problems: list[Missing] = []
    for weights in need.weights:
        path = upstream.place(weights.place) / weights.path
        if not _has_content(path):
            how = weights.get.replace("CACHE", str(upstream.place("cache")))
            problems.append(Missing(weights.name, f"{how}, to {path}"))
    return problems


def _has_content(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.is_file() and path.stat().st_size > 0


def _memory_problems(upstream: Upstream, need: Requirement, memory: float | None) -> list[Missing]:
    if not upstream.device.startswith("cuda"):
        return []
    if memory is None:
        return [Missing("GPU", "none is visible (or --device cpu, where the public code can)")]
    if need.memory_gib is not None and memory < need.memory_gib:
        how = f"{need.memory_gib:g} GiB are needed, the largest GPU has {memory:.0f}"
        return [Missing("GPU memory", how)]
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
