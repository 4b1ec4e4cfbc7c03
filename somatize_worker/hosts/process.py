"""One child process: its end seen, its group signalled, everything it started killed, its status and memory told."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from somatize_worker.hosts import family
from somatize_worker.hosts.certificate import Death, certificate
from somatize_worker.hosts.limits import Limits, kernel_kills
from somatize_worker.hosts.output import Output, OutputLine

OUTPUT_LIMIT_BYTES: Final = 1 << 20
REAP_TIMEOUT_S: Final = 10.0  # a process with much memory, or one that waits for a device, takes a while to go
_POLL_PAUSE_S: Final = 0.01
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What to start. ``environ`` is the whole environment, beside the mark; see :func:`settings.passed_on`."""

    argv: Sequence[str]
    environ: Mapping[str, str]
    folder: Path | None = None
    pass_fds: tuple[int, ...] = ()
    limits: Limits = field(default_factory=Limits)
    output_limit_bytes: int = OUTPUT_LIMIT_BYTES


class Child:
    """A started process, which leads a session and a group of its own. Made by :meth:`Nursery.start`.

    All methods may be called from any thread. :meth:`kill` ends the process and everything it started;
    :meth:`close` does that too and frees what this object holds.

    Args:
        popen: the process, of which nobody else may wait for the end.
        mark: what its environment holds under :data:`family.MARK`.
        on_end: called once, by whoever saw the end, when process and descendants are gone.
    """

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        mark: str,
        output: Output,
        limits: Limits,
        on_end: Callable[[Child], None],
    ) -> None:
        self.mark = mark
        self.output = output
        self._popen = popen
        self._limits = limits
        self._on_end = on_end
        self._pidfd = _pidfd(popen.pid)
        self._lock = threading.Lock()  # held while a signal is sent and while reaping, so that no stranger is hit
        self._ending = threading.Lock()  # held while somebody sees to the end
        self._reaped = False
        self._status: int | None = None
        self._killed_for, self._detail = "", ""
        self._kernel_kills = kernel_kills()
        self._kernel_killed = False
        self._kin: list[family.Process] = []
        self._peak_bytes = 0
        self._peak_floor_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        self._ended_at: float | None = None
        self.node: str | None = None
        """The plan's node that runs, for the death certificate; the caller sets it, or :attr:`look_up_node`."""
        self.look_up_node: Callable[[], str | None] = lambda: None
        """Asked for the node when a certificate is made; None: what :attr:`node` says."""
        self._since = time.monotonic()

    @property
    def pid(self) -> int:
        """The process, and its group and session."""
        return self._popen.pid

    @property
    def limits(self) -> Limits:
        """What it and everything it started may use together."""
        return self._limits

    def begin(self) -> None:
        """A new piece of work begins: forget the node and the output of the one before."""
        self.node, self._since = None, time.monotonic()
        self.output.forget()

    def take_output(self, *, final: bool = False) -> list[OutputLine]:
        """The lines printed since the last call; with ``final`` everything up to now, an unfinished line too."""
        if final:
            self.output.drain()
        return self.output.take(final=final)

    def exited(self) -> bool:
        """Whether the process has ended (its descendants may live on until :meth:`kill`)."""
        with self._lock:
            if self._reaped:
                return True
            try:
                return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            except ChildProcessError:  # somebody waited for all children of this process
                return True

    def exit_fd(self) -> int | None:
        """A number that becomes readable when the process ends; None on kernels without pidfd (before 5.3)."""
        return self._pidfd

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the process to end by itself; whether it did."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        poll = select.poll()
        if self._pidfd is not None:
            poll.register(self._pidfd, select.POLLIN)
        while not self.exited():
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            if self._pidfd is None:
                left_s = _POLL_PAUSE_S if left_s is None else min(_POLL_PAUSE_S, left_s)
            poll.poll(None if left_s is None else left_s * 1000)
        return True

    def note_peak(self) -> None:
        """Remember the memory it has had resident up to now."""
        with self._lock, contextlib.suppress(OSError):  # reading a process that just ended
            if not self._reaped:
                with open(f"/proc/{self.pid}/status", encoding="utf-8", errors="replace") as file:
                    words = file.read().partition("VmHWM:")[2].split(maxsplit=1)
                if words:  # absent once it ended
                    self._peak_bytes = max(self._peak_bytes, int(words[0]) << 10)

    def note_kin(self) -> None:
        """Remember what it has started up to now, for :meth:`kill`: once the process has ended by itself, a
        descendant without our mark is known to nobody."""
        if family.children(self.pid):
            self._kin += family.members(family.snapshot(), self.pid)

    def signal(self, number: int) -> bool:
        """Send a signal to the whole process group; False when the process is gone already."""
        with self._lock:
            if self._reaped:  # until then the number of process and group cannot be given to another
                return False
            with contextlib.suppress(PermissionError):  # every process of the group became another user's
                os.killpg(self.pid, number)
            return True

    def kill_soon(self, reason: str, detail: str = "") -> None:
        """SIGKILL to the group, at once; who waits for this child then calls :meth:`kill`. The first reason stands."""
        if not self.exited():
            self._blame(reason, detail)
            self.signal(signal.SIGKILL)

    def terminate(self, grace_s: float, reason: str = "terminated") -> dict[str, Any]:
        """SIGTERM to the group, and after ``grace_s`` :meth:`kill`."""
        if not self.exited():
            self._blame(reason, "")
            self.note_kin()
            self.signal(signal.SIGTERM)
            self.wait(grace_s)
        return self.kill(reason)

    def kill(self, reason: str = "killed", detail: str = "") -> dict[str, Any]:
        """End the process and everything it started, reap it, and return its death certificate.

        Takes some milliseconds. For a process that ended by itself it cleans up and tells how that was; called
        again it tells the same.
        """
        with self._ending:
            if not self._reaped:
                self.note_peak()
                if not self.exited():
                    self._blame(reason, detail)
                self._kill_all()
                if self._reap():
                    self._on_end(self)
        return self.certificate()

    def certificate(self) -> dict[str, Any]:
        """How it ended, see :mod:`certificate`. Meaningful after :meth:`kill`."""
        return certificate(
            Death(self._status, self._killed_for, self._kernel_killed),
            detail=self._detail,
            peak_bytes=self._peak_bytes or None,
            node=self.look_up_node() or self.node,
            seconds=(self._ended_at or time.monotonic()) - self._since,
            last_lines=self.output.last_lines(),
        )

    def close(self) -> None:
        """Kill it if it lives, and free what this object holds. It cannot be waited for after that."""
        self.kill()
        with self._ending:
            if self._pidfd is not None:
                os.close(self._pidfd)
                self._pidfd = None

    def _kill_all(self) -> None:
        try:
            self._kin += family.members(family.snapshot(), self.pid)
            self.signal(signal.SIGKILL)
            for process in self._kin:
                if process.group != self.pid:
                    family.kill_exactly(process)
            family.kill_marked(self.mark)
        except OSError as error:  # no open files are left to look into /proc
            self.signal(signal.SIGKILL)
            _log.warning("what process %d left behind was not found (%s); it ends with this worker", self.pid, error)

    def _blame(self, reason: str, detail: str) -> None:
        with self._lock:
            if not self._killed_for:
                self._killed_for, self._detail = reason, detail

    def _reap(self) -> bool:
        if not self.wait(REAP_TIMEOUT_S):
            # It hangs in the kernel. Python reaps it some time after it came out: see subprocess._cleanup.
            _log.warning(
                "process %d does not end %g s after SIGKILL; a device or file system hangs?", self.pid, REAP_TIMEOUT_S
            )
            return False
        self._ended_at = time.monotonic()
        with self._lock:
            try:
                _, status, usage = os.wait4(self.pid, 0)
            except ChildProcessError:  # somebody who waits for all children of this process was faster
                self._reaped, self._popen.returncode = True, -1
                return True
            self._reaped, self._status = True, status
            self._popen.returncode = os.waitstatus_to_exitcode(status)
        self._kernel_killed = kernel_kills() > self._kernel_kills
        if usage.ru_maxrss << 10 > self._peak_floor_bytes:
            # Linux hands our own peak down to whoever we exec, so that only what exceeds it is the child's.
            self._peak_bytes = max(self._peak_bytes, usage.ru_maxrss << 10)
        return True


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:  # not in this kernel, or forbidden in this container
        return None
