"""A run directory: where one run keeps everything that it produced, safe against kill -9.

    config.yaml  provenance.json  metrics.jsonl  samples/  checkpoints/step-N/  summary.json

Three guarantees. A file or a checkpoint is either the whole old one or the whole new one (written
beside, synced, renamed). ``metrics.jsonl`` loses at most its last, torn line. Two processes never
write the same run (an advisory lock, which the kernel drops when the holder dies).
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from longtake.runtime.errors import RunDirectoryError
from longtake.runtime.files import (
    TEMPORARY,
    append_jsonl,
    explained,
    read_jsonl,
    replacing,
    sync,
    to_plain,
    write_jsonl,
)

_ASIDE = f"{TEMPORARY}old-"
_STEP = "step-"


def _remove_temporaries(folder: Path) -> None:
    for leftover in folder.glob(f"{TEMPORARY}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


class RunDirectory:
    """One run on disk. Make it with :meth:`create`; usable as a context manager.

    Attributes:
        path: the directory itself.
        samples: folder of clips and grids.
        checkpoints: folder of ``step-N`` checkpoints.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self._metrics = path / "metrics.jsonl"
        self._lock: int | None = lock

    @classmethod
    def create(cls, path: Path, config_yaml: str, *, resume: bool) -> Self:
        """Open a run directory, new or (with ``resume``) existing, and lock it.

        A directory that holds no ``config.yaml`` counts as new, so a run killed before it wrote
        anything can be started again without ``resume``, and so can an empty folder.

        Raises:
            RunDirectoryError: the directory holds a run and ``resume`` is False, or it holds a run
                with another configuration, or it is in use by another process, or not writable.
        """
        path = Path(path)
        with explained("prepare the run directory", path), ExitStack() as on_failure:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, acquire_lock(path))
            on_failure.callback(run.close)
            run._open(config_yaml, resume=resume)
            on_failure.pop_all()
        return run

    def _open(self, config_yaml: str, *, resume: bool) -> None:
        config = self.path / "config.yaml"
        if config.exists() and not resume:
            raise RunDirectoryError(
                "the run directory already holds a run",
                received=str(self.path),
                remedy="continue it with --resume, or choose another --output-dir",
            )
        if config.exists() and config.read_text(encoding="utf-8") != config_yaml:
            raise RunDirectoryError(
                "the run to resume was started with another configuration",
                received=str(self.path),
                expected=f"the configuration in {config}",
                remedy=f"resume with --config {config} only, or choose another --output-dir",
            )
        self.samples.mkdir(exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        self._restore_set_aside()
        for folder in (self.path, self.samples, self.checkpoints):
            _remove_temporaries(folder)
        self._drop_torn_line()
        if not config.exists():
            self.write_text(config.name, config_yaml)

    def _drop_torn_line(self) -> None:
        if self._metrics.exists():
            data = self._metrics.read_bytes()
            if not data.endswith(b"\n"):
                os.truncate(self._metrics, data.rfind(b"\n") + 1)

    def _restore_set_aside(self) -> None:
        for aside in self.checkpoints.glob(f"{_ASIDE}*"):
            final = self.checkpoints / aside.name.removeprefix(_ASIDE)
            if not final.exists():  # killed between the two renames of _publish
                aside.replace(final)

    def close(self) -> None:
        """Release the lock; closing twice is fine."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Block in which other code writes ``name`` of the run; a failed write is explained."""
        with explained(f"write {name}", self.path / name):
            yield

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``: key order kept, floats exact, NaN and inf as null."""
        append_jsonl(self._metrics, [record])

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete records; null stays None."""
        return read_jsonl(self._metrics) if self._metrics.exists() else []

    def truncate_metrics(self, updates: int) -> None:
        """Keep the records with ``update`` < ``updates`` (and those without one), atomically.

        Called on resume with the number of updates that the checkpoint holds, so that the redone
        updates appear once.
        """
        if self._metrics.exists():
            records = [r for r in self.read_metrics() if r.get("update", -1) < updates]
            write_jsonl(self._metrics, records)

    def save_checkpoint(self, step: int, write: Callable[[Path], None], keep: int = 2) -> Path:
        """Let ``write`` fill an empty folder, then publish it as ``checkpoints/step-N``.

        The folder gets its name only when everything in it is on the disk. The newest ``keep``
        checkpoints stay; ``keep=0`` keeps all.

        Raises:
            RunDirectoryError: the disk is full or not writable; earlier checkpoints are intact.
        """
        final = self.checkpoints / f"{_STEP}{step}"
        temporary = self.checkpoints / f"{TEMPORARY}{final.name}"
        with explained("write a checkpoint", final):
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                write(temporary)
                for path in (*temporary.rglob("*"), temporary):
                    sync(path)
                if self._metrics.exists():  # the lines that this checkpoint counts on
                    sync(self._metrics)
                self._publish(temporary, final)
            finally:  # a failure or Ctrl-C gives the space back
                shutil.rmtree(temporary, ignore_errors=True)
            if keep:
                for old in self._steps()[:-keep]:
                    shutil.rmtree(old)
        return final

    def _publish(self, temporary: Path, final: Path) -> None:
        # A folder cannot be renamed over a full one: an old one of the same step moves aside first,
        # and is put back on the next opening if a kill falls between the two renames.
        aside = self.checkpoints / f"{_ASIDE}{final.name}"
        if final.exists():
            final.replace(aside)
        temporary.replace(final)
        sync(self.checkpoints)
        shutil.rmtree(aside, ignore_errors=True)

    def _steps(self) -> list[Path]:
        found = [p for p in self.checkpoints.glob(f"{_STEP}*") if p.name[len(_STEP) :].isdigit()]
        return sorted(found, key=lambda p: int(p.name[len(_STEP) :]))

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint with the highest step, or None."""
        steps = self._steps()
        return steps[-1] if steps else None

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the run atomically; ``name`` may contain folders that exist."""
        path = self.path / name
        with explained(f"write {name}", path), replacing(path) as temporary:
            temporary.write_bytes(text.encode())
        return path

    def write_json(self, name: str, obj: object) -> Path:
        """Write an object as indented JSON, atomically; NaN and inf become null."""
        return self.write_text(name, json.dumps(to_plain(obj), indent=2, allow_nan=False) + "\n")


def acquire_lock(path: Path) -> int:
    """Keep other processes out of a folder until the descriptor is closed, or this one dies."""
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return os.open(path / ".lock", os.O_RDWR | os.O_CLOEXEC)  # no locks on this file system
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise RunDirectoryError(
            "the run directory is in use by another process",
            received=str(path),
            remedy="wait for it to end, or choose another --output-dir",
        ) from error
    return descriptor
