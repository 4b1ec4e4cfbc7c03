"""The command line as a user runs it: a process of its own, in a pipe or in a terminal."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

_WITHIN_S = 90.0
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def somatize(
    *arguments: str, environ: Mapping[str, str] | None = None, text: str | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, its output in pipes."""
    return subprocess.run(
        command(*arguments),
        env={**os.environ, **(environ or {})},
        input=text,
        capture_output=True,
        text=True,
        timeout=_WITHIN_S,
        cwd=folder,
        check=False,
    )


def command(*arguments: str) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "somatize_worker", *arguments]


class PseudoTerminal:
    """A process in a terminal of so many columns. ``shown`` is what it wrote up to now, without colours."""

    def __init__(self, argv: list[str], *, columns: int = 80, environ: Mapping[str, str] | None = None) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**variables, "TERM": "xterm-256color", **(environ or {})},
            start_new_session=True,
        )
        os.close(slave)
        self._raw = b""

    @property
    def shown(self) -> str:
        return _ESCAPES.sub("", self._raw.decode(errors="replace")).replace("\r", "")

    def wait_for(self, text: str) -> None:
        """Read until the text has been written."""
        deadline = time.monotonic() + _WITHIN_S
        while text not in self.shown:
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.shown}"
            assert self._read(), f"it ended without {text!r}:\n{self.shown}"

    def finish(self) -> int:
        """Read to the end; the exit status."""
        while self._read():
            pass
        os.close(self._master)
        return self.process.wait(_WITHIN_S)

    def _read(self) -> bool:
        """One piece of output, if there is any within a moment; False at the end."""
        if not select.select([self._master], [], [], 0.2)[0]:
            return self.process.poll() is None
        try:
            data = os.read(self._master, 65536)
        except OSError:  # how Linux says that the other side is closed
            return False
        self._raw += data
        return bool(data)


def whole_tree(pid: int) -> list[psutil.Process]:
    """A process and all that it started and they started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def cluster_folders(pid: int) -> list[Path]:
    """The temporary folders of the clusters that a process runs."""
    return [path for base in ("/dev/shm", "/tmp") for path in Path(base).glob(f"soma-cluster-{pid}-*")]


def gone(processes: list[psutil.Process], folders: list[Path]) -> bool:
    """Whether nothing of it is left."""
    alive = [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    return not alive and not any(folder.exists() for folder in folders)
