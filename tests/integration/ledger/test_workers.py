"""The workers' registrations."""

from __future__ import annotations

from somatize_worker.ledger import Ledger, keys
from tests.support.server import poll


def test_workers_come_and_go(ledger: Ledger) -> None:
    ledger.register("b", {"queues": ["cpu", "b"], "load": {"active_plans": 1}}, 60_000)
    ledger.register("a", {"queues": ["cpu", "gpu"]}, 60_000)
    assert [worker["worker_id"] for worker in ledger.workers()] == ["a", "b"]
    assert ledger.workers()[1]["load"] == {"active_plans": 1}
    assert ledger.serving("cpu") == ["a", "b"]
    assert ledger.serving("gpu") == ["a"]
    assert ledger.serving("b") == ["b"]
    assert ledger.serving("a") == ["a"]
    assert ledger.serving("tpu") == []
    assert ledger.served_tags() == {"cpu": 2, "gpu": 1}
    ledger.unregister("a")
    assert ledger.served_tags() == {"cpu": 1}
    assert ledger.serving("gpu") == []


def test_a_silent_worker_is_forgotten_until_it_speaks_again(ledger: Ledger) -> None:
    ledger.register("quiet", {"queues": ["cpu"]}, 50)
    poll(lambda: ledger.workers() == [])
    assert ledger.client.exists(keys.WORKERS) == 0
    ledger.heartbeat("quiet", {"queues": ["cpu"]}, 60_000)
    assert ledger.serving("cpu") == ["quiet"]


def test_heartbeats_are_announced(ledger: Ledger) -> None:
    with ledger.client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(keys.WORKER_EVENTS)
        poll(lambda: ledger.client.pubsub_numsub(keys.WORKER_EVENTS)[0][1] == 1)
        ledger.heartbeat("w", {"queues": []}, 1000, announce=b'{"type":"Heartbeat"}')
        assert poll(lambda: pubsub.get_message(timeout=0.1))["data"] == b'{"type":"Heartbeat"}'


def test_the_depth_of_a_queue_counts_all_priorities(ledger: Ledger) -> None:
    assert ledger.queue_depth(["cpu", "gpu"]) == 0
    ledger.client.lpush("cpu", "m", "m")
    ledger.client.lpush("cpu\x06\x169", "m")
    ledger.client.lpush("other", "m")
    assert ledger.queue_depth(["cpu", "gpu"]) == 3
    assert ledger.queue_depth([]) == 0


def test_the_first_worker_names_the_store(ledger: Ledger) -> None:
    assert ledger.agree_store("file:///a") == "file:///a"
    assert ledger.agree_store("file:///b") == "file:///a"
    assert ledger.client.pttl(keys.STORE) > 0
