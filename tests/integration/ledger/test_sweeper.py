"""The sweeper: dead workers, lost wake-ups, delays, the lock."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from somatize_worker.errors import PlanFailed, ServerUnreachable
from somatize_worker.ledger import Claim, Ledger, Submission, Sweeper, Wake, connect, keys
from tests.integration.ledger.conftest import LEASE_S, SETTINGS, Plans, event, server_ms, succeeded
from tests.support.server import Server, poll

Leased = Callable[..., Claim]
LIST = "cpu\x06\x163"
"""Where wake-ups of the default queue and priority lie."""


@pytest.fixture
def sweeper(ledger: Ledger) -> Sweeper:
    return Sweeper(ledger, SETTINGS, lost_after_ms=50)


@pytest.fixture
def now() -> Callable[[], float]:
    """A clock that moves by ten leases at each look."""
    ticks = itertools.count()
    return lambda: 100.0 + next(ticks) * 10 * LEASE_S


def is_over(ledger: Ledger, plan_id: str) -> bool:
    return server_ms(ledger) > ledger.record(plan_id).lease


def age(ledger: Ledger, ms: int) -> None:
    """Wait until a wake-up of now would be older than this."""
    start = server_ms(ledger)
    poll(lambda: server_ms(ledger) > start + ms)


def ids(wakes: list[Wake]) -> list[str]:
    return sorted(wake.plan_id for wake in wakes)


def test_a_lease_expires_after_two_looks(ledger: Ledger, sweeper: Sweeper, leased: Leased) -> None:
    claim = leased()
    assert sweeper.tick(0.0) == []
    poll(lambda: is_over(ledger, claim.plan_id))
    assert sweeper.tick(1.0) == []
    assert ledger.record(claim.plan_id).state == "leased"
    assert sweeper.tick(1.0 + LEASE_S / 10) == []
    (wake,) = sweeper.tick(1.0 + LEASE_S)
    assert wake.plan_id == claim.plan_id
    record = ledger.record(claim.plan_id)
    assert (record.state, record.attempts, record.deaths, record.cause) == ("queued", 1, 1, "its worker died")
    assert not ledger.finish(claim.plan_id, 1, succeeded()).accepted
    again = ledger.claim(claim.plan_id, "w2")
    assert again is not None
    assert ledger.finish(claim.plan_id, 2, succeeded()).accepted


def test_a_renewed_lease_lives(ledger: Ledger, sweeper: Sweeper, leased: Leased, now: Callable[[], float]) -> None:
    claim = leased()
    for _ in range(3):
        poll(lambda: is_over(ledger, claim.plan_id))
        assert sweeper.tick(now()) == []
        assert ledger.renew("w1", [(claim.plan_id, 1)]) == {claim.plan_id: "held"}
        assert sweeper.tick(now()) == []
    assert ledger.record(claim.plan_id).state == "leased"


def test_a_renewal_wins_over_a_look_that_came_before_it(ledger: Ledger, leased: Leased) -> None:
    claim = leased()
    seen = ledger.record(claim.plan_id).lease
    poll(lambda: ledger.renew("w1", [(claim.plan_id, 1)]) and ledger.record(claim.plan_id).lease > seen)
    assert ledger.release(claim.plan_id, 1, why="x", count_attempt=True, lease_seen=seen) == []
    assert not ledger.finish(claim.plan_id, 1, succeeded(), lease_seen=seen).accepted
    assert ledger.record(claim.plan_id).state == "leased"


def test_a_plan_that_kills_its_workers_fails_with_a_certificate(
    url: str, ledger: Ledger, sweeper: Sweeper, new: Plans, now: Callable[[], float]
) -> None:
    plan = new(max_attempts=3)
    ledger.submit(plan)
    wakes: list[Wake] = [plan.wake()]
    for epoch, worker in enumerate(["a", "b", "a"], start=1):
        assert ids(wakes) == [plan.plan_id]
        assert ledger.claim(plan.plan_id, worker) is not None
        ledger.report(plan.plan_id, plan.plan_id, epoch, node="boom", output=[f"line {epoch}"], events=[event()])
        poll(lambda: is_over(ledger, plan.plan_id))
        assert sweeper.tick(now()) == []
        wakes = sweeper.tick(now())
    assert wakes == []
    record = ledger.record(plan.plan_id)
    assert (record.state, record.attempts, record.deaths, record.epoch) == ("failed", 3, 3, 3)
    assert record.result is not None
    assert "3 times" in record.result["error"]
    assert "boom" in record.result["error"]
    assert record.result["certificate"] == {
        "reason": "worker died",
        "deaths": 3,
        "workers": [{"worker_id": "a", "deaths": 2}, {"worker_id": "b", "deaths": 1}],
        "node_id": "boom",
        "last_lines": ["line 1", "line 2", "line 3"],
    }
    assert len(record.history) == 3
    assert "RunFailed" in ledger.events(plan.plan_id)[-1][1]
    with pytest.raises(PlanFailed, match="died"):
        Celery("test", broker=url, backend=url, set_as_current=False).AsyncResult(plan.plan_id).get(timeout=5)


def test_a_cancelled_plan_whose_worker_died_ends_cancelled(
    url: str, ledger: Ledger, sweeper: Sweeper, leased: Leased, now: Callable[[], float]
) -> None:
    claim = leased()
    ledger.cancel(claim.plan_id, "stop")
    poll(lambda: is_over(ledger, claim.plan_id))
    assert sweeper.tick(now()) + sweeper.tick(now()) == []
    record = ledger.record(claim.plan_id)
    assert (record.state, record.cause, record.attempts) == ("cancelled", "stop", 0)
    with pytest.raises(TaskRevokedError):
        Celery("test", broker=url, backend=url, set_as_current=False).AsyncResult(claim.plan_id).get(timeout=5)


def test_a_dead_workers_child_wakes_its_parent(
    ledger: Ledger, sweeper: Sweeper, leased: Leased, new: Plans, now: Callable[[], float]
) -> None:
    parent, child = leased(), new("child", path="0", max_attempts=1)
    ledger.suspend(parent.plan_id, 1, [child])
    ledger.claim(child.plan_id, "w2")
    poll(lambda: is_over(ledger, child.plan_id))
    sweeper.tick(now())
    assert ids(sweeper.tick(now())) == [parent.plan_id]
    assert ledger.record(child.plan_id).state == "failed"


def test_a_delayed_plan_is_woken_when_due(ledger: Ledger, sweeper: Sweeper, leased: Leased) -> None:
    claim = leased()
    ledger.release(claim.plan_id, 1, why="again", count_attempt=True, delay_ms=150)
    assert sweeper.tick(0.0) == []
    wakes = poll(lambda: sweeper.tick(0.0))
    assert ids(wakes) == [claim.plan_id]
    assert ledger.claim(claim.plan_id, "w2") is not None
    assert ledger.client.exists(keys.DELAYED) == 0


def test_a_plan_whose_deadline_passes_while_it_waits_is_woken(
    ledger: Ledger, sweeper: Sweeper, leased: Leased, new: Plans
) -> None:
    parent = leased(timeout_ms=100)
    assert 0 < parent.remaining_ms <= 100
    ledger.suspend(parent.plan_id, 1, [new("child", path="0", queue="slow")])
    ledger.client.lpush("slow\x06\x163", "a message")
    wakes = poll(lambda: sweeper.tick(0.0))
    assert ids(wakes) == [parent.plan_id]
    again = ledger.claim(parent.plan_id, "w2")
    assert again is not None
    assert again.remaining_ms == 0
    assert ledger.client.exists(keys.DEADLINES) == 0


@pytest.mark.parametrize(
    "priority, suffix", [(0, ""), (2, ""), (3, "\x06\x163"), (5, "\x06\x163"), (6, "\x06\x166"), (9, "\x06\x169")]
)
def test_a_lost_wake_up_is_sent_again(ledger: Ledger, sweeper: Sweeper, new: Plans, priority: int, suffix: str) -> None:
    plan = new(queue="lost", priority=priority, summary="s")
    ledger.submit(plan)
    assert sweeper.tick(0.0) == []
    age(ledger, 60)
    ledger.client.lpush(f"lost{suffix}", "a message")
    assert sweeper.tick(0.0) == []
    ledger.client.delete(f"lost{suffix}")
    assert sweeper.tick(0.0) == [plan.wake()]
    assert sweeper.tick(0.0) == []
    age(ledger, 60)
    assert sweeper.tick(0.0) == [plan.wake()]


def test_a_wake_up_lost_from_a_queue_that_is_never_empty(ledger: Ledger, sweeper: Sweeper, new: Plans) -> None:
    lost, waits, later = new("lost"), new("waits"), new("later")
    ledger.submit(lost)
    age(ledger, 60)
    ledger.submit(waits)
    age(ledger, 60)
    ledger.submit(later)
    age(ledger, 60)

    def queue(*plans: Submission) -> None:
        ledger.client.delete(LIST)
        for plan in plans:
            ledger.client.lpush(LIST, json.dumps({"body": "x", "headers": {"lang": "py", "id": plan.plan_id}}))

    queue(lost, waits, later)
    assert sweeper.tick(0.0) == []
    queue(waits, later)
    assert ids(sweeper.tick(0.0)) == [lost.plan_id]
    assert sweeper.tick(0.0) == []  # woken just now: it may be at the other end of the list
    queue(later, lost)
    assert ids(sweeper.tick(0.0)) == [waits.plan_id]
    age(ledger, 60)
    queue(lost, later)  # when this message was sent is not known: the plan was woken twice
    assert sweeper.tick(0.0) == []


def test_many_lost_wake_ups_come_in_batches_past_a_busy_queue(ledger: Ledger, sweeper: Sweeper, new: Plans) -> None:
    busy = [new("busy", queue="busy") for _ in range(500)]
    lost = [new("lost", queue="lost") for _ in range(300)]
    for plan in [*busy, *lost]:
        ledger.submit(plan)
    ledger.client.lpush("busy\x06\x163", "a message")
    age(ledger, 60)
    woken: set[str] = set()
    for _ in range(8):
        wakes = sweeper.tick(0.0)
        assert len(wakes) <= 200
        woken.update(ids(wakes))
    assert woken == {plan.plan_id for plan in lost}


def test_one_sweeps_at_a_time_and_another_takes_over(ledger: Ledger, new: Plans) -> None:
    first, second = (Sweeper(ledger, SETTINGS, lost_after_ms=0) for _ in range(2))
    plan = new()
    ledger.submit(plan)
    age(ledger, 2)
    assert ids(first.tick(0.0)) == [plan.plan_id]
    age(ledger, 2)
    assert second.tick(0.0) == []
    second.resign()
    assert second.tick(0.0) == []
    first.resign()
    assert ids(second.tick(0.0)) == [plan.plan_id]
    # second dies: its lock expires.
    assert ids(poll(lambda: first.tick(0.0))) == [plan.plan_id]


def test_an_outage_kills_no_plan(new: Plans) -> None:
    with Server() as server, connect(server.url) as client:
        ledger = Ledger(client, SETTINGS)
        sweeper = Sweeper(ledger, SETTINGS)
        plan = new()
        ledger.submit(plan)
        ledger.claim(plan.plan_id, "w")
        poll(lambda: is_over(ledger, plan.plan_id))
        assert sweeper.tick(10.0) == []
        server.stop(kill=True)
        with pytest.raises(ServerUnreachable):
            sweeper.tick(11.0)
        server.start()
        assert sweeper.tick(11.0 + LEASE_S / 2) == []
        assert sweeper.tick(11.0 + LEASE_S) == []
        assert ledger.renew("w", [(plan.plan_id, 1)]) == {plan.plan_id: "held"}
        assert sweeper.tick(11.0 + 2 * LEASE_S) == []
        assert ledger.finish(plan.plan_id, 1, succeeded()).accepted


def test_a_sweeper_told_of_an_outage_waits(ledger: Ledger, leased: Leased) -> None:
    clock = [100.0]
    sweeper = Sweeper(ledger, SETTINGS, clock=lambda: clock[0])
    claim = leased()
    poll(lambda: is_over(ledger, claim.plan_id))
    assert sweeper.tick(100.0) == []
    sweeper.forget()
    assert sweeper.tick(100.0 + LEASE_S / 2) == []
    assert sweeper.tick(100.0 + 2 * LEASE_S) == []
    assert ids(sweeper.tick(100.0 + 4 * LEASE_S)) == [claim.plan_id]
