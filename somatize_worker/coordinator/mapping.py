"""``map``: many small inputs as few plans, spread over all workers of a tag, a bounded number at a time."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from somatize_worker.coordinator.handles import PlanHandle, RunResult

_FIRST_BATCH = 32
_LARGEST_BATCH = 10_000
_AIM_MS = 100.0
_GROWTH = 8.0
_PLANS_PER_SLOT = 2
_LOOK_EVERY_S = 1.0


def next_batch_size(size: int, duration_ms: float) -> int:
    """How many items to send next, when ``size`` took so long: what would take about a tenth of a second."""
    factor = min(_GROWTH, _AIM_MS / max(duration_ms, 1.0))
    return max(1, min(_LARGEST_BATCH, int(size * factor)))


@dataclass
class _Batch:
    first: int
    size: int
    handle: PlanHandle


Send = Callable[[list[Any], Callable[[str], None]], PlanHandle]


class Mapper:
    """One call of ``map``.

    Args:
        send: submits a plan for a list of items, and has the plan's id told when it has ended.
        slots: how many plans the workers run at once.
        batch_size: items for each plan; None: what takes about a tenth of a second.
    """

    def __init__(self, send: Send, *, slots: int, batch_size: int | None) -> None:
        self._send_plan = send
        self._width = max(2, _PLANS_PER_SLOT * slots)
        self._fixed = batch_size
        self._size = batch_size or _FIRST_BATCH
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._out: dict[str, _Batch] = {}
        self._ready: dict[int, tuple[_Batch, RunResult]] = {}

    def run(self, items: Iterable[Any], *, ordered: bool) -> Iterator[Any]:
        """Outputs in order, or (index, output) as they come. Closing the iterator cancels what is still out."""
        source = iter(items)
        sent = due = 0
        try:
            while True:
                while len(self._out) + len(self._ready) < self._width and (
                    part := list(itertools.islice(source, self._size))
                ):
                    self._send(sent, part)
                    sent += len(part)
                if not self._out and not self._ready:
                    return
                while due not in self._ready if ordered else not self._ready:
                    self._collect()
                batch_done, result = self._ready.pop(due if ordered else next(iter(self._ready)))
                due += batch_done.size
                outputs = enumerate(result.output, batch_done.first)
                yield from (output for _, output in outputs) if ordered else outputs
        finally:
            for batch in self._out.values():
                batch.handle.cancel("its map was given up")

    def _send(self, first: int, batch: list[Any]) -> None:
        handle = self._send_plan(batch, self._ended.put)
        self._out[handle.plan_id] = _Batch(first, len(batch), handle)

    def _collect(self) -> None:
        """Wait for one more batch to end."""
        try:
            plan_id = self._ended.get(timeout=_LOOK_EVERY_S)
        except queue.Empty:
            # The word of it may have been lost with a connection: ask for the oldest.
            plan_id, batch = next(iter(self._out.items()))
            if not batch.handle.done():
                return
        if plan_id not in self._out:
            return  # told twice: by its worker, and by the record
        batch = self._out[plan_id]
        result = batch.handle.result()
        del self._out[plan_id]
        self._ready[batch.first] = batch, result
        if self._fixed is None and batch.size == self._size:
            self._size = next_batch_size(batch.size, result.duration.total_seconds() * 1000)
