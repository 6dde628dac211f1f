"""Admission to the one thread that scores: a bounded number of requests, in order of arrival."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")


class QueueFull(Exception):
    """As many requests as may wait are waiting.

    Args:
        retry_after_s: whole seconds until it makes sense to ask again.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("too many requests are waiting")
        self.retry_after_s = retry_after_s


class QueueClosed(Exception):
    """The server is going down."""


class ScoringQueue:
    """One worker thread, so that a model is used by one thread only, and a bound on its queue.

    A request holds its place from before its body is read until it is scored: the bound is also
    the bound on the memory of waiting bodies.

    Args:
        waiting: requests that may wait beside the one that is scored.
    """

    def __init__(self, waiting: int) -> None:
        self._places = threading.BoundedSemaphore(waiting + 1)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        self._last_job_s = 1.0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one place while the block runs.

        Raises:
            QueueFull: at once, when there is none.
        """
        if not self._places.acquire(blocking=False):
            raise QueueFull(min(60, int(self._last_job_s) + 1))
        try:
            yield
        finally:
            self._places.release()

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Run ``job`` on the worker after the jobs before it.

        Raises:
            QueueClosed: the queue is closed. Jobs that wait when it closes are cancelled.
        """
        try:
            return self._worker.submit(self._timed, job)
        except RuntimeError as error:  # what an executor raises after its shutdown
            raise QueueClosed from error

    def _timed(self, job: Callable[[], Result]) -> Result:
        start = time.monotonic()
        try:
            return job()
        finally:
            self._last_job_s = time.monotonic() - start

    def close(self) -> None:
        """Let the running job finish and drop the waiting ones."""
        self._worker.shutdown(wait=True, cancel_futures=True)
