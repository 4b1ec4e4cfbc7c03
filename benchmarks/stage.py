"""One server with workers of ours and bare Celery workers, all with as many slots as there are cores."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.celery_app import QUEUES
from benchmarks.machine import cores
from somatize_worker import LocalCluster

ROOT = Path(__file__).parent.parent
_READY_WITHIN_S = 60.0


class BareWorker:
    """One ``celery -A benchmarks.celery_app worker``, started and logging as :class:`LocalCluster` does it."""

    def __init__(self, pool: str, environ: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "somatize_worker.orphan", str(os.getpid()), sys.executable, "-m", "celery"]
        command += ["-A", "benchmarks.celery_app", "--workdir", str(ROOT), "worker", "-P", pool, "-Q", QUEUES[pool]]
        command += ["-c", str(cores()), "-n", f"bare-{pool}@%h", "--loglevel", "INFO"]
        command += ["--without-mingle", "--without-gossip"]
        environ = {**environ, "C_FORCE_ROOT": "1"}  # Celery refuses pickle to root, which one is in a container
        self._process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._lines: deque[bytes] = deque(maxlen=200)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_ready(self) -> None:
        """Wait for its word that it is ready; RuntimeError with its log if it is not."""
        deadline = time.monotonic() + _READY_WITHIN_S
        while not self._ready.wait(0.05):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the bare Celery worker did not start:\n{b''.join(self._lines).decode()}")

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if b" ready." in line:
                self._ready.set()


@contextmanager
def stage(pools: Sequence[str], *, folder: Path | None = None) -> Iterator[dict[str, str]]:
    """The variables with which a process joins. With ``folder`` the server keeps an append-only file there."""
    with LocalCluster({"cpu": 1}, slots=cores(), folder=folder) as cluster:
        environ = cluster.environ()
        workers = [BareWorker(pool, {**os.environ, **environ}) for pool in pools]
        try:
            for worker in workers:
                worker.wait_ready()
            yield environ
        finally:
            for worker in workers:
                worker.stop()
