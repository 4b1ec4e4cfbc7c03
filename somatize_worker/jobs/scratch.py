"""The folder in which one job runs, gone when the job is over, however it or its worker ends.

<root>/<job id>-<random>.lock        held by the worker while the job runs
<root>/<job id>-<random>/job/        the job's files; its working directory; outputs/ lies in it
                        /control/    what the worker and the job's process tell each other
                        /tmp/        TMPDIR
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from somatize_worker.errors import InvalidSettings
from somatize_worker.hosts.locks import FileLock
from somatize_worker.jobs.paths import OUTPUTS
from somatize_worker.settings import Settings

log = logging.getLogger("somatize.jobs")

_LOCK_SUFFIX: Final = ".lock"


class Scratch:
    """A context manager: made on entry, removed on exit."""

    def __init__(self, root: Path, job_id: str) -> None:
        self.folder = root / f"{job_id}-{secrets.token_hex(4)}"
        self.job = self.folder / "job"
        self.outputs = self.job / OUTPUTS
        self.control = self.folder / "control"
        self.temporary = self.folder / "tmp"
        self._lock = FileLock(self.folder.with_name(self.folder.name + _LOCK_SUFFIX))

    def write(self, path: str, content: bytes) -> None:
        """Write one of the job's files. The path is a checked one, and nobody else has been here yet."""
        target = self.job / path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(content)

    def __enter__(self) -> Scratch:
        while not self._lock.acquire():  # a sweeper found the new file first and lets go of it at once
            time.sleep(0.001)
        try:
            for folder in (self.folder, self.job, self.outputs, self.control, self.temporary):
                folder.mkdir(mode=0o700)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        remove(self.folder)
        self._lock.path.unlink(missing_ok=True)
        self._lock.release()


def root_folder(settings: Settings) -> Path:
    """Where jobs of this user run, made if need be.

    Raises:
        InvalidSettings: it cannot be made, or belongs to somebody else.
    """
    own = Path(tempfile.gettempdir()) / f"soma-{os.getuid()}"
    root = Path(settings.job_folder) if settings.job_folder else own / "jobs"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSettings(f"jobs cannot run in {root} ({error}): set SOMA_JOB_FOLDER to another folder") from error
    if not settings.job_folder and (own.is_symlink() or own.stat().st_uid != os.getuid()):
        raise InvalidSettings(f"{own} belongs to somebody else: set SOMA_JOB_FOLDER to a folder of yours")
    return root


def sweep(root: Path) -> int:
    """Remove what jobs of dead workers left; returns how many folders went. Several may sweep at the same time."""
    removed = 0
    for path in root.glob(f"*{_LOCK_SUFFIX}"):
        lock = FileLock(path)
        if lock.acquire():
            remove(path.with_suffix(""))
            path.unlink(missing_ok=True)
            lock.release()
            removed += 1
    return removed


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it, whatever a job did to its permissions or its depth."""
    try:
        shutil.rmtree(folder)
        return
    except FileNotFoundError:
        if not folder.exists():
            return
    except (OSError, RecursionError):
        log.debug("removing %s needs the tools", folder, exc_info=True)
    for tool in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
        subprocess.run([*tool, "--", str(folder)], check=False, stdin=subprocess.DEVNULL, capture_output=True)
    if folder.exists():
        log.warning("the job's folder %s cannot be removed: remove it by hand", folder)
