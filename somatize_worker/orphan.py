"""``python -m somatize_worker.orphan PARENT_PID COMMAND…``: run a command that ends when the parent does.

The kernel's parent-death signal follows the thread that started a process, which in a client may be a short-lived
one; so a small watcher thread cannot be avoided by the caller alone. Here the signal is asked for in the child, and
the command is exec'd in its place, so no process stays in between.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask for the signal, make sure that the parent still lives, become the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        raise SystemExit("the process that asked for this command is gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
