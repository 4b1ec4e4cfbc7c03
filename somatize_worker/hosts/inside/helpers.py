"""Helper processes of a filter host: the same program, connected to the host, for branches that run beside others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

from somatize_worker.hosts.frames import Channel
from somatize_worker.hosts.inside.note import Note

_PROGRAM: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
_PYTHON: Final = sys.executable


class Helper:
    """One process. It runs in the host's process group, and ends with the host."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        memory = os.memfd_create("soma-note")
        try:
            self.note = Note(memory)
            self._process = subprocess.Popen(
                [_PYTHON, "-u", _PROGRAM, str(theirs.fileno()), "helper", str(memory)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory),
            )
        finally:
            theirs.close()
            os.close(memory)
        self.channel = Channel(ours)
        self.ready = False
        #: What it works on; None while it is idle.
        self.work: Any = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def begin(self, request: Mapping[str, Any], work: Any) -> None:
        """Give it a branch to run."""
        self.note.clear()
        self.work = work
        self.channel.send(["branch", request])

    def kill(self) -> None:
        """End it, at once."""
        self._process.kill()
        self._process.wait()
        self.channel.close()
        self.note.close()

    def death(self) -> str:
        """How it ended, when its wire is closed; what is left of it is removed."""
        try:
            status = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            status = None
        node = self.note.read()
        self.kill()
        where = f" while it ran node {node!r}" if node else ""
        return f"a process that ran a branch {_how(status)}{where}"


def _how(status: int | None) -> str:
    if status is None:
        return "closed its wire"
    if status >= 0:
        return f"exited with code {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
