"""Waiting for what a job does next."""

from __future__ import annotations

import os
import select
import threading
import time
from types import TracebackType
from typing import Final

from somatize_worker.hosts.process import Child
from somatize_worker.jobs.reports import ReportPipe

_LOOK_AT_MOST_EVERY_S: Final = 0.01


class Bell:
    """Rings when a job's process prints, reports or ends. A context manager."""

    def __init__(self, child: Child, reports: ReportPipe) -> None:
        self._child = child
        self._lock = threading.Lock()
        self._printed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._rang_at = 0.0
        self._poll = select.poll()
        for fd in (self._printed, reports.fileno(), child.exit_fd()):
            if fd is not None:
                self._poll.register(fd, select.POLLIN)

    def wait(self, timeout_s: float) -> None:
        """Wait for something to happen, at most so long; a job that prints all the time rings 100 times a second."""
        time.sleep(max(0.0, self._rang_at + _LOOK_AT_MOST_EVERY_S - time.monotonic()))
        for fd, _ in self._poll.poll(timeout_s * 1000):
            self._rang_at = time.monotonic()
            if fd == self._printed:
                os.eventfd_read(fd)

    def _ring(self) -> None:
        """Called by the thread that drains the output, perhaps once more when we are done."""
        with self._lock:
            if self._printed >= 0:
                os.eventfd_write(self._printed, 1)

    def __enter__(self) -> Bell:
        self._child.output.on_output = self._ring
        self._ring()  # for what was printed before
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.output.on_output = None
        with self._lock:
            os.close(self._printed)
            self._printed = -1
