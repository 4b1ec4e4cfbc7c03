"""A filter host seen from the worker: a child process that speaks frames."""

from __future__ import annotations

import contextlib
import enum
import os
import select
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from somatize_worker.errors import HostDied, HostError, HostNotReady
from somatize_worker.hosts import family
from somatize_worker.hosts.certificate import describe
from somatize_worker.hosts.frames import Channel
from somatize_worker.hosts.nursery import Nursery
from somatize_worker.hosts.process import Child, Launch

INSIDE: Final = Path(__file__).parent / "inside" / "__main__.py"
STALL_S: Final = 30.0  # a host reads its wire in a thread of its own; one that takes nothing for so long is stuck
_EXIT_AFTER_EOF_S: Final = 1.0
_NOTE_BYTES: Final = 256
_LOOK_S: Final = 0.25  # how often to look for the end of a child, on kernels that do not tell


class Wake(enum.Enum):
    """What :meth:`Host.receive` returns when :meth:`Host.wake` was called."""

    WAKE = "wake"


WAKE: Final = Wake.WAKE


@dataclass(frozen=True)
class Home:
    """Where a host runs: an interpreter (not resolved: a link in a virtual environment matters) and variables."""

    python: Path
    environ: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, python: Path, environ: Mapping[str, str]) -> Home:
        """The home with these variables, in whatever order."""
        return cls(python, tuple(sorted(environ.items())))


