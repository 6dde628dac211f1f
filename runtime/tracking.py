"""Metrics of a run: metrics.jsonl always, other trackers through accelerate when asked for."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from longtake.runtime.errors import UserError
from longtake.runtime.run_directory import RunDirectory

PROJECT = "longtake"


def _tracker(name: str, run: Path) -> Any:
    """Accelerate's tracker; their constructors agree on nothing but the first argument."""
    # Imported here: it takes seconds, and most runs keep metrics.jsonl alone.
    from accelerate import tracking

    if name == "tensorboard":
        return tracking.TensorBoardTracker(name, logging_dir=run)
    if name == "wandb":
        return tracking.WandBTracker(PROJECT, name=run.name, dir=str(run))
    return tracking.TrackioTracker(PROJECT, name=run.name)


TRACKERS: dict[str, Callable[[Path], Any]] = {
    name: partial(_tracker, name) for name in ("tensorboard", "trackio", "wandb")
}
"""Name -> factory taking the run directory. The name is also the package that it needs."""


class Trackers:
    """Writes each record to ``metrics.jsonl`` first and then to the chosen trackers.

    Args:
        run: the open run directory.
        names: keys of ``TRACKERS``; may be empty.
        config: settings shown beside the curves; nested mappings become dotted keys.
    """

    def __init__(
        self, run: RunDirectory, names: Sequence[str] = (), config: Mapping[str, Any] | None = None
    ) -> None:
        check_trackers(names)
        if names:
            # Accelerate's trackers log through its process state. Under a launcher the trainer's
            # Accelerator has made it on every rank by now, and this changes nothing.
            from accelerate import PartialState

            PartialState()
        self._run = run
        self._trackers = [TRACKERS[name](run.path) for name in names]
        settings = _flatten(config or {})
        for tracker in self._trackers:
            tracker.start()
            tracker.store_init_configuration(dict(settings))

    def log(self, record: Mapping[str, Any], step: int) -> None:
        """Record one update. Only metrics.jsonl gets missing values (null) and text."""
        self._run.append_metrics(record)
        numbers = {k: v for k, v in _flatten(record).items() if _is_number(v)}
        for tracker in self._trackers:
            tracker.log(numbers, step=step)

    def close(self) -> None:
        """Finish every tracker; closing twice is fine."""
        while self._trackers:
            self._trackers.pop().finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def check_trackers(names: Sequence[str]) -> None:
    """Refuse unknown names and missing packages, before any work is done."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(
                "unknown tracker", received=name, expected=f"any of: {', '.join(TRACKERS)}"
            )
        if find_spec(name) is None:
            raise UserError(
                f"the tracker `{name}` needs the package `{name}`",
                received="not installed",
                remedy="pip install 'longtake[trackers]', or leave it out",
            )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, bool | int | float | str):
            flat[f"{prefix}{key}"] = value
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)
