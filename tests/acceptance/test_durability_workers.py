"""Workers that die or are paused in the middle of a plan: another one finishes it, once."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from somatize_worker import Coordinator, PlanFailed
from somatize_worker.protocol import WorkerId
from somatize_worker.settings import Settings
from tests.acceptance.conftest import MakeCluster
from tests.support.cluster import short, wait_gone
from tests.support.plans import Dies, Learns, Note, Waits, counts, runs
from tests.support.server import poll


@pytest.mark.slow
def test_a_killed_worker_is_replaced_within_twenty_seconds(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 2}, settings=Settings())  # the default lease
    c = cluster.coordinator()
    notes = tmp_path / "notes"
    plan = (
        Note(notes, "first").named("first")
        >> Learns(notes, "learns").named("learns")
        >> Note(notes, "long", 1.5).named("long")
        >> Waits(notes, tmp_path / "gate").named("waits")
        >> Note(notes, "last").named("last")
    )
    run = c.fit(plan, 1.0)
    poll(lambda: counts(notes).get("waits"), timeout_s=30, what="the last node but one has started")
    time.sleep(0.3)  # journal entries are on their way for some 40 ms
    _, host, worker = runs(notes)[-1]
    cluster.kill(cluster.worker(worker))
    killed = time.monotonic()
    (tmp_path / "gate").touch()
    result = run.result(timeout=60)
    took_s = time.monotonic() - killed
    assert took_s < 20
    assert result.output == 6.0  # (1 + 1) plus the sum learned from it, + 1, + 1
    assert result.states == {"learns": {"sum": 2.0}}
    assert result.worker_id != cluster.worker(worker).worker_id
    assert counts(notes) == {"first": 1, "learns": 1, "long": 1, "waits": 2, "last": 1}
    wait_gone(host)
    record = run.record
    assert (record.state, record.epoch, record.deaths) == ("succeeded", 2, 1)
    assert [entry["why"] for entry in record.history] == ["its worker died", record.cause]
    kinds = [event.event_type for event in run.events()]
    assert kinds.count("RunStarted") == kinds.count("RunCompleted") == 1
    assert kinds.index("RunStarted") == 0
    assert kinds[-1] == "RunCompleted"
    print(f"finished {took_s:.1f} s after the kill")


def test_every_worker_is_killed_and_new_ones_come_later(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 2}, slots=1)
    c = cluster.coordinator()
    notes = tmp_path / "notes"
    plan = Note(notes, "before").named("before") >> Waits(notes, tmp_path / "gate").named("waits")
    handles = [c.forward(plan, number) for number in range(5)]  # two run, three wait in the queue
    poll(lambda: counts(notes).get("waits") == 2, timeout_s=20, what="two plans run")
    time.sleep(0.3)
    for worker in cluster.workers:
        cluster.kill(worker)
    (tmp_path / "gate").touch()
    assert not any(handle.done() for handle in handles)
    cluster.add_worker()
    assert [handle.result(timeout=30).output for handle in handles] == [1, 2, 3, 4, 5]
    assert counts(notes)["before"] == 5


def test_a_worker_paused_beyond_its_lease_comes_too_late(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 2})
    c = cluster.coordinator()
    notes = tmp_path / "notes"
    run = c.forward(Waits(notes, tmp_path / "gate").named("waits") >> (lambda x: [x, "done"]), 1)
    poll(lambda: runs(notes), timeout_s=20)
    _, late_host, pid = runs(notes)[0]
    late = cluster.worker(pid)
    cluster.pause(late)
    poll(lambda: len(runs(notes)) == 2, timeout_s=20, what="another worker has taken over")
    cluster.resume(late)  # its host still waits: it is to be killed, and must not finish
    wait_gone(late_host)
    assert not run.done()
    (tmp_path / "gate").touch()
    result = run.result(timeout=20)
    assert result.output == [1, "done"]
    assert result.worker_id != late.worker_id
    record = run.record
    assert record.epoch == 2
    assert record.result is not None
    assert record.result["worker_id"] == result.worker_id
    assert (
        c.forward(lambda x: x, 5, on=WorkerId(late.worker_id), wait=True).result(timeout=20).output == 5
    )  # it works on


@pytest.mark.parametrize("also_host", [False, True], ids=["worker", "worker-and-host"])
def test_a_result_that_comes_too_late_is_refused(also_host: bool, make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 2})
    c = cluster.coordinator()
    notes = tmp_path / "notes"
    run = c.forward(Waits(notes, tmp_path / "gate").named("waits"), 1)
    poll(lambda: runs(notes), timeout_s=20)
    _, late_host, pid = runs(notes)[0]
    late = cluster.worker(pid)
    more = [late_host] if also_host else []
    cluster.pause(late, *more)
    poll(lambda: len(runs(notes)) == 2, timeout_s=20, what="another worker has taken over")
    (tmp_path / "gate").touch()  # a host that was not paused finishes now, too, and its worker will read that later
    result = run.result(timeout=20)
    before = run.record
    cluster.resume(late, *more)
    poll(lambda: c.forward(lambda x: x, 5, on=WorkerId(late.worker_id), wait=True).result(timeout=20), timeout_s=20)
    poll(lambda: not _active(c, late.worker_id), timeout_s=10, what="the late worker has given up")
    assert run.record == before
    assert before.epoch == 2
    assert before.result is not None
    assert before.result["worker_id"] == result.worker_id != late.worker_id
    kinds = [event.event_type for event in run.events()]
    assert kinds.count("RunStarted") == kinds.count("RunCompleted") == 1


def _ran_times(notes: Path, times: int) -> bool:
    return len(runs(notes)) == times


def test_a_plan_that_kills_its_worker_each_time(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 1}, settings=short(max_attempts=3))
    c = cluster.coordinator()
    notes = tmp_path / "notes"
    run = c.forward(Dies(notes, "worker").named("killer"), 1)
    for attempt in range(1, 4):
        poll(partial(_ran_times, notes, attempt), timeout_s=30, what=f"attempt {attempt}")
        cluster.workers[-1].process.wait(10)
        cluster.add_worker()
    with pytest.raises(PlanFailed) as caught:
        run.result(timeout=20)
    assert "3 times" in caught.value.message
    assert "max_attempts is 3" in caught.value.message
    assert "'killer'" in caught.value.message
    certificate = caught.value.details["certificate"]
    assert certificate["deaths"] == 3
    assert sum(entry["deaths"] for entry in certificate["workers"]) == 3
    assert certificate["node_id"] == "killer"
    assert certificate["last_lines"][-2:] == ["these are my last words", "written to the other stream"]
    assert counts(notes) == {"dies": 3}
    assert c.forward(lambda x: x + 1, 1).result(timeout=20).output == 2


def _active(c: Coordinator, worker_id: str) -> int:
    return next(worker.load.active_plans for worker in c.workers() if worker.worker_id == worker_id)
