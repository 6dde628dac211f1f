"""Ctrl-C and SIGTERM as a request: work stops at the next safe point, where a state is saved."""

import signal
from types import FrameType, TracebackType
from typing import Self


class Interrupted(KeyboardInterrupt):
    """Raised at a safe point after a stop was requested; the command exits with 130."""


class StopRequest:
    """Context in which the first Ctrl-C or SIGTERM sets a flag; a second Ctrl-C ends at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.is_set = False
        self._previous: dict[signal.Signals, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_set = True

    def check(self) -> None:
        """Raise :class:`Interrupted` if a stop was requested."""
        if self.is_set:
            raise Interrupted

    def __enter__(self) -> Self:
        for number in self.SIGNALS:
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: the embedding program owns the signals
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
