"""A whole cluster on this machine: an embedded server and real Celery workers, as processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from somatize_worker.coordinator import Coordinator
from somatize_worker.errors import HostNotReady
from somatize_worker.server import EmbeddedServer
from somatize_worker.settings import Settings, variable

_READY_WITHIN_S = 60.0
_LOG_LINES = 200


class WorkerProcess:
    """One ``celery -A somatize_worker worker``, started here; ends with this process at the latest."""

    def __init__(self, worker_id: str, tags: str, environ: Mapping[str, str], slots: int) -> None:
        self.worker_id = worker_id
        self.tags = tags
        self.slots = slots
        self.ready = False
        command = [sys.executable, "-m", "somatize_worker.orphan", str(os.getpid()), sys.executable, "-m", "celery"]
        command += ["-A", "somatize_worker", "worker", "-Q", tags, "-n", f"{worker_id}@%h", "-c", str(slots)]
        command += ["--loglevel", "INFO", "--without-mingle", "--without-gossip"]
        self.process = subprocess.Popen(
            command, env=dict(environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)
        threading.Thread(target=self._read, name=f"log-{worker_id}", daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """The last lines that the worker logged."""
        return "".join(self._lines)

    def stop(self, timeout: float) -> None:
        """SIGTERM, and SIGKILL when it has not ended in time."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self._lines.append(line.decode(errors="replace"))


class LocalCluster:
    """An embedded server and workers, for a laptop, a notebook or a test.

    Args:
        workers: how many workers for each tag, ``{"cpu": 2, "gpu": 1}``; ``"cpu,gpu"`` makes workers with both tags.
        slots: plans that each worker runs at once; default: its cores.
        settings: other settings (``lease_s=…``); the server's URL and the store are chosen here.
        folder: keep the server's and the store's data here, so that a cluster started again knows its plans;
            default: in shared memory, removed at the end.
        port: where the server listens, on 127.0.0.1; 0 finds a free one.

    Raises:
        HostNotReady: a worker that did not start in time, with what it logged.
    """

    def __init__(
        self,
        workers: Mapping[str, int] | None = None,
        *,
        slots: int | None = None,
        settings: Settings | None = None,
        folder: Path | None = None,
        port: int = 0,
    ) -> None:
        self._port = port
        self._wanted = dict(workers or {"cpu": 1})
        self._slots = slots or os.cpu_count() or 1
        self._given = settings or Settings.from_env()
        self._folder = folder
        self._temporary: Path | None = None
        self._coordinators: list[Coordinator] = []
        self._name = uuid.uuid4().hex[:6]
        self._count = 0
        self.workers: list[WorkerProcess] = []
        self.server: EmbeddedServer | None = None
        self.settings = self._given

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Start the server and the workers, and wait until all are ready."""
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        if self._folder is None:
            shared = Path("/dev/shm")
            base = shared if shared.is_dir() and os.access(shared, os.W_OK) else None
            self._temporary = Path(tempfile.mkdtemp(prefix="soma-cluster-", dir=base))
        folder = self._folder or self._temporary
        assert folder is not None
        self.server = EmbeddedServer(port=self._port, folder=self._folder / "server" if self._folder else None)
        self.server.start()
        store = self._given.store or f"file://{folder / 'store'}"
        self.settings = replace(self._given, redis_url=self.server.url, store=store)
        for tags, number in self._wanted.items():
            for _ in range(number):
                self.add_worker(tags, wait=False)
        self._wait_for_workers()

    def add_worker(self, tags: str = "cpu", *, slots: int | None = None, wait: bool = True) -> WorkerProcess:
        """Start one more worker."""
        self._count += 1
        worker_id = f"{tags.partition(',')[0]}-{self._name}-{self._count}"
        environ = {**os.environ, **self.environ(), variable("worker_id"): worker_id}
        worker = WorkerProcess(worker_id, tags, environ, slots or self._slots)
        self.workers.append(worker)
        if wait:
            self._wait_for_workers()
        return worker

    def environ(self) -> dict[str, str]:
        """The ``SOMA_*`` variables with which another process joins this cluster."""
        return self.settings.to_env()

    def coordinator(self) -> Coordinator:
        """A coordinator of this cluster; closed with it."""
        coordinator = Coordinator(settings=self.settings)
        self._coordinators.append(coordinator)
        return coordinator

    def _wait_for_workers(self) -> None:
        deadline = time.monotonic() + _READY_WITHIN_S
        with Coordinator(settings=self.settings) as coordinator:
            while missing := self._missing(coordinator):
                for worker in missing:
                    if worker.process.poll() is not None:
                        raise HostNotReady(
                            f"worker {worker.worker_id} ended with code {worker.process.returncode} while starting:\n"
                            f"{worker.log}"
                        )
                if time.monotonic() > deadline:
                    names = ", ".join(worker.worker_id for worker in missing)
                    raise HostNotReady(f"not ready after {_READY_WITHIN_S:g} s: {names}\n{missing[0].log}")
                time.sleep(0.02)

    def _missing(self, coordinator: Coordinator) -> list[WorkerProcess]:
        alive = {worker.worker_id for worker in coordinator.workers()}
        for worker in self.workers:
            worker.ready = worker.ready or worker.worker_id in alive
        return [worker for worker in self.workers if not worker.ready]

    def close(self) -> None:
        """Stop everything and remove what was temporary. Running plans are handed back."""
        for coordinator in self._coordinators:
            coordinator.close()
        self._coordinators.clear()
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self.settings.grace_s + 5
        for worker in self.workers:
            worker.stop(max(0.1, deadline - time.monotonic()))
        self.workers.clear()
        if self.server is not None:
            self.server.stop()
            self.server = None
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None
