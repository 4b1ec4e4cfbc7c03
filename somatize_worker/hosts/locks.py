"""Locks between processes, on files. The kernel drops a lock when its holder dies, however it dies.

``flock`` belongs to the open file, so two threads of one process exclude each other as two processes do.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FileLock:
    """A lock on a file, which is made if it is not there. Not reentrant; one holder an object.

    Only who holds the lock may remove the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def acquire(self, *, shared: bool = False) -> bool:
        """Take the lock now; False when somebody else has it.

        Raises:
            OSError: the file cannot be made or locked at all.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError:
            os.close(fd)
            raise
        if not _is_at(fd, self.path):  # its last holder removed it: what we locked is nobody's lock any more
            os.close(fd)
            return False
        self._fd = fd
        return True

    def touch(self) -> None:
        """Set the file's time to now: when the lock was last taken."""
        os.utime(self.path)

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
