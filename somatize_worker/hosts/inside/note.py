"""Which node runs, kept where it is found after a crash: a small file that the worker (or the host, for its helpers)
reads when the process is gone. Writing it costs a copy of 256 bytes into shared memory, no system call."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final

SIZE: Final = 256
_NOTHING: Final = bytes(SIZE)


class Note:
    """The file, from the side that writes."""

    def __init__(self, fd: int) -> None:
        """Args: fd: a file open for reading and writing; this object does not keep it open."""
        os.ftruncate(fd, SIZE)
        self._map = mmap.mmap(fd, SIZE)
        self._known: dict[str, bytes] = {}

    @classmethod
    def at(cls, path: str) -> Note:
        """The file at ``path``, made if it is not there."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return cls(fd)
        finally:
            os.close(fd)

    def write(self, node_id: str) -> None:
        """This node runs now."""
        content = self._known.get(node_id)
        if content is None:
            content = self._known[node_id] = node_id.encode(errors="replace")[:SIZE].ljust(SIZE, b"\0")
        self._map[:] = content

    def clear(self) -> None:
        """No node runs any more."""
        self._map[:] = _NOTHING

    def read(self) -> str | None:
        """The node that runs; None if there is none."""
        return _text(self._map[:])

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()


def read(path: Path) -> str | None:
    """The node that a process ran when it ended; None if there was none."""
    try:
        return _text(path.read_bytes()[:SIZE])
    except FileNotFoundError:
        return None


def _text(content: bytes) -> str | None:
    return content.rstrip(b"\0").decode(errors="ignore") or None
