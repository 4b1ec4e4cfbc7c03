"""This package, on a cluster that runs already (see ``stage``)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.work import (
    CHAIN,
    CHAINED,
    CHAINED_SILENTLY,
    MAPPED,
    MEMORY,
    ROUND_TRIP,
    TENSOR,
    Jobs,
    Work,
    double,
    expect,
    increment,
)
from somatize_worker import Coordinator
from somatize_worker.pipeline import pipeline

_WAIT_S = 120
_LOOK_EVERY_S = 0.005


@contextmanager
def play(work: Work) -> Iterator[Jobs]:
    """Pipelines are compiled once, as the other contestants' functions are registered once."""
    with Coordinator() as c:
        small = c.compile(increment)
        doubling = c.compile(double)
        chain = c.compile(pipeline(*[increment] * CHAIN))

        def round_trip() -> None:
            expect(c.forward(small, 1.0).result(timeout=_WAIT_S).output, 2.0)

        def chained() -> None:
            expect(c.forward(chain, 0.0).result(timeout=_WAIT_S).output, CHAIN)

        def chained_silently() -> None:
            expect(c.forward(chain, 0.0, events=False).result(timeout=_WAIT_S).output, CHAIN)

        def tensor() -> None:
            run = c.forward(doubling, work.tensor)
            work.check_tensor(run.result(timeout=_WAIT_S).output)
            run.discard()  # as the others do when nobody refers to it any more

        def mapped() -> None:
            work.check_items(list(c.map(small, work.items)))

        def memory() -> float:
            (worker,) = c.workers()
            x = np.ones(work.memory_bytes // 8)
            before = _resident_bytes(worker.pid)
            with _Peak(worker.pid) as peak:
                y = c.forward(doubling, x).result(timeout=_WAIT_S).output
                expect(float(y.sum()), 2.0 * x.size)
            return float(peak.bytes - before)

        yield {
            ROUND_TRIP: round_trip,
            CHAINED: chained,
            CHAINED_SILENTLY: chained_silently,
            TENSOR: tensor,
            MAPPED: mapped,
            MEMORY: memory,
        }


class _Peak:
    """The largest resident size of a process while inside, looked at every few milliseconds."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.bytes = max(self.bytes, _resident_bytes(self._pid))
            if self._stop.wait(_LOOK_EVERY_S):
                return


def _resident_bytes(pid: int) -> int:
    """``VmRSS`` of proc(5): private and shared memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) << 10
