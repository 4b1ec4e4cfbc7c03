"""What becomes of a process's children and folders when it is gone, in whatever way: run as a program beside it.

``python orphan.py [--kill] PARENT_PID COMMAND…`` becomes a command that ends when its parent does: with SIGTERM, or
with SIGKILL if ``--kill`` is given. ``python orphan.py --remove FOLDER…`` waits until its standard input ends, that is
until the process that holds the other end is gone, and removes the folders. (A byte there says that nobody uses them.)

The kernel sends the parent-death signal when the *thread* that started a process ends (prctl(2), PR_SET_PDEATHSIG), so
whoever runs the first needs a thread that lives as long as the command: see :mod:`somatize_worker.owned`. The signal
is asked for in the child, and the command is exec'd in its place, so that no process stays in between.

The standard library only, and little of it: this runs as ``python -I -S``, in a hundredth of a second.
"""

from __future__ import annotations

import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_QUIET_S = 0.5  # so long nothing may write into a folder before it counts as removed
_REMOVE_WITHIN_S = 15.0
_PAUSE_S = 0.05


def run(arguments: list[str]) -> None:
    """Ask for the signal, make sure that the parent still lives, become the command."""
    kill = arguments[0] == "--kill"
    parent, *command = arguments[1:] if kill else arguments
    if sys.platform == "linux":
        import ctypes

        number = signal.SIGKILL if kill else signal.SIGTERM
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != int(parent):
        raise SystemExit("the process that asked for this command is gone")
    os.execvp(command[0], command)


def remove(folders: list[str]) -> None:
    """Wait for the end of standard input, then remove the folders.

    Processes that use them may be about to end, and write until they do: it is tried until the folders stay away.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # these end the owner; we come after it
        signal.signal(number, signal.SIG_IGN)
    quiet_s = _QUIET_S
    while os.read(0, 4096):
        quiet_s = 0.0
    import shutil

    deadline = time.monotonic() + _REMOVE_WITHIN_S
    quiet_since = time.monotonic()
    while time.monotonic() < deadline:
        if there := [folder for folder in folders if os.path.lexists(folder)]:
            for folder in there:
                shutil.rmtree(folder, ignore_errors=True)
            quiet_since = time.monotonic()
        if time.monotonic() - quiet_since >= quiet_s and not any(map(os.path.lexists, folders)):
            return
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    if sys.argv[1] == "--remove":
        remove(sys.argv[2:])
    else:
        run(sys.argv[1:])
