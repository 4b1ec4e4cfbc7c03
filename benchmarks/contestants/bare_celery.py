"""A bare Celery task, and a canvas of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import chain, group

from benchmarks import celery_app
from benchmarks.celery_app import QUEUES
from benchmarks.work import CHAIN, CHAINED, MAPPED, MAPPED_IN_BATCHES, ROUND_TRIP, TENSOR, Jobs, Work, expect

_WAIT_S = 120
_BATCH = 250


@contextmanager
def play(work: Work, pool: str) -> Iterator[Jobs]:
    """The worker with this pool runs already; see ``stage``."""
    increment = celery_app.increment.signature(options={"queue": QUEUES[pool]})

    def increment_of(*arguments: Any) -> Any:
        return increment.clone(arguments)

    def fetch(pending: Any) -> Any:
        result = pending.get(timeout=_WAIT_S)
        pending.forget()
        return result

    def round_trip() -> None:
        expect(celery_app.increment.apply_async((1.0,), queue=QUEUES[pool]).get(timeout=_WAIT_S), 2.0)

    def chained() -> None:
        steps = [increment_of(0.0), *(increment_of() for _ in range(CHAIN - 1))]
        expect(chain(*steps).apply_async().get(timeout=_WAIT_S), CHAIN)

    def tensor() -> None:
        work.check_tensor(fetch(celery_app.double.apply_async((work.tensor,), queue=QUEUES[pool])))

    def mapped() -> None:
        work.check_items(fetch(group(increment_of(item) for item in work.items).apply_async()))

    def mapped_in_batches() -> None:
        chunks = celery_app.increment.chunks(((item,) for item in work.items), _BATCH)
        parts = fetch(chunks.group().apply_async(queue=QUEUES[pool]))
        work.check_items([item for part in parts for item in part])

    jobs: Jobs = {ROUND_TRIP: round_trip, CHAINED: chained, MAPPED: mapped, MAPPED_IN_BATCHES: mapped_in_batches}
    if pool == "threads":
        jobs[TENSOR] = tensor
    yield jobs
    celery_app.app.close()
