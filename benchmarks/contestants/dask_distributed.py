"""Dask distributed: its LocalCluster, one worker process with one thread for each core."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.machine import cores
from benchmarks.work import (
    CHAIN,
    CHAINED,
    MAPPED,
    MAPPED_IN_BATCHES,
    ROUND_TRIP,
    TENSOR,
    Jobs,
    Work,
    double,
    expect,
    increment,
)

_BATCHES = 40


@contextmanager
def play(work: Work) -> Iterator[Jobs]:
    """A cluster of its own."""
    import dask.bag
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=cores(), threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=logging.ERROR
        ) as cluster,
        Client(cluster) as client,
    ):

        def round_trip() -> None:
            expect(client.submit(increment, 1.0, pure=False).result(), 2.0)

        def chained() -> None:
            last: Any = 0.0
            for _ in range(CHAIN):
                last = client.submit(increment, last, pure=False)
            expect(last.result(), CHAIN)

        def tensor() -> None:
            there = client.scatter(work.tensor, hash=False)
            work.check_tensor(client.submit(double, there, pure=False).result())

        def mapped() -> None:
            work.check_items(client.gather(client.map(increment, work.items, pure=False)))

        def mapped_in_batches() -> None:
            work.check_items(dask.bag.from_sequence(work.items, npartitions=_BATCHES).map(increment).compute())

        yield {
            ROUND_TRIP: round_trip,
            CHAINED: chained,
            TENSOR: tensor,
            MAPPED: mapped,
            MAPPED_IN_BATCHES: mapped_in_batches,
        }
