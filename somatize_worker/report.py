"""``report``: how a filter or a job tells about its progress while it runs.

In a filter host the report becomes the events ``NodeProgress`` and ``TrialMetric``; in a Python job a line that its
worker turns into ``JobProgress``; anywhere else it does nothing, so code that reports runs unchanged on a desk.
Standard library only.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from typing import Any, Final

Sink = Callable[[float | None, dict[str, float], int | None], None]

_REPORT_PIPE: Final = "SOMA_REPORT_PIPE"
_REPORT_FD: Final = "SOMA_REPORT_FD"
_PROGRESS_EVERY_S: Final = 0.05

_sink: Sink | None = None


def report(
    progress: float | None = None, *, metrics: Mapping[str, float] | None = None, step: int | None = None
) -> None:
    """Tell how far the running node (or job) is, and what it has measured.

    May be called as often as you like: progress goes out at most 20 times a second, the latest always; metrics are
    batched and never dropped.

    >>> report(progress=0.5, metrics={"loss": 0.25}, step=3)

    Args:
        progress: the share that is done, 0 to 1; values outside are cut to that.
        metrics: measurements by name.
        step: to which step they belong; default: how many of that name came before.

    Raises:
        TypeError: something that should be a number is none.
    """
    done = None if progress is None else _number("progress", progress)
    if done is not None:
        done = 0.0 if math.isnan(done) else min(1.0, max(0.0, done))
    measured = {str(name): _number(f"metrics[{name!r}]", value) for name, value in (metrics or {}).items()}
    number = None if step is None else int(_number("step", step))
    sink = _sink or _job_sink()
    if sink is not None:
        sink(done, measured, number)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, not {value!r:.80} (a {type(value).__qualname__})") from None


def send_to(sink: Sink | None) -> None:
    """Where reports of this process go from now on; None: nowhere (or to the job's worker)."""
    global _sink
    _sink = sink


# ── in a job ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _JobLines:
    """Writes a line of JSON for each report to the descriptor that the job's worker gave us."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._held: dict[str, Any] | None = None
        self._last = -math.inf
        atexit.register(self.flush)

    def __call__(self, progress: float | None, metrics: dict[str, float], step: int | None) -> None:
        line: dict[str, Any] = {}
        if progress is not None:
            line["progress"] = progress
        if step is not None:
            line["step"] = step
        if metrics:
            line["metrics"] = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self._lock:
            wait_s = self._last + _PROGRESS_EVERY_S - time.monotonic()
            due = bool(metrics) or wait_s <= 0
            if not due and self._held is None:
                timer = threading.Timer(wait_s, self.flush)
                timer.daemon = True
                timer.start()
            self._held = {**(self._held or {}), **line}
            if due:
                self._write(self._held)
                self._held = None

    def flush(self) -> None:
        """Write the progress that was held back."""
        with self._lock:
            if self._held is not None:
                line, self._held = self._held, None
                self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        self._last = time.monotonic()
        data = json.dumps(line).encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]


_job_lines: _JobLines | None = None


def _job_sink() -> Sink | None:
    global _job_lines
    if _job_lines is None and (fd := _job_fd()) is not None:
        _job_lines = _JobLines(fd)
    return _job_lines


def _job_fd() -> int | None:
    """The way to the job's worker: a named pipe, which every process of the job can open, or an inherited number."""
    path = os.environ.get(_REPORT_PIPE)
    if path:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # nobody reads it any more, or not from here (a container of the job's own)
            return None
        os.set_blocking(fd, True)
        return fd
    given = os.environ.get(_REPORT_FD, "")
    return int(given) if given.isdigit() else None


class _Callable(types.ModuleType):
    """This module can be called, too: once it is imported, ``from somatize_worker import report`` finds the module."""

    __call__ = staticmethod(report)


sys.modules[__name__].__class__ = _Callable
