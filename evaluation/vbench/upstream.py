"""Where the public code lives on this machine: checkout, environments, weights, device."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longtake.evaluation.vbench.requirements import Place
from longtake.evaluation.vbench.suites import PINNED_COMMIT, Suite, find_suite
from longtake.runtime.errors import UserError

_HUBS: dict[str, tuple[str, str]] = {
    "torch": ("TORCH_HOME", "torch"),
    "hf": ("HF_HOME", "huggingface"),
}


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """The user's installation of the public code."""

    suite: Suite
    checkout: Path | None = None
    """Root of a clone of the public repository; None: not given."""
    commit: str = PINNED_COMMIT
    """Commit that the checkout must be at; a prefix is enough."""
    pythons: Mapping[str, Path] = field(default_factory=dict)
    """Interpreter by dimension; the one under the empty name serves all others."""
    weights: Path | None = None
    """Folder of the suite's weights; None: the public default."""
    device: str = "cuda"
    """Device of the public code, as torch names it."""
    allow_downloads: bool = False
    """Let the public code fetch missing weights itself."""

    @property
    def root(self) -> Path | None:
        """Folder that the public code is started from."""
        return None if self.checkout is None else (self.checkout / self.suite.folder).resolve()

    def python(self, dimension: str) -> Path | None:
        """Interpreter of a dimension; None: not given."""
        return self.pythons.get(dimension, self.pythons.get(""))

    def place(self, place: Place) -> Path:
        """Folder of weights: the suite's own, torch's hub or Hugging Face's."""
        cache = Path.home() / ".cache"
        if place == "cache":
            default = os.environ.get(self.suite.cache_variable) or cache / self.suite.package
            return Path(self.weights or default)
        variable, name = _HUBS[place]
        return Path(os.environ.get(variable) or cache / name) / "hub"

    def environment(self, python: Path, gpu: str | None = None) -> dict[str, str]:
        """Variables of a child process: its own programs first, nothing of this Python, offline.

        Args:
            python: interpreter of the child.
            gpu: the only GPU it may see; None hides none.
        """
        child = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_"))}
        child["PATH"] = os.pathsep.join((str(python.absolute().parent), child.get("PATH", "")))
        child[self.suite.cache_variable] = str(self.place("cache").absolute())
        if not self.allow_downloads:
            child |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        if gpu is not None:
            child["CUDA_VISIBLE_DEVICES"] = gpu
        return child


def parse_pythons(suite: Suite, texts: Sequence[str]) -> dict[str, Path]:
    """Interpreters from ``PATH`` (for all dimensions) and ``DIMENSION=PATH``.

    Raises:
        UserError: an unknown dimension, a file that is missing, or two of one dimension.
    """
    pythons: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.rpartition("=")
        key = suite.dimension(name).name if equals else ""
        # Not resolved: a virtual environment is known by the link to its interpreter.
        python = Path(path).expanduser().absolute()
        if key in pythons:
            raise UserError("two interpreters for the same dimensions", received=text)
        if not os.access(python, os.X_OK) or python.is_dir():
            raise UserError(
                "no such interpreter",
                received=text,
                expected="PATH or DIMENSION=PATH of an environment's bin/python",
                remedy="see `eval vbench doctor` for how to make one",
            )
        pythons[key] = python
    return pythons


def find_upstream(
    suite: str,
    checkout: Path | None,
    pythons: Sequence[str],
    weights: Path | None,
    commit: str | None,
    device: str,
    *,
    allow_downloads: bool = False,
) -> Upstream:
    """An installation from what the command line gives.

    Raises:
        UserError: an unknown suite, or interpreters that cannot be used.
    """
    found = find_suite(suite)
    return Upstream(
        suite=found,
        checkout=checkout,
        commit=commit or PINNED_COMMIT,
        pythons=parse_pythons(found, pythons),
        weights=weights,
        device=device,
        allow_downloads=allow_downloads,
    )
