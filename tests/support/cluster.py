"""A cluster whose parts can be killed, paused and restarted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from somatize_worker import LocalCluster
from somatize_worker.local import WorkerProcess
from somatize_worker.settings import Settings
from tests.support.server import poll

SHORT_LEASE_S = 1.5


def short(**changes: object) -> Settings:
    """Settings with which a dead worker is noticed within some three seconds."""
    values: dict[str, object] = {"lease_s": SHORT_LEASE_S, "grace_s": 3.0, "idle_hosts": 2, **changes}
    return Settings(**values)  # type: ignore[arg-type]


class Cluster(LocalCluster):
    """A :class:`LocalCluster` with an append-only file, at the mercy of a test."""

    def kill(self, worker: WorkerProcess) -> None:
        """SIGKILL, as the kernel or an operator would."""
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait(10)

    def pause(self, worker: WorkerProcess, *more: int) -> None:
        """SIGSTOP to a worker, and to other processes."""
        for pid in (worker.pid, *more):
            os.kill(pid, signal.SIGSTOP)

    def resume(self, worker: WorkerProcess, *more: int) -> None:
        """SIGCONT; the worker comes last, as it may kill the others at once."""
        for pid in (*more, worker.pid):
            os.kill(pid, signal.SIGCONT)

    def worker(self, pid: int) -> WorkerProcess:
        """The worker with this process id."""
        return next(worker for worker in self.workers if worker.pid == pid)

    def freeze_server(self) -> None:
        """The server stops answering, and no connection is closed."""
        os.kill(self._server_pid(), signal.SIGSTOP)

    def thaw_server(self) -> None:
        os.kill(self._server_pid(), signal.SIGCONT)

    def stop_server(self, *, kill: bool = False) -> None:
        """The server goes away, as at a restart or (``kill``) in a crash; its data stays."""
        assert self.server is not None
        if kill:
            os.kill(self._server_pid(), signal.SIGKILL)
        self.server.stop()

    def start_server(self) -> None:
        """The server comes back on the same port with the data of its append-only file."""
        assert self.server is not None
        self.server.start()

    def _server_pid(self) -> int:
        assert self.server is not None
        pid = self.server.pid
        assert pid is not None
        return pid


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_gone(*pids: int, timeout_s: float = 10.0) -> None:
    """Wait until none of the processes lives."""
    poll(lambda: not any(map(alive, pids)), timeout_s=timeout_s, what=f"processes {pids} gone")


def folder_bytes(folder: Path) -> int:
    """What the files below a folder hold."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
