"""Ray on this machine, with as many workers as cores."""

from __future__ import annotations

import os
import shutil
import tempfile
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

_STORE_BYTES = 1 << 30
_BATCH = 250


@contextmanager
def play(work: Work) -> Iterator[Jobs]:
    """A cluster of its own, without dashboard and usage statistics."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.util.multiprocessing import Pool

    folder = tempfile.mkdtemp(prefix="ray-")  # not /tmp/ray, where other sessions may be cleaned up
    ray.init(
        _temp_dir=folder,
        num_cpus=cores(),
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    remote_increment, remote_double = ray.remote(increment), ray.remote(double)
    # Its actors hold the cores that tasks need, so it exists only while it maps.
    light = {"num_cpus": 0}

    def round_trip() -> None:
        expect(ray.get(remote_increment.remote(1.0)), 2.0)

    def chained() -> None:
        last: Any = 0.0
        for _ in range(CHAIN):
            last = remote_increment.remote(last)
        expect(ray.get(last), CHAIN)

    def tensor() -> None:
        work.check_tensor(ray.get(remote_double.remote(ray.put(work.tensor))))

    def mapped() -> None:
        work.check_items(ray.get([remote_increment.remote(item) for item in work.items]))

    def mapped_in_batches() -> None:
        work.check_items(pool.map(increment, work.items, chunksize=_BATCH))

    try:
        pool = Pool(cores(), ray_remote_args=light)
        yield {
            ROUND_TRIP: round_trip,
            CHAINED: chained,
            TENSOR: tensor,
            MAPPED: mapped,
            MAPPED_IN_BATCHES: mapped_in_batches,
        }
        pool.terminate()
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
