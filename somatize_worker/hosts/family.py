"""Which processes belong to a child: its group and session, its descendants, and whoever carries its mark.

Every child is started with a mark, the variable ``SOMA_HOST``, in its environment. A daemon that left the group
and the session and lost its parents still carries it, and so can be found and killed.

Linux's ``/proc`` (see proc(5)) and the standard library only, because this file is also a program:
``python family.py PREFIX`` waits until its standard input ends, that is until the worker that holds the other end
is gone in whatever way, and then kills every process whose mark begins with ``PREFIX``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MARK = "SOMA_HOST"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_GONE = (FileNotFoundError, ProcessLookupError)  # a process that ended while we looked
_SWEEP_PAUSE_S = 0.005


@dataclass(frozen=True, slots=True)
class Process:
    """One process as ``/proc/<pid>/stat`` shows it; ``started`` (clock ticks since boot) tells a reused pid."""

    pid: int
    parent: int
    group: int
    session: int
    started: int
    resident_bytes: int
    ended: bool


def parse_stat(text: str) -> Process:
    """Read one line of ``/proc/<pid>/stat``. The name in it may hold spaces and brackets."""
    pid, _, rest = text.partition(" ")
    fields = rest[rest.rindex(")") + 2 :].split()
    return Process(
        pid=int(pid),
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        started=int(fields[19]),
        resident_bytes=int(fields[21]) * _PAGE_BYTES,
        ended=fields[0] in "ZX",
    )


def look(pid: int) -> Process | None:
    """One process, or None if there is none of that number (or another user's, where ``/proc`` hides those)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return parse_stat(file.read())
    except (*_GONE, PermissionError):
        return None


def pids() -> list[int]:
    """The numbers of all processes on this machine that we may see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def snapshot() -> dict[int, Process]:
    """All processes on this machine. Costs some 15 µs for each."""
    seen = (look(pid) for pid in pids())
    return {process.pid: process for process in seen if process is not None}


def members(processes: Mapping[int, Process], root: int) -> list[Process]:
    """The living processes of ``root``: itself, its group and session, and all their descendants."""
    children: dict[int, list[Process]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process)
    pending = [p for p in processes.values() if root in (p.pid, p.group, p.session)]
    found: dict[int, Process] = {}
    while pending:
        process = pending.pop()
        if process.pid not in found:
            found[process.pid] = process
            pending += children.get(process.pid, [])
    return [process for process in found.values() if not process.ended]


def children(pid: int) -> list[int]:
    """The child processes of all threads of a process, zombies included. Costs some 15 µs for each thread."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(*_GONE), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except _GONE:
        return []
    return found


def command(pid: int) -> list[str]:
    """The command line of a process; empty when it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
    except _GONE:
        return []


def mark_of(pid: int) -> str | None:
    """The mark in the environment that a process was started with; None without one or when we may not look."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = b"\0" + file.read()
    except (*_GONE, PermissionError):
        return None
    _, found, rest = environ.partition(b"\0" + MARK.encode() + b"=")
    return os.fsdecode(rest.partition(b"\0")[0]) if found else None


def kill_exactly(process: Process) -> None:
    """SIGKILL to this process and never to another one that has its number by now."""
    with contextlib.suppress(*_GONE, PermissionError), _opened(process.pid) as handle:
        now = look(process.pid)
        if now is not None and now.started == process.started:
            _kill(process.pid, handle)


def kill_marked(mark: str, *, prefix: bool = False, timeout_s: float = 2.0) -> int:
    """SIGKILL to every process with this mark (or one that begins so), until there is none; how many got it.

    A process that keeps forking is caught by looking again. What is not gone after ``timeout_s`` is stuck in the
    kernel and goes when it comes out of there.
    """
    deadline = time.monotonic() + timeout_s
    killed: set[int] = set()
    while True:
        found = _marked(mark, prefix)
        for pid in found:
            with contextlib.suppress(*_GONE, PermissionError), _opened(pid) as handle:
                if _matches(mark_of(pid), mark, prefix):  # still the same process, now that the handle holds it
                    _kill(pid, handle)
                    killed.add(pid)
        if not found or time.monotonic() > deadline:
            return len(killed)
        time.sleep(_SWEEP_PAUSE_S)


def _marked(mark: str, prefix: bool) -> list[int]:
    own = os.getpid()
    return [pid for pid in pids() if pid != own and _matches(mark_of(pid), mark, prefix)]


def _matches(found: str | None, mark: str, prefix: bool) -> bool:
    return found is not None and (found.startswith(mark) if prefix else found == mark)


@contextlib.contextmanager
def _opened(pid: int) -> Iterator[int | None]:
    """A handle that stays with the process even when its number is given to another; None on an old kernel."""
    try:
        handle = os.pidfd_open(pid)
    except OSError as error:
        if isinstance(error, _GONE):
            raise
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def _kill(pid: int, handle: int | None) -> None:
    if handle is None:
        os.kill(pid, signal.SIGKILL)
    else:
        signal.pidfd_send_signal(handle, signal.SIGKILL)


def guard(prefix: str) -> None:
    """Wait for the end of standard input, then kill everything whose mark begins with ``prefix``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # these end the worker; we come after it
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        continue
    kill_marked(prefix, prefix=True, timeout_s=10.0)


if __name__ == "__main__":
    guard(sys.argv[1])
