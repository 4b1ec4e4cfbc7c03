"""``map``: many small inputs as few plans, spread over all workers of a tag, a bounded number at a time."""

from __future__ import annotations

import itertools
import logging
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from somatize_worker.coordinator.handles import PlanHandle, RunResult
from somatize_worker.errors import PlanFailed, ServerUnreachable

log = logging.getLogger("somatize.coordinator")

_LARGEST_BATCH = 10_000
_LARGEST_BATCH_BYTES = 16 << 20
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

    Batches begin with a single item, so that a few heavy ones are spread over all slots, and grow as long as they take
    less than a tenth of a second.

    Args:
        send: submits a plan for a list of items, and has the plan's id told when it has ended.
        slots: tells how many plans the workers run at once.
        batch_size: items for each plan; None: what takes about a tenth of a second.
    """

    def __init__(self, send: Send, *, slots: Callable[[], int], batch_size: int | None) -> None:
        self._send_plan = send
        self._slots = slots
        self._width, self._look_at = 2, 0.0
        self._fixed = batch_size
        self._size = batch_size or 1
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._out: dict[str, _Batch] = {}
        self._ready: dict[int, tuple[_Batch, RunResult | Exception]] = {}
        self._source_error: Exception | None = None

    def run(self, items: Iterable[Any], *, ordered: bool) -> Iterator[Any]:
        """Outputs in order, or (index, output) as they come. Closing the iterator cancels what is still out.

        Raises:
            PlanFailed: an item failed (``details["item"]`` is its index); in order, it is raised after the outputs of
                the batches before it.
            Exception: what the iterable itself raised, after the outputs of the items before.
        """
        source = iter(items)
        sent = due = 0
        try:
            while True:
                while self._has_room() and (part := self._pull(source)):
                    self._send(sent, part)
                    sent += len(part)
                if not self._out and not self._ready:
                    break
                while due not in self._ready if ordered else not self._ready:
                    self._collect()
                batch, result = self._ready.pop(due if ordered else next(iter(self._ready)))
                if isinstance(result, Exception):
                    raise result
                due += batch.size
                outputs = enumerate(result.output, batch.first)
                yield from (output for _, output in outputs) if ordered else outputs
        finally:
            self._give_up()
        if self._source_error is not None:
            raise self._source_error

    def _give_up(self) -> None:
        """Cancel what is still out: nobody is going to take it."""
        try:
            for batch in self._out.values():
                batch.handle.cancel("its map was given up")
        except ServerUnreachable as error:
            log.warning("%d plans of a map that was given up could not be cancelled: %s", len(self._out), error)

    def _has_room(self) -> bool:
        now = time.monotonic()
        if now >= self._look_at:
            self._width, self._look_at = max(2, _PLANS_PER_SLOT * self._slots()), now + _LOOK_EVERY_S
        return len(self._out) + len(self._ready) < self._width

    def _pull(self, source: Iterator[Any]) -> list[Any]:
        """The next batch; empty at the end, and once the iterable has failed."""
        part: list[Any] = []
        size = 0
        if self._source_error is not None:
            return part
        try:
            for item in itertools.islice(source, self._size):
                part.append(item)
                size += len(item) if isinstance(item, (bytes, str)) else getattr(item, "nbytes", 0)
                if size > _LARGEST_BATCH_BYTES:
                    break
        except Exception as error:  # the user's own iterable may raise anything: raised when its turn comes
            self._source_error = error
        return part

    def _send(self, first: int, batch: list[Any]) -> None:
        handle = self._send_plan(batch, self._ended.put)
        self._out[handle.plan_id] = _Batch(first, len(batch), handle)

    def _collect(self) -> None:
        """Wait for one more batch to end."""
        try:
            ended = [self._ended.get(timeout=_LOOK_EVERY_S)]
        except queue.Empty:  # the word of it may have been lost with a connection: ask
            ended = [plan_id for plan_id, batch in self._out.items() if batch.handle.done()]
        for plan_id in ended:
            if plan_id in self._out:  # not told twice: by its worker, and by the record
                self._take(self._out[plan_id])
                del self._out[plan_id]

    def _take(self, batch: _Batch) -> None:
        try:
            result = batch.handle.result()
            batch.handle.discard()  # nobody else knows of it
        except PlanFailed as failure:
            self._ready[batch.first] = batch, _named(failure, batch)
            return
        self._ready[batch.first] = batch, result
        if self._fixed is None and batch.size == self._size:
            self._size = next_batch_size(batch.size, result.duration.total_seconds() * 1000)


def _named(failure: PlanFailed, batch: _Batch) -> PlanFailed:
    """The failure of a batch as that of an item, counted over the whole map."""
    details = dict(failure.details)
    within = details.pop("item", None)
    if within is not None:
        index = batch.first + within
        return PlanFailed(f"item {index}: {failure.message.removeprefix(f'item {within}: ')}", item=index, **details)
    if "certificate" in details:
        last = batch.first + batch.size - 1
        where = f"item {last}" if batch.size == 1 else f"one of the items {batch.first} to {last}"
        return PlanFailed(f"{where}: {failure.message}", items=[batch.first, last], **details)
    return failure
