"""Which node a host was running, read after its death: a piece of memory that the host writes and this side holds."""

from __future__ import annotations

import os

from somatize_worker.hosts.inside.note import SIZE


class NodeNote:
    """Anonymous memory with a path that the host can open; gone with the last process that holds it."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("soma-note", os.MFD_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def read(self) -> str:
        """The id of the node that was started last and has not ended; empty if there is none."""
        return os.pread(self._fd, SIZE, 0).rstrip(b"\0").decode(errors="replace")

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)
