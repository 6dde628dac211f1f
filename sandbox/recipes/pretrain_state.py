"""Resumable state of a pretraining: trainer states, records and times, written atomically."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from longtake.runtime.errors import ConfigError
from longtake.runtime.files import replacing


class Resumable(Protocol):
    """A trainer whose state is a mapping of tensors and numbers."""

    def state_dict(self) -> dict[str, Any]:
        """Everything a bitwise continuation needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        ...


class PretrainState:
    """The ``state`` folder of an unfinished checkpoint.

    A saved state holds the trainer, the number of records and the seconds spent, so that after a
    kill at any moment the continued run writes the records of an uninterrupted one.

    Args:
        folder: created when missing.
        config_yaml: settings of this run; must equal those of the run in the folder.
        device: where states are loaded to.

    Raises:
        ConfigError: the folder belongs to a run with other settings.
    """

    def __init__(self, folder: Path, config_yaml: str, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.history = folder / "history.jsonl"
        self.seconds: dict[str, float] = {}
        self._records: list[dict[str, Any]] = []
        self._part, self._since = "", time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "config.yaml"
        if settings.exists() and settings.read_text(encoding="utf-8") != config_yaml:
            raise ConfigError(
                "the run to resume has other settings",
                received="settings that differ from " + str(settings),
                expected="the same --set and --config as before",
                remedy="repeat the first command with --resume, or pass another --out",
            )
        _write(settings, config_yaml)
        self.history.touch()

    def start(self, part: str) -> None:
        """Begin to count the seconds of ``part``; the part before it ends."""
        self._lap()
        self._part = part

    def _lap(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._part:
            spent = self.seconds.get(self._part, 0.0) + now - self._since
            self.seconds[self._part] = round(spent, 2)
        self._since = now

    def record(self, record: dict[str, Any]) -> None:
        """Append one line to the history."""
        self._records.append(record)
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def last_records(self) -> dict[str, dict[str, Any]]:
        """The last record of each part."""
        return {record["part"]: record for record in self._records}

    def save(self, part: str, trainer: Resumable) -> None:
        """Write the state of ``trainer``; an interrupted save leaves the previous one."""
        self._lap()
        state = {
            "trainer": trainer.state_dict(),
            "seconds": self.seconds,
            "records": self._records,
        }
        with replacing(self.folder / f"{part}.pt") as temporary:
            torch.save(state, temporary)

    def load(self, part: str, trainer: Resumable) -> None:
        """Restore ``trainer`` from the last save, if there is one."""
        file = self.folder / f"{part}.pt"
        if file.exists():
            state = torch.load(file, map_location=self.device, weights_only=True)
            trainer.load_state_dict(state["trainer"])
            self.seconds, self._since = state["seconds"], time.perf_counter()
            self._records = state["records"]
        _write(self.history, "".join(json.dumps(record) + "\n" for record in self._records))

    def delete(self) -> None:
        """Remove the folder: the checkpoint is complete."""
        shutil.rmtree(self.folder)


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
