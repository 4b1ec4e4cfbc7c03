"""What a filter host asks of Linux: to die with its parent, to be killed first, and who its children are."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.PyDLL(None)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, and take in its orphaned descendants.

    ``parent`` is the parent's id from before; if it is another one by now, the parent is gone already.
    """
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def be_killed_first() -> None:
    """When memory runs out, the kernel is to take this process, not the worker."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # not Linux, or not allowed
        file.write("1000")


def children(known: Sequence[int] = ()) -> list[int]:
    """The ids of this process's children that have not ended, other than the ``known`` ones. What has ended is
    reaped: nobody is left to ask for its status once the plan that started it is over."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) not in known and (state := _state_of_child(name)) is not None:
            if state == "Z":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(int(name), os.WNOHANG)
            else:
                found.append(int(name))
    return found


def _state_of_child(pid: str) -> str | None:
    """A process's state as a letter, if it is a child of this one."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return state if int(parent) == os.getpid() else None


def flush(stream: Any) -> None:
    """Flush a text stream, whatever user code put in its place."""
    try:
        if stream is not None:
            stream.flush()
    except Exception as error:  # closed, or an object of the user's that has no flush
        os.write(2, f"soma: output could not be flushed: {error}\n".encode(errors="replace"))


def flush_c_streams() -> None:
    """Flush what C code printed."""
    _libc.fflush(None)


def end_group() -> None:
    """Kill this process, its helpers and whatever user code started in its group."""
    os.killpg(os.getpgrp(), signal.SIGKILL)
