"""What is done to a cluster while plans run: something every few seconds, chosen at random."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import psutil
import redis

from somatize_worker import LocalCluster
from somatize_worker.local import WorkerProcess

_QUEUES: Final = tuple(
    f"{tag}{ending}" for tag in ("cpu", "gpu") for ending in ("", "\x06\x163", "\x06\x166", "\x06\x169")
)


class Chaos:
    """Does harm, on a thread of its own, until :meth:`stop`. The first worker is never killed: its memory is watched.

    Args:
        cluster: kept in an append-only file.
        seed: for the choice of what, whom and when.
        pause_s: how long it waits between two blows, at least and at most.
    """

    def __init__(self, cluster: LocalCluster, seed: int, pause_s: tuple[float, float]) -> None:
        self._pause_s = pause_s
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self._cluster = cluster
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self._wanted = Counter(worker.tags for worker in cluster.workers)
        self.started = 0
        """Workers that were started in place of others."""
        self._lease_s = cluster.settings.lease_s
        self._actions: dict[Callable[[], str], int] = {
            self._kill_worker: 6,
            self._pause_worker: 3,
            self._kill_host: 3,
            self._restart_server: 1,
            self._freeze_server: 1,
            self._cut_connections: 1,
            self._lose_messages: 2,
            self._forget_scripts: 1,
        }
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, with everything in order again: what was paused continues, what was killed is replaced."""
        self._stop.set()
        self._thread.join()
        self._replace()

    def _run(self) -> None:
        first = self._rng.sample(list(self._actions), len(self._actions))  # each once, then at random
        while not self._stop.wait(self._rng.uniform(*self._pause_s)):
            self._replace()
            if first:
                action = first.pop()
            else:
                (action,) = self._rng.choices(list(self._actions), list(self._actions.values()))
            try:
                self.done[action()] += 1
            except Exception as error:  # told in the report: the harness must not fail in silence
                self.failures.append(f"{action.__name__}: {type(error).__name__}: {error}")

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _kill_worker(self) -> str:
        victim = self._rng.choice([worker for worker in self._cluster.workers[1:] if worker.running])
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait(10)
        self._stop.wait(self._rng.uniform(0, self._lease_s))
        return "workers killed (SIGKILL)"

    def _replace(self) -> None:
        """As a service manager does: also those that ended by themselves, because they found no server."""
        running = Counter(worker.tags for worker in self._cluster.workers if worker.running)
        for tags, number in self._wanted.items():
            for _ in range(number - running[tags]):
                self.started += 1
                self._cluster.add_worker(tags, wait=False)

    def _pause_worker(self) -> str:
        victim = self._any_worker()
        victim.process.send_signal(signal.SIGSTOP)
        try:
            self._stop.wait(self._rng.uniform(0.5, 2.5) * self._lease_s)
        finally:
            victim.process.send_signal(signal.SIGCONT)
        return "workers paused, half of them beyond their lease (SIGSTOP)"

    def _kill_host(self) -> str:
        hosts = []
        with suppress(psutil.NoSuchProcess):
            hosts = psutil.Process(self._any_worker().pid).children()
        if not hosts:
            return "hosts not found"
        with suppress(psutil.NoSuchProcess):
            self._rng.choice(hosts).kill()
        return "children of workers killed (SIGKILL)"

    def _any_worker(self) -> WorkerProcess:
        return self._rng.choice([worker for worker in self._cluster.workers if worker.running])

    # ── the server ───────────────────────────────────────────────────────────────────────────────────────────────

    def _restart_server(self) -> str:
        server = self._cluster.server
        assert server is not None
        assert server.pid is not None
        crash = self._rng.random() < 0.5
        if crash:
            os.kill(server.pid, signal.SIGKILL)
        server.stop()
        self._stop.wait(self._rng.uniform(0, 3))
        server.start()
        return f"server restarts after {'a crash (SIGKILL)' if crash else 'a shutdown'}"

    def _freeze_server(self) -> str:
        assert self._cluster.server is not None
        pid = self._cluster.server.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            self._stop.wait(self._rng.uniform(0.5, 2.5) * self._lease_s)
        finally:
            os.kill(pid, signal.SIGCONT)
        return "server silent, half of the times longer than a lease (SIGSTOP)"

    def _cut_connections(self) -> str:
        with self._client() as client:
            for kind in ("pubsub", "normal"):
                client.execute_command("CLIENT", "KILL", "TYPE", kind)
        return "all connections cut"

    def _lose_messages(self) -> str:
        with self._client() as client:
            for _ in range(20):
                client.execute_command("LMPOP", len(_QUEUES), *_QUEUES, "RIGHT")
        return "twenty messages lost"

    def _forget_scripts(self) -> str:
        with self._client() as client:
            client.script_flush()
        return "the server's scripts forgotten"

    def _client(self) -> Any:
        return redis.Redis.from_url(self._cluster.settings.redis_url, socket_timeout=5)
