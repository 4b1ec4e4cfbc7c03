"""One worker of a local cluster: a process of its own, which ends with its owner at the latest."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping

from somatize_worker.owned import OwnedProcess


class WorkerProcess:
    """One Celery worker, started here. It ends with this process at the latest, however that one ends."""

    def __init__(
        self,
        worker_id: str,
        tags: str,
        slots: int,
        environ: Mapping[str, str],
        on_log: Callable[[str, str], None] | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.tags = tags
        self.slots = slots
        self.ready = False
        self._owned = OwnedProcess(
            # -P: a file of the user's that is called, say, celery.py or queue.py must not be taken for the library
            [
                sys.executable,
                "-P",
                "-m",
                "somatize_worker.worker",
                "-Q",
                tags,
                "-n",
                f"{worker_id}@%h",
                "-c",
                str(slots),
            ],
            environ=environ,
            kill=True,
            on_line=None if on_log is None else lambda line: on_log(worker_id, line),
        )
        self.process = self._owned.process

    def __repr__(self) -> str:
        return f"WorkerProcess({self.worker_id!r}, tags={self.tags!r}, pid={self.pid})"

    @property
    def pid(self) -> int:
        """Process id."""
        return self._owned.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    @property
    def ending(self) -> str:
        """How it ended: ``code 1``, ``signal 9 (Killed)``; empty while it runs."""
        code = self.process.poll()
        if code is None:
            return ""
        return f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"code {code}"

    @property
    def log(self) -> str:
        """The last lines that the worker logged."""
        return self._owned.tail()

    def terminate(self) -> None:
        """SIGTERM: take nothing new, let plans finish within the grace period, hand back the rest, exit."""
        self.process.terminate()

    def stop(self, timeout: float) -> None:
        """SIGTERM, and SIGKILL when it has not ended in ``timeout`` seconds."""
        self._owned.end(timeout)

    def kill(self) -> None:
        """SIGKILL."""
        self._owned.end(0, signal.SIGKILL)
