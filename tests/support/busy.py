"""Filters that keep processes busy until they are let go, and tell which processes those are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from somatize_worker import Filter
from tests.support.cluster import wait_gone
from tests.support.plans import write_line
from tests.support.server import poll

_MINUTE_S = 60.0


class Holds(Filter):
    """Notes its process, and waits until ``<folder>/go`` exists; with ``children``, other processes of its own, too."""

    def __init__(self, folder: Path, name: str = "holds", *, children: bool = False) -> None:
        self.folder = str(folder)
        self.name = name
        self.children = children

    def forward(self, x: Any, state: Any = None) -> Any:
        pids = [os.getpid()]
        if self.children:
            text = "import subprocess as s, sys; s.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
            child = subprocess.Popen([sys.executable, "-c", text], start_new_session=True)
            pids.append(child.pid)
        write_line(f"{self.folder}/pids", f"{self.name} {' '.join(map(str, pids))}")
        deadline = time.monotonic() + _MINUTE_S
        while not os.path.exists(f"{self.folder}/go") and time.monotonic() < deadline:
            time.sleep(0.01)
        return x


class Says(Filter):
    """Notes that it ran, under its name, in ``<folder>/ran``, and adds 1 to its input."""

    def __init__(self, folder: Path, name: str, seconds: float = 0.0) -> None:
        self.folder = str(folder)
        self.name = name
        self.seconds = seconds

    def forward(self, x: Any, state: Any = None) -> Any:
        write_line(f"{self.folder}/ran", self.name)
        time.sleep(self.seconds)
        return x + 1


def ran(folder: Path) -> list[str]:
    """What :class:`Says` filters noted, in order."""
    file = folder / "ran"
    return file.read_text().split() if file.exists() else []


def held(folder: Path, *names: str) -> list[int]:
    """The processes of :class:`Holds` filters of these names (default: any one), once all of them are at it."""

    def look() -> list[list[str]]:
        file = folder / "pids"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        found = {words[0] for words in lines}
        return lines if lines and found.issuperset(names) else []

    return [int(pid) for words in poll(look, timeout_s=30, what=f"{names} at work") for pid in words[1:]]


def let_go(folder: Path) -> None:
    """Let the :class:`Holds` filters of a folder return."""
    (folder / "go").touch()


def wait_gone_soon(pids: list[int]) -> None:
    """What a cancellation promises: the processes are gone within two seconds."""
    wait_gone(*pids, timeout_s=2.0)
