"""Messages that are lost, doubled, or taken by a worker that dies at once: every plan runs, once."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from celery.result import AsyncResult

from somatize_worker import Coordinator, protocol
from somatize_worker.messaging import make_app
from tests.acceptance.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.plans import Note, Waits, counts
from tests.support.server import poll


def take_message(cluster: Cluster, queue: str = "cpu") -> bytes:
    """Take the next message off a queue as a worker does that dies before it does anything else."""
    with redis.Redis.from_url(cluster.settings.redis_url) as client:
        taken = client.brpop([f"{queue}{suffix}" for suffix in ("", "\x06\x163", "\x06\x166", "\x06\x169")], timeout=5)
    assert taken is not None
    message: bytes = taken[1]
    return message


def test_a_message_that_dies_with_its_worker(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 1})
    worker = cluster.workers[0]
    c = cluster.coordinator()
    notes = tmp_path / "notes"
    c.forward(lambda x: x, 0).result(timeout=20)
    cluster.pause(worker)  # most times the server gives it the message: taken, and never read
    first = c.forward(Note(notes, "first"), 1)
    if _queued(cluster):
        take_message(cluster)
    second = c.forward(Note(notes, "second"), 2)
    take_message(cluster)
    assert not _queued(cluster)
    cluster.kill(worker)
    cluster.add_worker()
    assert first.result(timeout=20).output == 2
    assert second.result(timeout=20).output == 3
    assert counts(notes) == {"first": 1, "second": 1}


def test_the_same_message_ten_times(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 2})
    c = cluster.coordinator()
    notes = tmp_path / "notes"
    for worker in cluster.workers:
        cluster.pause(worker)
    time.sleep(0.1)
    slow = c.forward(Waits(notes, tmp_path / "gate"), 1)
    quick = c.forward(Note(notes, "quick"), 2)
    app = make_app(cluster.settings)
    for _ in range(10):
        for handle in (slow, quick):
            app.send_task("somatize.assign_plan", args=[handle.plan_id], task_id=handle.plan_id, queue="cpu")
    for worker in cluster.workers:
        cluster.resume(worker)
    assert quick.result(timeout=20).output == 3
    for _ in range(10):  # and again while it runs, and after the end
        for handle in (slow, quick):
            app.send_task("somatize.assign_plan", args=[handle.plan_id], task_id=handle.plan_id, queue="cpu")
    poll(lambda: _queued(cluster) == 0, timeout_s=20)
    (tmp_path / "gate").touch()
    assert slow.result(timeout=20).output == 1
    assert counts(notes) == {"waits": 1, "quick": 1}
    assert [slow.record.epoch, quick.record.epoch] == [1, 1]
    app.close()


def test_one_whole_protocol_message_ten_times(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 2})
    notes = tmp_path / "notes"
    message = protocol_message(cluster.coordinator(), Note(notes, "foreign", 0.2), 1.0, "foreign-plan")
    foreign = Celery(broker=cluster.settings.redis_url, backend=cluster.settings.redis_url, set_as_current=False)
    sent = [foreign.send_task("somatize.assign_plan", [message], queue="cpu") for _ in range(10)]
    results = [_result(handle) for handle in sent]
    assert counts(notes) == {"foreign": 1}
    assert all(result == results[0] for result in results)
    assert results[0]["plan_id"] == "foreign-plan"
    foreign.close()


def test_a_whole_message_that_its_worker_took_to_the_grave(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """It is nowhere but in the list of unacknowledged messages, from which a live worker takes it after a while."""
    cluster = make_cluster({"cpu": 1})
    notes = tmp_path / "notes"
    message = protocol_message(cluster.coordinator(), Note(notes, "foreign"), 1.0, "lost-plan")
    foreign = Celery(broker=cluster.settings.redis_url, backend=cluster.settings.redis_url, set_as_current=False)
    foreign.conf.broker_transport_options = {"visibility_timeout": 30}
    cluster.kill(cluster.workers[0])
    sent = foreign.send_task("somatize.assign_plan", [message], queue="cpu")
    _take_as_celery_does(cluster, taken_s_ago=26)
    started = time.monotonic()
    cluster.add_worker()
    assert _result(sent)["plan_id"] == "lost-plan"
    print(f"redelivered {26 + time.monotonic() - started:.1f} s after it was taken")
    assert counts(notes) == {"foreign": 1}
    with redis.Redis.from_url(cluster.settings.redis_url) as client:
        poll(lambda: not client.exists("unacked", "unacked_index"), timeout_s=5, what="all is acknowledged")
    foreign.close()


def protocol_message(c: Coordinator, step: Any, x: float, plan_id: str) -> dict[str, Any]:
    """An ``AssignPlan`` message as a program without this package would write it: JSON."""
    plan = protocol.spec_to_plan(c.compile(step).spec(plan_id=plan_id, mode="forward", input=x, default_tag="cpu"))
    text = protocol.to_json(protocol.AssignPlan(plan=plan))
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def _take_as_celery_does(cluster: Cluster, *, taken_s_ago: float) -> None:
    """What kombu does between BRPOP and the task's start (``kombu.transport.redis``: ``QoS.append``)."""
    raw = json.loads(take_message(cluster))
    tag = raw["properties"]["delivery_tag"]
    with redis.Redis.from_url(cluster.settings.redis_url) as client:
        client.zadd("unacked_index", {tag: time.time() - taken_s_ago})
        client.hset("unacked", tag, json.dumps([raw, "", "cpu"]))


def _queued(cluster: Cluster) -> int:
    with redis.Redis.from_url(cluster.settings.redis_url) as client:
        return sum(client.llen(f"cpu{suffix}") for suffix in ("", "\x06\x163", "\x06\x166", "\x06\x169"))


def _result(handle: AsyncResult[Any]) -> Any:
    return handle.get(timeout=40, disable_sync_subtasks=False)
