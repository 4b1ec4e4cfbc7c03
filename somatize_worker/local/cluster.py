"""A whole cluster on this machine: an embedded server and real Celery workers, as processes of their own."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from somatize_worker import orphan
from somatize_worker.errors import HostNotReady, InvalidSettings, SomaError
from somatize_worker.local.folders import KeptFolder, TemporaryFolders
from somatize_worker.local.process import WorkerProcess
from somatize_worker.server import EmbeddedServer
from somatize_worker.settings import Settings, table, variable

if TYPE_CHECKING:  # at run time it is imported while the workers start: both take a good part of a second
    from somatize_worker.coordinator import Coordinator

_READY_WITHIN_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.02
_STOP_WITHIN_S: Final = 5.0  # beyond the time that running plans get
_LINES_SHOWN: Final = 15
_CANCELLED_AT_MOST: Final = 1000


class LocalCluster:
    """An embedded server and workers, for a laptop, a notebook or a test.

    >>> with LocalCluster({"cpu": 1, "gpu": 1}) as cluster:
    ...     cluster.coordinator().forward(lambda x: x * 2, 21).result().output
    42

    Without ``folder`` the cluster lives in shared memory and leaves nothing behind: plans that are unfinished when it
    is closed are cancelled. With ``folder`` they are handed back, and go on when a cluster is started there again.
    ``SOMA_*`` variables count, except those that say where a cluster is: this one has its own server and store.

    Args:
        workers: how many workers for each tag, ``{"cpu": 2, "gpu": 1}``; ``"cpu,gpu"`` makes workers with both tags.
        slots: plans that each worker runs at once; default: this machine's cores.
        settings: settings instead of those from the environment; a store named there is used.
        folder: keep the server's and the store's data here, and its port and password, so that a cluster started
            there again is found at the same URL.
        port: where the server listens, on 127.0.0.1; 0 finds a free one.
        on_log: called with a worker's id and a line that it logged, from a thread of its own.

    Raises (on start):
        HostNotReady: a worker that did not start in time, with what it logged.
        SomaError: the embedded server is not installed; another cluster runs in the folder.
        ServerUnreachable: the server did not start; the port may be in use.
    """

    def __init__(
        self,
        workers: Mapping[str, int] | Sequence[str] | None = None,
        *,
        slots: int | None = None,
        settings: Settings | None = None,
        folder: Path | str | None = None,
        port: int = 0,
        on_log: Callable[[str, str], None] | None = None,
    ) -> None:
        self._wanted = _wanted({"cpu": 1} if workers is None else workers)
        self._slots = slots or os.cpu_count() or 1
        self._given = settings or Settings.from_env(store="", job_folder="")
        self._folder = None if folder is None else Path(folder).absolute()
        self._port = port
        self._on_log = on_log
        self._temporary: TemporaryFolders | None = None
        self._kept: KeptFolder | None = None
        self._coordinators: list[Coordinator] = []
        self._counts: Counter[str] = Counter()
        self._depth = 0
        self._lock = threading.RLock()
        self.workers: list[WorkerProcess] = []
        self.server: EmbeddedServer | None = None
        self.settings = self._given

    def __repr__(self) -> str:
        tags = ", ".join(worker.worker_id for worker in self.workers)
        return f"LocalCluster({f'running: {tags}' if self.server else 'not running'})"

    def __enter__(self) -> Self:
        self.start()
        self._depth += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.close()

    # ── start ────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> Self:
        """Start the server and the workers, and return when all are ready. Nothing happens if it runs already."""
        with self._lock:
            if self.server is None:
                try:
                    self._start()
                except BaseException:
                    self.close()
                    raise
        return self

    def _start(self) -> None:
        if self._folder is None:
            self._temporary = TemporaryFolders()
            self.server = EmbeddedServer(port=self._port).start()
        else:
            self._kept = KeptFolder(self._folder)
            self.server = self._kept.start_server(self._port)
        self.settings = self._cluster_settings(self.server.url)
        for tags, number in self._wanted.items():
            for _ in range(number):
                self.add_worker(tags, wait=False)
        self._wait_for_workers()

    def _cluster_settings(self, url: str) -> Settings:
        given = replace(self._given, redis_url=url, worker_id="")
        if self._temporary is None:
            return replace(given, store=given.store or f"file://{self._folder}/store")
        return replace(
            given,
            store=given.store or f"file://{self._temporary.memory}/store",
            job_folder=given.job_folder or f"{self._temporary.disk}/jobs",
        )

    def add_worker(self, tags: str = "cpu", *, slots: int | None = None, wait: bool = True) -> WorkerProcess:
        """Start one more worker; with ``wait``, return when it is ready.

        Raises:
            HostNotReady: it did not start in time, with what it logged.
        """
        tag = tags.partition(",")[0]
        self._counts[tag] += 1
        worker_id = f"{tag}-{self._counts[tag]}"
        worker = WorkerProcess(worker_id, tags, slots or self._slots, self._worker_environ(worker_id), self._on_log)
        self.workers.append(worker)
        if wait:
            self._wait_for_workers()
        return worker

    def environ(self) -> dict[str, str]:
        """The ``SOMA_*`` variables with which another process joins this cluster."""
        return self.settings.to_env()

    def coordinator(self) -> Coordinator:
        """A coordinator of this cluster; closed with it."""
        from somatize_worker.coordinator import Coordinator

        coordinator = Coordinator(settings=self.settings)
        self._coordinators.append(coordinator)
        return coordinator

    def _worker_environ(self, worker_id: str) -> dict[str, str]:
        """This process's environment with this cluster's settings in place of whatever it says about another one."""
        ours = {name for name, _, _ in table()}
        environ = {
            name: value for name, value in os.environ.items() if name not in ours and not name.startswith("CELERY_")
        }
        root = str(Path(orphan.__file__).parents[1])
        if os.path.realpath(sys.path[0] or os.getcwd()) == os.path.realpath(root):
            # This package is found only because the script lies, or runs, in its checkout: say so to the workers.
            environ["PYTHONPATH"] = os.pathsep.join(filter(None, [environ.get("PYTHONPATH"), root]))
        return {**environ, **self.environ(), variable("worker_id"): worker_id}

    def _wait_for_workers(self) -> None:
        from somatize_worker.coordinator import Coordinator

        deadline = time.monotonic() + _READY_WITHIN_S
        with Coordinator(settings=self.settings) as coordinator:
            while missing := self._missing(coordinator):
                for worker in missing:
                    if not worker.running:
                        raise _not_ready(worker, f"ended with {worker.ending} while it started")
                if time.monotonic() > deadline:
                    raise _not_ready(missing[0], f"was not ready after {_READY_WITHIN_S:g} s")
                time.sleep(_LOOK_EVERY_S)

    def _missing(self, coordinator: Coordinator) -> list[WorkerProcess]:
        waiting = [worker for worker in self.workers if not worker.ready]
        if waiting:
            # By process, too: where the data was kept, the entry of an earlier worker of that name may still be there.
            alive = {(entry["worker_id"], entry["pid"]) for entry in coordinator.ledger.workers()}
            for worker in waiting:
                worker.ready = (worker.worker_id, worker.pid) in alive
        return [worker for worker in waiting if not worker.ready]

    # ── stop ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Stop everything and remove what was temporary. May be called at any time, any number of times.

        Without a folder, unfinished plans are cancelled. With one, running plans have the grace period
        (``SOMA_GRACE_S``) to finish, then they are handed back to the ledger; an interruption (Ctrl-C) hurries that.
        """
        with self._lock:
            try:
                self._stop_workers()
            finally:
                for worker in self.workers:
                    worker.kill()
                self.workers.clear()
                self._counts.clear()
                if self.server is not None:
                    self.server.stop()
                    self.server = None
                if self._temporary is not None:
                    self._temporary.remove()
                    self._temporary = None
                if self._kept is not None:
                    self._kept.close()
                    self._kept = None

    def _stop_workers(self) -> None:
        running = [worker for worker in self.workers if worker.running]
        for worker in running:
            worker.terminate()
        patience_s = _STOP_WITHIN_S
        if self._temporary is None:
            patience_s += self.settings.grace_s
        elif running:
            self._cancel_plans()
        deadline = time.monotonic() + patience_s
        for worker in running:
            worker.stop(max(0.0, deadline - time.monotonic()))
        while self._coordinators:  # last, so that threads that wait for a result learn how it ended
            self._coordinators.pop().close()

    def _cancel_plans(self) -> None:
        """Nobody will ever finish them: tell whoever waits, and let the workers go."""
        if self.server is None or self.server.pid is None:
            return
        from somatize_worker.ledger import UNFINISHED, Ledger, connect

        try:
            with connect(self.server.url, connect_timeout_s=1.0, command_timeout_s=1.0) as client:
                ledger = Ledger(client, self.settings)
                for record in ledger.records(limit=_CANCELLED_AT_MOST, states=list(UNFINISHED)):
                    ledger.cancel(record.plan_id, "the local cluster was closed")
        except SomaError:  # the server does not answer any more: there is nobody left to tell
            return


def _wanted(workers: Mapping[str, int] | Sequence[str]) -> dict[str, int]:
    wanted = dict(workers) if isinstance(workers, Mapping) else Counter(workers)
    for tags, number in wanted.items():
        if not isinstance(tags, str) or not all(tag.strip() for tag in tags.split(",")):
            raise InvalidSettings(f"{tags!r} names no tags: write LocalCluster({{'cpu': 2, 'gpu': 1}})")
        if not isinstance(number, int) or number < 0:
            raise InvalidSettings(f"{number!r} is no number of workers for {tags!r}: write {{{tags!r}: 1}}")
    return wanted


def _not_ready(worker: WorkerProcess, what: str) -> HostNotReady:
    lines = worker.log.splitlines()[-_LINES_SHOWN:]
    said = "\n".join(f"  {line}" for line in lines) or "  (nothing)"
    return HostNotReady(f"worker {worker.worker_id} {what}. It logged:\n{said}", worker_id=worker.worker_id)
