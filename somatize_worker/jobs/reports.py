"""The pipe through which ``somatize_worker.report`` reaches the worker from inside a job."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from somatize_worker.jobs.printed import Step, is_count, parse_object

_READ_BYTES: Final = 64 << 10
_LINE_LIMIT_BYTES: Final = 1 << 20
_PERCENT: Final = 100


class ReportPipe:
    """A named pipe, so that every process of the job can open it, whoever started that. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path, 0o600)
        self._reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._writing = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # so that there never is an end of file
        self._rest = b""
        self._last = Step(0, 0)

    def fileno(self) -> int:
        """The reading end, for ``poll``."""
        return self._reading

    def take(self) -> list[Step]:
        """The steps reported since the last call. What is no report is passed over: the job may write anything."""
        steps = []
        for line in self._lines():
            value = parse_object(line.decode(errors="replace"))
            if value is not None:
                self._last = _step(value, self._last)
                steps.append(self._last)
        return steps

    def _lines(self) -> list[bytes]:
        lines: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._reading, _READ_BYTES):
                *whole, self._rest = (self._rest + data).split(b"\n")
                lines += whole
                if len(self._rest) > _LINE_LIMIT_BYTES:
                    self._rest = b""
        return lines

    def __enter__(self) -> ReportPipe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._writing)
        os.close(self._reading)


def _step(value: dict[str, Any], before: Step) -> Step:
    """A report as progress: a share becomes percent, a step alone has no total, metrics alone leave both."""
    metrics, progress, step = value.get("metrics") or {}, value.get("progress"), value.get("step")
    if isinstance(progress, (int, float)):
        return Step(round(min(1.0, max(0.0, progress)) * _PERCENT), _PERCENT, metrics)
    if is_count(step):
        return Step(step, before.total if before.total != _PERCENT and before.total >= step else 0, metrics)
    return Step(before.step, before.total, metrics)
