"""Where a job keeps what its next attempt may resume from: a folder that outlives the attempt.

It lies beside the data store's files, so that with a shared folder an attempt on another machine finds it. It goes
when the job has succeeded, and otherwise when nothing was written to it for as long as data are kept.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from somatize_worker.jobs.scratch import remove

_FOLDER: Final = "checkpoints"


class Checkpoints:
    """The checkpoint folders in one store's workspace."""

    def __init__(self, workspace: Path, ttl_s: float) -> None:
        self._root = workspace / _FOLDER
        self._ttl_s = ttl_s

    def path(self, job_id: str) -> Path:
        """Where the job's folder is, or is to be made."""
        return self._root / job_id

    def done(self, job_id: str) -> None:
        """The job has succeeded: its checkpoints are not needed any more."""
        remove(self.path(job_id))

    def sweep(self) -> int:
        """Remove what has not been written to for too long; returns how many folders went."""
        if not self._root.is_dir():
            return 0
        oldest = time.time() - self._ttl_s
        stale = [folder for folder in self._root.iterdir() if _last_written(folder) < oldest]
        for folder in stale:
            remove(folder)
        return len(stale)


def _last_written(folder: Path) -> float:
    """The latest modification time of anything in it; what goes away meanwhile does not count."""
    try:
        times = [folder.lstat().st_mtime]
    except FileNotFoundError:  # its job has just succeeded
        return float("inf")
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            try:
                times.append(os.lstat(os.path.join(parent, name)).st_mtime)
            except FileNotFoundError:
                continue
    return max(times)
