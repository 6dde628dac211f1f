"""The public code on this machine: checkout, weights, environments, and traps in its results.

`vbench` and `vbench2` pin other versions of torch and transformers than ours and than each other's
dimensions, so they never enter this environment: uv makes one for each group of dimensions, from
requirements.toml, or the user gives the interpreter of one.
"""

import math
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from longtake.evaluation.vbench import runner
from longtake.evaluation.vbench.suites import Suite
from longtake.evaluation.vbench.videos import VideoFacts
from longtake.runtime.errors import UserError

RUNNER = Path(runner.__file__)
_FAILED_CLIP = re.compile(r"Error processing video: .*/(?P<stem>.+)_clip_\d{4}\.mp4")
_CLIP_S = 2
_HUBS = {"torch": ("TORCH_HOME", "torch"), "hf": ("HF_HOME", "huggingface")}


TABLE = tomllib.loads(Path(__file__).with_name("requirements.toml").read_text(encoding="utf-8"))
NEEDS: dict[str, dict[str, dict[str, Any]]] = TABLE["needs"]
"""Suite -> dimension -> environment, and where there are any weights, programs, memory_gib; the
fields are explained in requirements.toml."""


def is_native(suite: Suite, dimension: str) -> bool:
    """Whether a dimension is scored here too, without the public code: it needs no weights."""
    return "weights" not in NEEDS[suite.name][dimension]


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """The user's copy of the public code and how to start it."""

    suite: Suite
    checkout: Path | None = None
    """Root of a clone of the public repository."""
    commit: str
    """Commit that the checkout must be at; a prefix is enough."""
    pythons: Mapping[str, Path] = field(default_factory=dict)
    """Interpreter by dimension, instead of uv; the one under the empty name serves all others."""
    device: str = "cuda"
    """Device of the public code, as torch names it."""
    allow_downloads: bool = False
    """Let the public code fetch missing weights itself."""

    @property
    def root(self) -> Path:
        """Folder that the public code is started from."""
        assert self.checkout is not None
        return (self.checkout / self.suite.folder).resolve()

    @cached_property
    def head(self) -> str | None:
        """Commit of the checkout; None without one, without git, or outside a repository."""
        if self.checkout is None:
            return None
        command = ("git", "-C", str(self.checkout), "rev-parse", "HEAD")
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    def python(self, dimension: str) -> Path | None:
        """The user's interpreter for a dimension; None: uv makes the environment."""
        return self.pythons.get(dimension, self.pythons.get(""))

    def place(self, weights: Mapping[str, str]) -> Path:
        """Where weights must lie."""
        if "place" not in weights:
            return self.cache / weights["path"]
        variable, name = _HUBS[weights["place"]]
        home = os.environ.get(variable) or Path.home() / ".cache" / name
        return Path(home) / "hub" / weights["path"]

    @property
    def cache(self) -> Path:
        """The suite's own folder of weights."""
        default = Path.home() / ".cache" / self.suite.package
        return Path(os.environ.get(self.suite.cache_variable) or default)

    def command(self, dimension: str, job: Path) -> list[str]:
        """The runner in the environment of a dimension, to be started in :attr:`root`."""
        # -I keeps this Python's packages out, -u lets the log be read while it runs.
        words = ["-I", "-u", str(RUNNER), str(job)]
        if python := self.python(dimension):
            return [str(python), *words]
        assert self.checkout is not None
        from uv import find_uv_bin

        own = TABLE["environments"][NEEDS[self.suite.name][dimension]["environment"]]
        options = ["--no-project", "--python", own["python"]]
        for name in own.get("requirements", ()):
            options += ["--with-requirements", str((self.checkout / name).resolve())]
        for package in own["packages"]:
            options += ["--with", package]
        return [str(find_uv_bin()), "run", *options, "python", *words]

    def variables(self, gpu: str | None = None, python: Path | None = None) -> dict[str, str]:
        """Variables of a child process: nothing of this Python, offline unless allowed.

        ``gpu``: the only one it may see; None hides none. Programs beside ``python`` come first.
        """
        # Our PYTHONPATH would put this environment's torch in front of theirs.
        child = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_"))}
        if python is not None:
            child["PATH"] = os.pathsep.join((str(python.parent), child.get("PATH", "")))
        child[self.suite.cache_variable] = str(self.cache.absolute())
        if not self.allow_downloads:
            child |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        if gpu is not None:
            child["CUDA_VISIBLE_DEVICES"] = gpu
        return child

    def missing(self, dimension: str) -> dict[str, str]:
        """What a dimension lacks on this machine, with how to get each thing; nothing is changed.

        Packages are not looked at: uv installs them.
        """
        need = NEEDS[self.suite.name][dimension]
        lacking: dict[str, str] = {}
        if self.checkout is None or not (self.root / self.suite.package).is_dir():
            lacking["checkout"] = (
                f"git clone https://github.com/Vchitect/VBench; git checkout {self.commit}; "
                "then --checkout"
            )
        elif not (self.head or "").startswith(self.commit):
            lacking["the commit"] = (
                f"git checkout {self.commit}, or say --commit: another version is another metric"
            )
        by_hand = TABLE["environments"][need["environment"]].get("by_hand")
        if by_hand and self.python(dimension) is None:
            lacking[f"environment {need['environment']}"] = (
                f"{by_hand}; then --python {dimension}=ENV/bin/python"
            )
        for weights in (TABLE["weights"][key] for key in need.get("weights", ())):
            place = self.place(weights)
            # An empty file is what a failed download of theirs leaves behind.
            there = (
                any(place.iterdir()) if place.is_dir() else place.is_file() and place.stat().st_size
            )
            if not self.allow_downloads and not there:
                how = weights["get"].replace("CACHE", str(self.cache))
                lacking[weights["name"]] = f"{how}, to {place}"
        path = self.variables(python=self.python(dimension)).get("PATH")
        for program in need.get("programs", ()):
            if shutil.which(program, path=path) is None:
                lacking[program] = "must be on PATH"
        return lacking


