"""Filters for tests of whole clusters: they write down each run, take their time, and die in various ways."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from somatize_worker import Filter


class Note(Filter):
    """Appends a line to a file for each run, takes its time, and adds 1 to its input."""

    def __init__(self, file: Path, name: str, seconds: float = 0.0) -> None:
        self.file = str(file)
        self.name = name
        self.seconds = seconds

    def forward(self, x: Any, state: Any = None) -> Any:
        write_line(self.file, f"{self.name} {os.getpid()} {os.getppid()}")
        time.sleep(self.seconds)
        return x + 1


class Learns(Filter):
    """Fits a sum, and writes each fit down."""

    def __init__(self, file: Path, name: str) -> None:
        self.file = str(file)
        self.name = name

    def fit(self, x: Any, y: Any = None) -> Any:
        write_line(self.file, f"{self.name} {os.getpid()} {os.getppid()}")
        return {"sum": float(np.sum(x))}

    def forward(self, x: Any, state: Any) -> Any:
        return x + state["sum"]


class Waits(Filter):
    """Notes its start, then waits until a file exists, and returns its input."""

    def __init__(self, file: Path, gate: Path, name: str = "waits") -> None:
        self.file = str(file)
        self.gate = str(gate)
        self.name = name

    def forward(self, x: Any, state: Any = None) -> Any:
        write_line(self.file, f"{self.name} {os.getpid()} {os.getppid()}")
        while not os.path.exists(self.gate):
            time.sleep(0.02)
        return x


class Dies(Filter):
    """Ends its own process, or its worker's, in one of several ways, after noting its start.

    ``how``: ``abort``, ``exit``, ``segv``, ``memory`` (fills 1 GB and stays) or ``worker`` (SIGKILL to the parent).
    ``times``: with a number, only that often; then it returns its input.
    """

    def __init__(self, file: Path, how: str, times: int = 1_000_000) -> None:
        self.file = str(file)
        self.how = how
        self.times = times

    def forward(self, x: Any, state: Any = None) -> Any:
        write_line(self.file, f"dies {os.getpid()} {os.getppid()}")
        with open(self.file, encoding="ascii") as lines:
            if sum(line.startswith("dies ") for line in lines) > self.times:
                return x
        print("these are my last words")
        print("written to the other stream", file=sys.stderr, flush=True)
        if self.how == "abort":
            os.abort()
        elif self.how == "exit":
            os._exit(7)
        elif self.how == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif self.how == "memory":
            hog = np.ones(1 << 27)
            time.sleep(60)
            return hog.sum()
        elif self.how == "worker":
            sys.stdout.flush()
            time.sleep(0.6)  # what kills a worker, say by taking all memory, needs a moment: it was seen to start
            os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
        return x


class Large(Filter):
    """An array of this many bytes, of ones, plus what came in."""

    def __init__(self, size: int) -> None:
        self.size = size

    def forward(self, x: Any, state: Any = None) -> Any:
        return np.ones(self.size // 8) + np.asarray(x).ravel()[0]


class Prints(Filter):
    """Prints a number of lines, one each ``pause_s``, with a tick of progress; returns its input."""

    def __init__(self, lines: int, pause_s: float) -> None:
        self.lines = lines
        self.pause_s = pause_s

    def forward(self, x: Any, state: Any = None) -> Any:
        from somatize_worker import report

        for number in range(self.lines):
            print(f"line {number}", flush=True)
            report(metrics={"line": number}, step=number)
            time.sleep(self.pause_s)
        return x


def write_line(file: str, line: str) -> None:
    """One line at the end, whole, however many processes write."""
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def runs(file: Path) -> list[tuple[str, int, int]]:
    """What was noted: name, process, and that process's parent (the worker)."""
    if not file.exists():
        return []
    words = (line.split() for line in file.read_text().splitlines())
    return [(name, int(pid), int(parent)) for name, pid, parent in words]


def counts(file: Path) -> dict[str, int]:
    """How often each name was noted."""
    return dict(Counter(name for name, _, _ in runs(file)))
