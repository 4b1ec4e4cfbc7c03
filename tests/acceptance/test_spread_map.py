"""``map``: many items in order or as they come, lazily, over all workers of a tag."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from somatize_worker import Coordinator, InvalidPipeline, PlanFailed
from tests.support.busy import Holds, held, wait_gone_soon
from tests.support.cluster import Cluster, short
from tests.support.server import poll


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two workers of one slot each."""
    with Cluster({"cpu": 2}, slots=1, settings=short()) as running:
        yield running


def double(x: Any) -> Any:
    return 2 * x


def slow_worker(x: float) -> int:
    time.sleep(x)
    return os.getppid()


def unfinished(c: Coordinator) -> int:
    return len(c.plans(states=["queued", "leased", "waiting"]))


@pytest.mark.parametrize("number", [0, 1, 7, 1000])
def test_outputs_come_in_order(c: Coordinator, number: int) -> None:
    assert list(c.map(double, range(number))) == [2 * item for item in range(number)]


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_batches_of_a_chosen_size(c: Coordinator, batch_size: int) -> None:
    before = len(c.plans(limit=1000))
    assert list(c.map(double, range(10), batch_size=batch_size)) == [2 * item for item in range(10)]
    assert len(c.plans(limit=1000)) - before == -(-10 // batch_size)


def test_as_completed_gives_each_index_once(c: Coordinator) -> None:
    pauses = [0.5, 0.0, 0.0, 0.0, 0.0, 0.0]
    pairs = list(c.map(slow_worker, pauses, batch_size=1, as_completed=True))
    assert sorted(index for index, _ in pairs) == list(range(6))
    assert pairs[0][0] != 0


def test_a_few_heavy_items_use_all_workers(c: Coordinator) -> None:
    list(c.map(double, range(4)))
    workers = list(c.map(slow_worker, [0.2] * 6))
    assert len(set(workers)) == 2
    assert min(workers.count(one) for one in set(workers)) >= 2


def test_an_endless_iterable_is_pulled_a_bounded_way_ahead(c: Coordinator) -> None:
    pulled = 0

    def endless() -> Iterator[int]:
        nonlocal pulled
        for number in itertools.count():
            pulled += 1
            yield number

    outputs = c.map(double, endless(), batch_size=5)
    assert pulled == 0
    for expected in range(100):
        assert next(outputs) == 2 * expected
        assert pulled <= expected + 5 * (2 * 2 + 1)  # two plans for each of two slots, and one that is handed out
    outputs.close()  # type: ignore[attr-defined]
    at_close = pulled
    poll(lambda: unfinished(c) == 0, timeout_s=10)
    assert pulled == at_close


def test_closing_cancels_what_is_out(c: Coordinator, tmp_path: Path) -> None:
    def holds_from_one(x: int) -> int:
        if x:
            holds.forward(x)
        return x

    holds = Holds(tmp_path, children=True)
    outputs = c.map(holds_from_one, itertools.count(), batch_size=1)
    assert next(outputs) == 0
    pids = held(tmp_path)
    outputs.close()  # type: ignore[attr-defined]
    wait_gone_soon(pids)
    poll(lambda: unfinished(c) == 0, timeout_s=10)


def test_numpy_arrays_as_items(c: Coordinator) -> None:
    items = [np.full((3, 3), number, dtype=np.float32) for number in range(20)]
    outputs = list(c.map(double, items))
    assert all(output.dtype == np.float32 for output in outputs)
    np.testing.assert_array_equal(np.stack(outputs), 2 * np.stack(items))
    rows = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(np.stack(list(c.map(double, rows))), 2 * rows)
    large = [np.full(100_000, number, dtype=np.float64) for number in range(5)]  # each beyond the inline limit
    np.testing.assert_array_equal(np.stack(list(c.map(double, large))), 2 * np.stack(large))


def test_large_items_are_sent_in_small_batches(c: Coordinator) -> None:
    pulled = 0

    def images() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal pulled
        for _ in range(40):
            pulled += 1
            yield np.zeros(1 << 20)  # 8 MiB

    shapes = c.map(np.shape, images(), batch_size=1000)
    assert list(next(shapes)) == [1 << 20]
    assert pulled <= 20
    assert len(list(shapes)) == 39


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def odd_one(x: int) -> int:
    if x == 57:
        raise ValueError("cannot take this one")
    return x


@pytest.mark.parametrize("batch_size", [None, 1, 10])
def test_a_failure_names_the_item_and_comes_in_its_turn(c: Coordinator, batch_size: int | None) -> None:
    outputs = []
    with pytest.raises(PlanFailed, match=r"^item 57: .*cannot take this one") as failure:
        for output in c.map(odd_one, range(200), batch_size=batch_size):
            outputs.append(output)
    assert failure.value.details["item"] == 57
    assert failure.value.details["node_id"] == "odd_one"
    assert outputs == list(range(len(outputs)))
    if batch_size is not None:
        assert len(outputs) == 57 // batch_size * batch_size
    poll(lambda: unfinished(c) == 0, timeout_s=10)


def dies_at_five(x: int) -> int:
    if x == 5:
        os._exit(3)
    return x


def test_an_item_that_kills_its_process(c: Coordinator) -> None:
    with pytest.raises(PlanFailed, match=r"^one of the items 4 to 5: .*exit.* 3") as failure:
        list(c.map(dies_at_five, range(10), batch_size=2))
    assert failure.value.details["items"] == [4, 5]


def test_what_the_iterable_raises_comes_after_the_items_before(c: Coordinator) -> None:
    def breaks() -> Iterator[int]:
        yield from range(10)
        raise KeyError("no more of these")

    outputs = []
    with pytest.raises(KeyError, match="no more of these"):
        for output in c.map(double, breaks(), batch_size=4):
            outputs.append(output)
    assert outputs == [2 * number for number in range(10)]


def test_bad_requests(c: Coordinator) -> None:
    from somatize_worker import NoWorker

    with pytest.raises(InvalidPipeline, match="batch_size"):
        c.map(double, [1], batch_size=0)
    with pytest.raises(NoWorker, match="tpu"):
        list(c.map(double, [1], on="tpu"))
    with pytest.raises(PlanFailed, match=r"output.*set"):
        list(c.map(lambda x: {x}, [1]))


# ── throughput ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ten_thousand_small_items_take_seconds(c: Coordinator) -> None:
    """Only a plain loop in this process is a fair measure: the rest is what ``map`` adds."""
    list(c.map(double, range(100)))
    started = time.perf_counter()
    assert sum(1 for _ in c.map(double, range(10_000))) == 10_000
    took_s = time.perf_counter() - started
    started = time.perf_counter()
    for number in range(10_000):
        double(number)
    loop_s = time.perf_counter() - started
    one_s = _round_trip_s(c)
    print(f"map: {10_000 / took_s:.0f} items/s; plain loop {10_000 / loop_s:.0f}; one by one {1 / one_s:.0f}")
    assert took_s < 10_000 * one_s / 20


def _round_trip_s(c: Coordinator) -> float:
    compiled = c.compile(double)
    times = []
    for _ in range(30):
        started = time.perf_counter()
        c.forward(compiled, 1).result(timeout=20)
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]
