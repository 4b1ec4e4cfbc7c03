"""Helpers for tests with real host processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from somatize_worker.hosts import family
from somatize_worker.hosts.host import Host

ROOT = Path(__file__).parents[2]
OBEDIENT = ROOT / "tests" / "integration" / "hosts" / "obedient.py"
DEADLINE_S = 30.0


def eventually(condition: Callable[[], Any], what: str = "it") -> Any:
    """Poll until the condition holds; fails after a generous deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S} s"
        time.sleep(0.01)
    return value


def living(pid: int) -> bool:
    """Whether there is such a process and it is not a zombie."""
    process = family.look(pid)
    return process is not None and not process.ended


def own_zombies() -> list[int]:
    """Our children that ended and were not waited for."""
    return [p.pid for p in family.snapshot().values() if p.parent == os.getpid() and p.ended]


def do(host: Host, text: str) -> Any:
    """Run Python text in the host and return what it assigned to ``output``."""
    host.send(["run", {"do": text}])
    frame = host.receive(DEADLINE_S)
    assert isinstance(frame, list)
    assert frame[0] == "done"
    return frame[1]["output"]


def python(text: str) -> list[str]:
    """The command line of a Python program given as text."""
    return [sys.executable, "-u", "-c", text]


def run_script(text: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python program of its own that can import this package and these tests; its output is read by the test."""
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