def parse_pythons(suite: Suite, texts: Sequence[str]) -> dict[str, Path]:
    """Interpreters from ``PATH`` (for all dimensions) and ``DIMENSION=PATH``."""
    pythons: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.rpartition("=")
        key = suite.dimension(name).name if equals else ""
        # Not resolved: a virtual environment is known by the link to its interpreter.
        python = Path(path).expanduser().absolute()
        if key in pythons or not os.access(python, os.X_OK) or python.is_dir():
            raise UserError(
                "this interpreter cannot be used",
                received=text,
                expected="PATH or DIMENSION=PATH of an environment's bin/python, each once",
                remedy="leave --python out: uv makes the environment",
            )
        pythons[key] = python
    return pythons


def unfit(dimension: str, facts: VideoFacts) -> str:
    """Why a video must not be given to the public code; empty when it may.

    Instance Preservation cuts a video into clips of two seconds and gives 1 when no clip shows an
    anomaly, also when there is no clip.
    """
    if facts.problem:
        return f"unreadable: {facts.problem}"
    if math.isnan(facts.fps):  # divided by, and our runner reads a division by zero as all -1
        return "the file states no frame rate"
    if dimension == "Instance_Preservation" and facts.frames // facts.fps < _CLIP_S:
        return f"shorter than {_CLIP_S} s: upstream judges no clip of it and gives 1"
    return ""


def inflated_results(
    dimension: str, entries: Mapping[str, Mapping[str, Any]], log: Path
) -> dict[str, str]:
    """Videos whose result must not count, and why, told from the output of the public code.

    Instance Preservation takes a clip that it could not judge for one without anomaly (a bare
    `except`; for example where ffmpeg lacks the encoder), and says so only there.
    """
    if dimension != "Instance_Preservation":
        return {}
    text = log.read_text(encoding="utf-8", errors="replace")
    failed = {match["stem"] for match in _FAILED_CLIP.finditer(text)}
    return {
        name: "judging a clip failed, which upstream takes for no anomaly"
        for name, entry in entries.items()
        if entry.get("video_results") == 1 and Path(name).stem in failed
    }
