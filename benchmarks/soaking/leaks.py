"""What a soak must not leave behind: processes, keys, files, memory."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import redis

from somatize_worker import LocalCluster
from somatize_worker.ledger.keys import REGISTRIES

MARK: Final = "SOAK_RUN"
_KOMBU: Final = ("_kombu.", "unacked_mutex")
_SETTLE_S: Final = 60.0
_GROWTH: Final = 1.15
_GROWTH_BYTES: Final = 12 << 20
_KEPT_BYTES: Final = 4_000_000


@dataclass
class Samples:
    """Memory over time, in bytes, sampled once a second."""

    worker: list[int] = field(default_factory=list)
    server: list[int] = field(default_factory=list)


class Sampler:
    """Samples the memory of the first worker and of the server, on a thread of its own."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.samples = Samples()
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Sample no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            server = self._cluster.server
            with suppress(psutil.NoSuchProcess):
                self.samples.worker.append(psutil.Process(self._cluster.workers[0].pid).memory_info().rss)
            if server is not None and server.pid is not None:
                with suppress(psutil.NoSuchProcess):
                    self.samples.server.append(psutil.Process(server.pid).memory_info().rss)


def growth(samples: list[int]) -> tuple[int, int]:
    """The median of the second quarter, and that of the last."""
    quarter = max(1, len(samples) // 4)
    return int(statistics.median(samples[quarter : 2 * quarter] or samples)), int(statistics.median(samples[-quarter:]))


def is_flat(samples: list[int]) -> bool:
    """Whether memory does not grow by more than 15 % and 12 MB from the second quarter to the last."""
    before, after = growth(samples)
    return after <= max(before * _GROWTH, before + _GROWTH_BYTES)


def used_bytes(server: redis.Redis) -> int:
    """The memory that a server's data, scripts and buffers take; its resident size is that of its busiest moment."""
    return int(server.info("memory")["used_memory"])


def kept(before: int, after: int) -> list[str]:
    """What is wrong if a server with nothing in it any more has kept more than a few megabytes."""
    return [] if after - before < _KEPT_BYTES else [f"{before} → {after} bytes"]


def processes(run: str) -> list[psutil.Process]:
    """Every process whose environment has this run's mark: workers, hosts, and what those started."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError):
            if f"{MARK}={run}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                with suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(pid))
    return found


def orphans(run: str, workers: Iterable[int]) -> list[str]:
    """Processes of this run that belong to no live worker."""
    alive = set(workers)
    lost = []
    for process in processes(run):
        with suppress(psutil.NoSuchProcess):
            line = [process.pid, *(parent.pid for parent in process.parents())]
            if not alive.intersection(line):
                lost.append(f"{process.pid}: {' '.join(process.cmdline())[:100]}")
    return lost


def gone(condition: Callable[[], Any], timeout_s: float = _SETTLE_S) -> Any:
    """What ``condition`` still finds when it finds nothing any more, or after the time."""
    deadline = time.monotonic() + timeout_s
    while (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.25)
    return found


def unfinished(client: Any) -> list[str]:
    """Registries, queues and messages that are not empty although nothing is left to do."""
    busy = [f"{key}: {client.zcard(key)}" for key in REGISTRIES if _is_work(key) and client.zcard(key)]
    for key in client.scan_iter(count=1000):
        name = key.decode()
        if name in ("unacked", "unacked_index") or name.partition("\x06")[0] in ("cpu", "gpu"):
            busy.append(name)
    return busy


def _is_work(key: str) -> bool:
    return key not in ("soma:plans", "soma:finished", "soma:workers")


def immortal(client: Any) -> list[str]:
    """Keys that never expire, beside the fixed ones."""
    names = [key.decode() for key in client.scan_iter(count=1000)]
    with client.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.ttl(name)
        lives = pipeline.execute()
    return [
        name
        for name, ttl in zip(names, lives, strict=True)
        if ttl == -1 and name not in REGISTRIES and not name.startswith(_KOMBU)
    ]


def remaining(client: Any) -> list[str]:
    """Keys that are there when everything has expired, beside the fixed ones and what live workers keep."""
    kept = ("soma:worker:", "soma:store", "soma:sweeper", "soma:workers", *_KOMBU)
    return [name for key in client.scan_iter(count=1000) if not (name := key.decode()).startswith(kept)]


def connect(cluster: LocalCluster) -> Any:
    """A client of the cluster's server."""
    return redis.Redis.from_url(cluster.settings.redis_url)


def stored(folder: Path) -> tuple[int, int, int]:
    """Files in the store, their bytes, and how many of them were never completed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files), sum(path.suffix == ".tmp" for path in files)
