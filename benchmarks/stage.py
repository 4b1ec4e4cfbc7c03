"""One server with workers of ours and bare Celery workers, all with as many slots as there are cores."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.celery_app import QUEUES
from benchmarks.machine import cores
from benchmarks.player import Failed
from somatize_worker import LocalCluster
from somatize_worker.owned import OwnedProcess
from somatize_worker.settings import Settings

ROOT: Final = Path(__file__).parent.parent
_READY_WITHIN_S: Final = 60.0
_STOP_WITHIN_S: Final = 10.0


class BareWorker:
    """One ``celery -A benchmarks.celery_app worker``, started and logging as :class:`LocalCluster` does it."""

    def __init__(self, pool: str, environ: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.celery_app", "--workdir", str(ROOT), "worker"]
        command += ["-P", pool, "-Q", QUEUES[pool], "-c", str(cores()), "-n", f"bare-{pool}@%h"]
        command += ["--loglevel", "INFO", "--without-mingle", "--without-gossip"]
        environ = {**environ, "C_FORCE_ROOT": "1"}  # Celery refuses pickle to root, which one is in a container
        self._ready = threading.Event()
        self._owned = OwnedProcess(command, environ=environ, on_line=self._read)

    def wait_ready(self) -> None:
        """Wait for its word that it is ready; RuntimeError with its log if it is not."""
        deadline = time.monotonic() + _READY_WITHIN_S
        while not self._ready.wait(0.05):
            if self._owned.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the bare Celery worker did not start:\n{self._owned.tail()}")

    def stop(self) -> None:
        """End it."""
        self._owned.end(_STOP_WITHIN_S)

    def _read(self, line: str) -> None:
        if line.endswith(" ready."):
            self._ready.set()


@contextmanager
def huge_pages() -> Iterator[Path]:
    """A folder in memory whose files are on huge pages, mounted for the while.

    Raises:
        Failed: this user may not mount, or this kernel has no such pages.
    """
    with tempfile.TemporaryDirectory() as name:
        command = ["mount", "-t", "tmpfs", "-o", "huge=within_size", "tmpfs", name]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode:
            raise Failed(f"huge pages need root, to mount them: {mounted.stderr.strip()}")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


@contextmanager
def stage(
    pools: Sequence[str], *, folder: Path | None = None, settings: Settings | None = None
) -> Iterator[dict[str, str]]:
    """The variables with which a process joins. With ``folder`` the server keeps an append-only file there."""
    with LocalCluster({"cpu": 1}, slots=cores(), folder=folder, settings=settings) as cluster:
        environ = cluster.environ()
        workers = [BareWorker(pool, {**os.environ, **environ}) for pool in pools]
        try:
            for worker in workers:
                worker.wait_ready()
            yield environ
        finally:
            for worker in workers:
                worker.stop()
