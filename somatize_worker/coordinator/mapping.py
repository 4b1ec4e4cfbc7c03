"""``map``: many small inputs as few plans, spread over all workers of a tag, a bounded number at a time."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from somatize_worker.coordinator.handles import PlanHandle, RunResult
from somatize_worker.pipeline import Target

if TYPE_CHECKING:
    from somatize_worker.coordinator.coordinator import Coordinator

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


class Mapper:
    """One call of ``map``."""

    def __init__(
        self, coordinator: Coordinator, pipeline: Any, *, on: Any, batch_size: int | None, options: Mapping[str, Any]
    ) -> None:
        self._coordinator = coordinator
        self._pipeline = pipeline
        self._on = on
        self._fixed = batch_size
        self._size = batch_size or _FIRST_BATCH
        self._options = dict(options)
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._out: dict[str, _Batch] = {}
        self._ready: dict[int, tuple[_Batch, RunResult]] = {}

    def run(self, items: Iterable[Any], *, ordered: bool) -> Iterator[Any]:
        """Outputs in order, or (index, output) as they come. Closing the iterator cancels what is still out."""
        source = iter(items)
        sent = due = 0
        width = self._width()
        try:
            while True:
                while len(self._out) + len(self._ready) < width and (
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

    def _width(self) -> int:
        queue_name = Target.of(self._on).name
        slots = sum(worker.slots for worker in self._coordinator.workers() if queue_name in worker.queues)
        return max(2, _PLANS_PER_SLOT * slots)

    def _send(self, first: int, batch: list[Any]) -> None:
        handle = self._coordinator.submit(
            self._pipeline, "forward", batch, on=self._on, then=self._ended.put, each=True, **self._options
        )
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
