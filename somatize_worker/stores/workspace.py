"""A folder of this process for files on their way into a store that keeps none: gone when the process is.

Each process has its own, below one folder of the user's. It holds a lock on it for as long as it lives; the kernel
drops the lock however the process ends, and then anybody may remove what it left. (A process id would not do: it
means nothing in another container that shares the memory.)
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final

from somatize_worker.settings import default_folder
from somatize_worker.stores.disk import FOLDER_MODE, TEMPORARY_SUFFIX, own_folder, writing

_LOCK: Final = ".lock"
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_FETCHED: Final = re.compile(r"[0-9a-f]{64}\.[a-z]+")
_FETCHED_S: Final = 900.0
"""How long a fetched copy is kept after its last use; who has opened it keeps its data."""


class Workspace:
    """A folder that lasts as long as this process or the object.

    Args:
        base: where the workspaces of all processes lie; default: a folder of this user's in shared memory.
    """

    def __init__(self, base: Path | None = None) -> None:
        self.base = Path(os.path.realpath(own_folder(default_folder("work")) if base is None else base))
        self.base.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        self.folder, self._lock = _claim(self.base)
        self._end = weakref.finalize(self, _remove, self.folder, self._lock, os.getpid())

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        self._end()

    def sweep(self, ttl_s: float) -> int:
        """Remove what dead processes left, and files here that nobody wants: fetched copies unused for a quarter of
        an hour, and others older than ``ttl_s``. Returns how many files went."""
        removed = 0
        for other in self.base.iterdir():
            if _NAME.fullmatch(other.name) and other != self.folder:
                removed += _remove_abandoned(other)
        now = time.time()
        for path in list(self.folder.rglob("*")):
            with suppress(FileNotFoundError):  # adopted while we looked
                short = _FETCHED.fullmatch(path.name) or path.name.endswith(TEMPORARY_SUFFIX)
                age_s = now - path.stat().st_mtime
                if path.is_file() and path.name != _LOCK and age_s > (min(_FETCHED_S, ttl_s) if short else ttl_s):
                    path.unlink()
                    removed += 1
        return removed


def _claim(base: Path) -> tuple[Path, int]:
    """A new folder and the descriptor whose lock says that it is in use."""
    while True:
        folder = base / secrets.token_hex(16)
        with writing(base, 0):
            folder.mkdir(mode=FOLDER_MODE)
            with suppress(FileNotFoundError):  # a sweep came between and took it for abandoned
                lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if os.fstat(lock).st_nlink:
                        return folder, lock
                except BaseException:
                    os.close(lock)
                    raise
                os.close(lock)


def _remove_abandoned(folder: Path) -> int:
    """Remove another process's folder, unless that process lives."""
    try:
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    else:
        count = sum(1 for path in folder.rglob("*") if path.is_file() and path.name != _LOCK)
        shutil.rmtree(folder, ignore_errors=True)
        return count
    finally:
        os.close(lock)


def _remove(folder: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has a copy of the object, and no say
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