class Host:
    """One host. ``send``, ``wake`` and ``kill`` may be called from any thread; ``receive`` from one at a time.

    Args:
        launch: ``argv`` ends with the program, which gets the wire's file descriptor as its one argument. A child of
            it with the command line ``... <program> <fd> helper <fd>`` is a part of the host (see ``inside.helpers``).

    Raises:
        HostNotReady: no open files are left, or the nursery is closed.

    A host that is found dead is dead altogether: whoever gets :class:`HostDied` can rely on it that the process and
    everything it started are gone and reaped, and only has to give the host back to its pool.
    """

    def __init__(self, nursery: Nursery, launch: Launch, home: Home) -> None:
        self.home = home
        self.code: str | None = None
        self._program = launch.argv[-1]
        self._asked_at = time.monotonic()
        self._watches_exit = False
        self._ready = False
        self._closing = threading.Lock()
        self._closed = False
        with contextlib.ExitStack() as undo:
            try:
                ours, theirs = socket.socketpair()
                undo.callback(ours.close)
                undo.callback(theirs.close)
                self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                undo.callback(os.close, self._alarm)
                self._note = os.memfd_create("soma-note")
                undo.callback(os.close, self._note)
                self._epoll = select.epoll()
                undo.callback(self._epoll.close)
            except OSError as error:
                raise HostNotReady(f"no host can be started: {error}; are open files left (ulimit -n)?") from error
            self._channel = Channel(ours)
            self._epoll.register(self._channel, select.EPOLLIN)
            self._epoll.register(self._alarm, select.EPOLLIN)
            argv, fds = [*launch.argv, str(theirs.fileno())], (*launch.pass_fds, theirs.fileno())
            self._starting: Future[Child] = nursery.start_soon(replace(launch, argv=argv, pass_fds=fds))
            self._starting.add_done_callback(lambda _: theirs.close())
            undo.pop_all()

    @property
    def child(self) -> Child:
        """The process.

        Raises:
            HostNotReady: it could not be started.
        """
        return self._starting.result()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.child.pid

    @property
    def note(self) -> str:
        """Path of a file in which the host may note the node that runs, where a crash leaves it readable: ``note`` in
        the run frame. Takes no message; see ``inside.note``."""
        return f"/proc/{os.getpid()}/fd/{self._note}"

    @property
    def node(self) -> str | None:
        """The plan's node that runs, for the death certificate: what the host noted, or else the supervisor set."""
        return self._noted_node() or self.child.node

    @node.setter
    def node(self, node: str | None) -> None:
        self.child.node = node

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the host has said that it is ready, at most ``timeout_s`` after it was asked for.

        Raises:
            HostNotReady: it was not, and is killed. The message has what it printed.
        """
        if self._ready:
            return
        deadline = self._asked_at + timeout_s
        frame: list[Any] | Wake | None = WAKE
        try:
            while frame is WAKE:
                frame = self.receive(max(0.0, deadline - time.monotonic()))
        except HostDied as error:
            raise self._not_ready("ended before it was ready", error.details) from None
        if not isinstance(frame, list) or frame[0] != "ready":
            said = "said nothing" if frame is None else f"said {frame!r:.200}"
            raise self._not_ready(f"was not ready within {timeout_s:g} s ({said})", self.child.kill("not ready"))
        self.child.note_peak()
        self.child.look_up_node = self._noted_node
        self._ready = True

    def _not_ready(self, what: str, death: dict[str, Any]) -> HostNotReady:
        python = str(self.home.python)
        return HostNotReady(f"a host of {python} {what}: {describe(death)}", certificate=death, python=python)

    def begin(self, code: str) -> None:
        """The host is to run filters with this digest; what it printed before is forgotten."""
        self.code = code
        self._take_wake()
        os.pwrite(self._note, bytes(_NOTE_BYTES), 0)
        self.child.begin()

    def send(self, frame: Sequence[Any]) -> None:
        """Send ``[kind, ...]``.

        Raises:
            HostDied: the host is dead, or was killed because it no longer reads.
            HostError, TypeError: see :meth:`Channel.send`; the host is unharmed.
        """
        try:
            self._channel.send(frame, stall_s=STALL_S)
        except TimeoutError:
            raise _died(self.child.kill("stuck", f"it read nothing for {STALL_S:g} s")) from None
        except OSError:
            raise _died(self._after_end_of_file()) from None

    def receive(self, timeout_s: float | None = None) -> list[Any] | Wake | None:
        """The next frame; :data:`WAKE` when somebody called :meth:`wake`; None when nothing came in time.

        A wake comes before frames that wait, and frames come before the news that the host is dead.

        Raises:
            HostDied: the host is dead, and what it sent before has been received (or what it sent was no frame, for
                which it was killed). ``details`` is its death certificate, the message says it in words.
        """
        self._watch_exit()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            seen = {fd for fd, _ in self._epoll.poll(self._slice(left_s))}
            if self._alarm in seen and self._take_wake():
                return WAKE
            exited = self.child.exit_fd() in seen or (not self._watches_exit and self.child.exited())
            try:
                frame = self._channel.receive_ready()  # after the look at the end: nothing is sent after that
            except EOFError:
                raise _died(self._after_end_of_file()) from None
            except HostError as error:
                raise _died(self.child.kill("broke the wire", error.message)) from error
            if frame is not None:
                return frame
            if exited:  # and no end of file: a descendant holds the other end
                raise _died(self.child.kill())
            if left_s == 0.0:
                return None

    def wake(self) -> None:
        """Make the present or next :meth:`receive` return :data:`WAKE`. Any number of calls before that are one."""
        with self._closing:
            if not self._closed:
                os.eventfd_write(self._alarm, 1)

    def fileno(self) -> int:
        """Readable when :meth:`receive` would not wait: a frame, a wake, or the end."""
        return self._epoll.fileno()

    def drain(self) -> None:
        """Take in what the host has printed up to now, as when it says that it is done."""
        self.child.output.drain()

    def take_output(self, *, final: bool = False) -> list[str]:
        """The lines printed since the last call; with ``final`` everything up to now, an unfinished line too."""
        return [line.text for line in self.child.take_output(final=final)]

    def kill(self, reason: str, detail: str = "") -> dict[str, Any]:
        """End it and everything it started; its death certificate. ``receive`` elsewhere raises HostDied."""
        return self.child.kill(reason, detail)

    def certificate(self) -> dict[str, Any]:
        """How it ended, once it was killed or found dead."""
        return self.child.certificate()

    def idle(self) -> bool:
        """Whether it is alive and silent, as a host without work must be."""
        return all(fd == self._alarm for fd, _ in self._epoll.poll(0)) and not self.child.exited()

    def alone(self) -> bool:
        """Whether it has no child processes, beside the helpers that are part of every host."""
        return all(self._is_helper(pid) for pid in family.children(self.pid))

    def _is_helper(self, pid: int) -> bool:
        *_, program, _fd, role, _note = ["", "", "", "", *family.command(pid)]
        return program == self._program and role == "helper"

    def ask_to_stop(self) -> None:
        """Ask it to end by itself, as far as it listens; whoever asks calls :meth:`close` later."""
        with contextlib.suppress(OSError):  # it is dead or does not read: then close() ends it
            if self._ready:
                self.child.note_kin()
            self._channel.send(["stop"], stall_s=0.0)

    def exited(self) -> bool:
        """Whether it was started and has ended, or could not be started. Does not wait."""
        if not self._starting.done():
            return False
        return self._starting.exception() is not None or self.child.exited()

    def close(self) -> None:
        """Kill it, if it lives, and free what this object holds. Nobody may be in ``receive``."""
        if self._starting.exception() is None:
            self.child.close()
            self.child.node = self.node
        with self._closing:
            if not self._closed:
                self._closed = True
                os.close(self._note)
                self._channel.close()
                self._epoll.close()
                os.close(self._alarm)

    def _noted_node(self) -> str | None:
        with self._closing:
            if self._closed:
                return None
            return os.pread(self._note, _NOTE_BYTES, 0).rstrip(b"\0").decode(errors="ignore") or None

    def _slice(self, left_s: float | None) -> float | None:
        if self._watches_exit:
            return left_s
        return _LOOK_S if left_s is None else min(left_s, _LOOK_S)

    def _watch_exit(self) -> None:
        fd = self.child.exit_fd()
        if fd is not None and not self._watches_exit:
            self._epoll.register(fd, select.EPOLLIN)
            self._watches_exit = True

    def _take_wake(self) -> bool:
        try:
            return os.eventfd_read(self._alarm) > 0
        except BlockingIOError:
            return False

    def _after_end_of_file(self) -> dict[str, Any]:
        """The wire closes a moment before the process is gone: wait for how it ended before killing it."""
        self.child.wait(_EXIT_AFTER_EOF_S)
        return self.child.kill("closed its wire")


def _died(death: dict[str, Any]) -> HostDied:
    return HostDied(f"the process that ran it was lost: {describe(death)}", **death)
