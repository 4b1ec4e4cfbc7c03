"""A child process that never outlives this one: started by a thread that lives as long as it does, its output kept."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from somatize_worker import orphan

_LINES_KEPT = 200
_READ_WITHIN_S = 1.0  # its output ends with it, unless it left a child behind that holds it


class OwnedProcess:
    """A started process with a thread that started it, reads what it prints, and waits for it.

    The kernel sends the parent-death signal when the *thread* that forked ends, so that thread must live as long as
    the process does; the caller's may be short-lived.

    Args:
        command: program and arguments.
        environ: its whole environment; default: this process's.
        folder: where it runs; default: here.
        given: what it finds on its standard input, which then ends.
        kill: it gets SIGKILL when this process is gone, not SIGTERM.
        on_line: called with each line that it prints (without the end of line), on the reading thread.

    Raises:
        OSError: it cannot be started.
    """

    process: subprocess.Popen[bytes]

    def __init__(
        self,
        command: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        folder: str | None = None,
        given: bytes = b"",
        kill: bool = False,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        parent = ["--kill", str(os.getpid())] if kill else [str(os.getpid())]
        self._command = [sys.executable, "-I", "-S", orphan.__file__, *parent, *command]
        self._environ = environ
        self._folder = folder
        self._given = given
        self._on_line = on_line
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        self._failure: OSError | None = None
        self._started = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name=f"soma-{os.path.basename(command[0])}", daemon=True)
        self._keeper.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def tail(self) -> str:
        """The last lines that it printed."""
        return "\n".join(self._lines.copy())

    def end(self, timeout_s: float, number: int = signal.SIGTERM) -> None:
        """A signal, and SIGKILL after ``timeout_s``; returns when the process is gone and what it printed is read."""
        self.process.send_signal(number)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._keeper.join(_READ_WITHIN_S)

    def _keep(self) -> None:
        try:
            self.process = subprocess.Popen(
                self._command,
                env=None if self._environ is None else dict(self._environ),
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is for the owner, who ends this in due order
            )
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError), self.process.stdin as given:  # it died at once: what it printed says why
            given.write(self._given)
        with self.process.stdout as printed:
            for line in printed:
                self._take(line.decode(errors="replace").rstrip())
        self.process.wait()

    def _take(self, line: str) -> None:
        self._lines.append(line)
        if self._on_line is not None:
            self._on_line(line)
