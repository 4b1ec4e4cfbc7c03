"""From which size on is a reference to a file cheaper than the value itself in the record?

For each size, a float64 array goes from a client to a filter host in both forms, as a plan's input does:

    inline     packed into a field of a Redis hash; read by the worker, handed to a host through a socket, unpacked
    reference  written to the file store, a reference in the field; the host maps or reads the file

and is summed by the host, so that every page is touched. The two take turns, against a server and with a host process
of their own. ``SOMA_INLINE_LIMIT_BYTES`` has its default from here.

    python benchmarks/inline_limit.py [--rounds 200] [--store file:///dev/shm/somewhere]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import redis
from rich.console import Console
from rich.table import Table

from somatize_worker.packing import Reference, pack, unpack
from somatize_worker.ports import DataStore
from somatize_worker.server import EmbeddedServer
from somatize_worker.settings import Settings, default_folder
from somatize_worker.stores import open_store, resolve

SIZES = [1 << power for power in range(10, 24)]
RECORD = "benchmark:record"


@dataclass(frozen=True)
class Row:
    """Medians in microseconds for one size in bytes."""

    size: int
    inline_us: float
    reference_us: float


@dataclass(frozen=True)
class Path:
    """The way from client to host."""

    client: redis.Redis
    store: DataStore
    host: Connection

    def send(self, plain: Any) -> float:
        """Plain data through the record and the socket; what the host answers."""
        self.client.hset(RECORD, "value", pack(plain))
        packed: Any = self.client.hget(RECORD, "value")
        self.host.send_bytes(packed)
        return float(self.host.recv())

    def time_us(self, array: np.ndarray, *, as_reference: bool) -> float:
        start = time.perf_counter()
        plain = self.store.put(array) if as_reference else array
        self.send(plain)
        taken = time.perf_counter() - start
        if isinstance(plain, Reference):
            self.store.delete(plain)
        return taken * 1e6


def serve(settings: Settings, worker: Connection) -> None:
    """The host: sums what it is sent."""
    store = open_store(settings)
    while data := worker.recv_bytes():
        worker.send(float(resolve(store, unpack(data)).sum()))


def measure(path: Path, size: int, rounds: int) -> Row:
    array = np.random.default_rng(size).random(size // 8)
    inline, reference = [], []
    for _ in range(max(15, min(rounds, (256 << 20) // size))):
        inline.append(path.time_us(array, as_reference=False))
        reference.append(path.time_us(array, as_reference=True))
    return Row(size, statistics.median(inline), statistics.median(reference))


def crossover(rows: list[Row]) -> int | None:
    """The smallest measured size from which on references are never slower, in bytes."""
    slower = [row.size for row in rows if row.reference_us > row.inline_us]
    return min((row.size for row in rows if row.size > max(slower, default=0)), default=None)


def show(rows: list[Row], url: str) -> None:
    table = Table(title=f"one value from client to host, medians; store {url}")
    for heading in ("size", "inline", "reference", "reference / inline"):
        table.add_column(heading, justify="right")
    for row in rows:
        ratio = row.reference_us / row.inline_us
        size = f"{row.size >> 10} KB" if row.size < 1 << 20 else f"{row.size >> 20} MB"
        style = "green" if ratio < 1 else None
        table.add_row(size, f"{row.inline_us:,.0f} µs", f"{row.reference_us:,.0f} µs", f"{ratio:.2f}", style=style)
    console = Console()
    console.print(table)
    limit = crossover(rows)
    console.print(
        "references are never cheaper" if limit is None else f"references are cheaper from {limit:,} bytes on"
    )
    console.print(f"SOMA_INLINE_LIMIT_BYTES is {Settings().inline_limit_bytes:,} by default")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="repetitions of each size (fewer for large ones)")
    parser.add_argument("--store", default="", help="file:///… ; default: a new folder in shared memory")
    arguments = parser.parse_args()
    memory = default_folder("benchmark").parent
    memory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=memory) as folder, EmbeddedServer() as server:
        settings = Settings(store=arguments.store or f"file://{folder}")
        here, there = multiprocessing.Pipe()
        host = multiprocessing.get_context("spawn").Process(target=serve, args=(settings, there), daemon=True)
        host.start()
        path = Path(redis.Redis.from_url(server.url), open_store(settings), here)
        path.send(0 * np.ones(1))  # the host is up
        show([measure(path, size, arguments.rounds) for size in SIZES], path.store.url)
        here.send_bytes(b"")
        host.join()


if __name__ == "__main__":
    main()
