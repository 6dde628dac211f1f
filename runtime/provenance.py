"""What a result came from: code state, versions, hardware, input digests, command line."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from longtake.runtime.files import digest

PACKAGES = (
    "accelerate",
    "av",
    "diffusers",
    "numpy",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
)
_ROOT = Path(__file__).resolve().parents[1]


def collect(paths: Mapping[str, Path]) -> dict[str, Any]:
    """A JSON-ready record of everything a result depends on.

    Args:
        paths: name -> file or directory whose content is to be recorded (checkpoint, prompts).

    Returns:
        Keys ``git``, ``argv``, ``python``, ``platform``, ``packages``, ``hardware``, ``digests``.
    """
    from longtake import __version__

    return {
        "longtake": __version__,
        "git": git_state(_ROOT),
        "argv": list(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "hardware": hardware(),
        "digests": {name: digest(path) for name, path in paths.items()},
    }


def git_state(root: Path) -> dict[str, Any]:
    """Commit and dirty flag of a checkout; both None without git or outside a repository."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return {"commit": None, "dirty": None}  # an installed copy inside somebody else's checkout
    status = _git(root, "status", "--porcelain")
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ("git", "-C", str(root), *arguments),
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """CPU model, usable cores, torch threads, memory in GiB and the visible GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


def cpu_model() -> str:
    """Name of the processor, from /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
