"""The files a report stands on, numbered in the order of their first use."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from longtake.evaluation.report.content import Source
from longtake.runtime.errors import UserError


class SourceList:
    """Collects sources; each file is read and numbered once."""

    def __init__(self) -> None:
        self._found: dict[Path, Source] = {}

    def numbers(self, paths: Iterable[Path]) -> tuple[int, ...]:
        """Numbers of the files, each once, ascending.

        Raises:
            UserError: a file cannot be read.
        """
        return tuple(sorted({self._add(path).number for path in paths}))

    def all(self) -> tuple[Source, ...]:
        """Every source, by number."""
        return tuple(self._found.values())

    def _add(self, path: Path) -> Source:
        if path not in self._found:
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    size = file.tell()
            except OSError as error:
                raise UserError(
                    f"cannot read an input: {error.strerror or error}", received=str(path)
                ) from error
            number = len(self._found) + 1
            self._found[path] = Source(number=number, path=str(path), sha256=digest, size=size)
        return self._found[path]
