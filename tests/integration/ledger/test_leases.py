"""Submitting, claiming, renewing, reporting, finishing: one plan on its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from somatize_worker.errors import PlanConflict, PlanNotFound
from somatize_worker.ledger import Claim, Ledger, connect, keys
from somatize_worker.packing import unpack
from tests.integration.ledger.conftest import SETTINGS, Plans, event, failed, server_ms, succeeded
from tests.support.server import Server, poll

Leased = Callable[..., Claim]


def test_a_plan_from_submission_to_result(ledger: Ledger, new: Plans) -> None:
    plan = new(
        spec=b"\x00spec",
        queue="gpu",
        digest="abc",
        summary="a >> b",
        code="c0de",
        requirements=("numpy", "torch>=2"),
        priority=7,
        max_attempts=4,
        timeout_ms=5000,
        retry={"retries": 2, "on": ["ValueError"]},
        aliases=("task-1",),
    )
    assert ledger.submit(plan).created
    record = ledger.record(plan.plan_id)
    assert (record.state, record.epoch, record.attempts, record.digest) == ("queued", 0, 0, "abc")
    assert (record.root, record.aliases, record.created > 0, record.started) == (plan.plan_id, ("task-1",), True, 0)

    claim = ledger.claim(plan.plan_id, "w1")
    assert claim is not None
    assert (claim.epoch, claim.spec, claim.queue, claim.priority) == (1, b"\x00spec", "gpu", 7)
    assert (claim.summary, claim.code, claim.requirements) == ("a >> b", "c0de", ("numpy", "torch>=2"))
    assert (claim.max_attempts, claim.timeout_ms, claim.journal, claim.kind) == (4, 5000, {}, "plan")
    assert claim.retry == {"retries": 2, "on": ["ValueError"]}
    assert claim.root == plan.plan_id

    assert ledger.finish(plan.plan_id, 1, succeeded([1.5]), cause="done", node="b").accepted
    record = ledger.record(plan.plan_id)
    assert (record.state, record.worker, record.node, record.cause) == ("succeeded", "w1", "b", "done")
    assert record.result == {"output": [1.5], "states": {}, "duration_ms": 1}
    assert record.finished >= record.started >= record.created
    assert [(entry["worker"], entry["epoch"], entry["why"]) for entry in record.history] == [("w1", 1, "done")]


def test_the_same_plan_twice_is_one_plan(ledger: Ledger, new: Plans) -> None:
    plan = new()
    assert ledger.submit(plan).created
    again = ledger.submit(plan)
    assert (again.created, again.state) == (False, "queued")
    ledger.claim(plan.plan_id, "w")
    ledger.finish(plan.plan_id, 1, succeeded())
    assert ledger.submit(plan).state == "succeeded"


def test_the_same_id_with_other_content_is_refused(ledger: Ledger, new: Plans) -> None:
    plan = new()
    ledger.submit(plan)
    other = type(plan)(plan.plan_id, b"other", "cpu", digest="other")
    with pytest.raises(PlanConflict, match="taken by a plan with other content"):
        ledger.submit(other)
    assert ledger.record(plan.plan_id).spec == plan.spec


@pytest.mark.parametrize("repeat", range(5))
def test_ten_claims_at_once_are_one(url: str, ledger: Ledger, new: Plans, repeat: int) -> None:
    plan = new()
    ledger.submit(plan)
    barrier = threading.Barrier(10)

    def claim(number: int) -> Claim | None:
        with connect(url) as client:
            mine = Ledger(client, SETTINGS)
            barrier.wait()
            return mine.claim(plan.plan_id, f"w{number}")

    with ThreadPoolExecutor(10) as pool:
        claims = [claim for claim in pool.map(claim, range(10)) if claim is not None]
    assert len(claims) == 1
    assert ledger.record(plan.plan_id).epoch == 1


def test_what_is_not_queued_cannot_be_claimed(ledger: Ledger, leased: Leased) -> None:
    claim = leased()
    assert ledger.claim(claim.plan_id, "w2") is None
    ledger.finish(claim.plan_id, 1, succeeded())
    assert ledger.claim(claim.plan_id, "w2") is None
    assert ledger.claim("never-seen", "w2") is None


def test_an_old_epoch_is_refused_everywhere(ledger: Ledger, leased: Leased, new: Plans) -> None:
    plan_id = leased().plan_id
    ledger.release(plan_id, 1, why="handed back", count_attempt=False)
    claim = ledger.claim(plan_id, "w2")
    assert claim is not None
    assert claim.epoch == 2
    before = ledger.record(plan_id)

    assert not ledger.report(plan_id, plan_id, 1, events=[event()], journal={"a": b"1"}, output=["x"], node="n")
    assert not ledger.finish(plan_id, 1, succeeded(), events=[event()], output=["x"]).accepted
    assert not ledger.suspend(plan_id, 1, [new("child")], journal={"a": b"1"}).accepted
    assert ledger.release(plan_id, 1, why="late", count_attempt=True) == []
    assert ledger.renew("w1", [(plan_id, 1)]) == {plan_id: "lost"}

    assert ledger.record(plan_id) == before
    assert ledger.events(plan_id) == []
    assert ledger.output(plan_id) == []
    assert ledger.family(plan_id) == []
    assert ledger.finish(plan_id, 2, succeeded()).accepted


def test_a_finished_plan_takes_nothing_more(ledger: Ledger, leased: Leased, new: Plans) -> None:
    plan_id = leased().plan_id
    ledger.finish(plan_id, 1, succeeded("first"))
    before = ledger.record(plan_id)
    assert not ledger.finish(plan_id, 1, failed()).accepted
    assert not ledger.finish(plan_id, 1, succeeded("second")).accepted
    assert not ledger.report(plan_id, plan_id, 1, events=[event()])
    assert not ledger.suspend(plan_id, 1, [new("child")]).accepted
    assert ledger.release(plan_id, 1, why="late", count_attempt=True) == []
    assert ledger.record(plan_id) == before


def test_calls_repeated_after_a_lost_reply_count_once(ledger: Ledger, new: Plans) -> None:
    plan, child = new(), new("child", path="0")
    ledger.submit(plan)
    first, again = (ledger.claim(plan.plan_id, "w", events=[event(n=1)], nonce=b"same") for _ in range(2))
    assert first is not None
    assert again is not None
    assert replace(first, elapsed_ms=again.elapsed_ms) == again
    for _ in range(2):
        assert ledger.report(plan.plan_id, plan.plan_id, 1, events=[event(n=2)], output=["x"], nonce=b"same")
    for _ in range(2):
        suspended = ledger.suspend(plan.plan_id, 1, [child], events=[event(n=3)])
        assert suspended.accepted
        assert [wake.plan_id for wake in suspended.wake] == [child.plan_id]
    assert ledger.claim(child.plan_id, "w") is not None
    for _ in range(2):
        finished = ledger.finish(child.plan_id, 1, succeeded(), events=[event(n=4)])
        assert finished.accepted
        assert [wake.plan_id for wake in finished.wake] == [plan.plan_id]
    assert ledger.claim(plan.plan_id, "w") is not None
    for _ in range(2):
        wakes = ledger.release(plan.plan_id, 2, why="x", count_attempt=True)
        assert [wake.plan_id for wake in wakes] == [plan.plan_id]
    record = ledger.record(plan.plan_id)
    assert (record.state, record.epoch, record.attempts) == ("queued", 2, 1)
    assert [json.loads(text)["n"] for _, text in ledger.events(plan.plan_id)] == [1, 2, 3, 4]
    assert ledger.output(plan.plan_id) == ["x"]


def test_renewing_moves_the_lease_of_all(ledger: Ledger, leased: Leased) -> None:
    claims = [leased() for _ in range(3)]
    before = [ledger.record(claim.plan_id).lease for claim in claims]
    ledger.release(claims[2].plan_id, 1, why="handed back", count_attempt=False)

    def renewed() -> bool:
        holds = [(claim.plan_id, claim.epoch) for claim in claims]
        answers = ledger.renew("w1", holds)
        assert list(answers.values()) == ["held", "held", "lost"]
        return all(ledger.record(claims[n].plan_id).lease > before[n] for n in range(2))

    poll(renewed)
    assert ledger.renew("w1", []) == {}


def test_a_release_counts_only_what_was_the_plans_fault(ledger: Ledger, leased: Leased) -> None:
    claim = leased(priority=2, summary="s")
    (wake,) = ledger.release(claim.plan_id, 1, why="shutting down", count_attempt=False)
    assert (wake.plan_id, wake.queue, wake.priority, wake.summary) == (claim.plan_id, "cpu", 2, "s")
    record = ledger.record(claim.plan_id)
    assert (record.state, record.attempts, record.cause, record.worker) == ("queued", 0, "shutting down", "")
    again = ledger.claim(claim.plan_id, "w2")
    assert again is not None
    ledger.release(claim.plan_id, 2, why="host died", count_attempt=True)
    record = ledger.record(claim.plan_id)
    assert (record.attempts, record.deaths) == (1, 0)
    assert [(entry["worker"], entry["why"]) for entry in record.history] == [
        ("w1", "shutting down"),
        ("w2", "host died"),
    ]


def test_a_delayed_release_cannot_be_claimed_early(ledger: Ledger, leased: Leased) -> None:
    claim = leased()
    assert ledger.release(claim.plan_id, 1, why="again later", count_attempt=True, delay_ms=3_600_000) == []
    assert ledger.claim(claim.plan_id, "w2") is None
    record = ledger.record(claim.plan_id)
    assert (record.state, record.not_before > record.started) == ("queued", True)


def test_a_restart_replays_the_journal(ledger: Ledger, leased: Leased) -> None:
    plan_id = leased().plan_id
    assert ledger.report(plan_id, plan_id, 1, journal={"0/1": b"packed", "ü": b"\x00"}, node="n1")
    assert ledger.record(plan_id).node == "n1"
    ledger.release(plan_id, 1, why="host died", count_attempt=True)
    claim = ledger.claim(plan_id, "w2")
    assert claim is not None
    assert claim.journal == {"0/1": b"packed", "ü": b"\x00"}
    assert (claim.attempts, claim.deaths) == (1, 0)


def test_the_end_is_told_to_every_watcher(ledger: Ledger, new: Plans) -> None:
    plan = new()
    channels = [keys.reply_channel(f"{plan.plan_id}-{n}") for n in range(3)]
    with ledger.client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(*channels)
        poll(lambda: ledger.client.pubsub_numsub(channels[2])[0][1] == 1)
        ledger.submit(type(plan)(plan.plan_id, b"", "cpu", digest="d", reply=channels[0]))
        ledger.submit(type(plan)(plan.plan_id, b"", "cpu", digest="d", reply=channels[1]))
        assert ledger.watch(plan.plan_id, channels[2]) is None
        ledger.claim(plan.plan_id, "w")
        ledger.finish(plan.plan_id, 1, succeeded({"x": [1, 2]}))
        heard: dict[str, object] = {}
        while len(heard) < 3:
            message = poll(lambda: pubsub.get_message(timeout=0.1))
            heard[message["channel"].decode()] = unpack(message["data"])
    assert sorted(heard) == channels
    assert all(
        message == {"plan_id": plan.plan_id, "state": "succeeded", "result": unpack(succeeded({"x": [1, 2]}).result)}
        for message in heard.values()
    )
    record = ledger.watch(plan.plan_id, channels[0])
    assert record is not None
    assert record.state == "succeeded"


def test_unknown_plans(ledger: Ledger) -> None:
    with pytest.raises(PlanNotFound):
        ledger.record("nobody")
    with pytest.raises(PlanNotFound):
        ledger.watch("nobody", "channel")
    assert ledger.events("nobody") == []
    assert ledger.output("nobody") == []
    assert ledger.client.dbsize() == 0


def test_listing_is_newest_first(ledger: Ledger, new: Plans) -> None:
    plans = [new(f"{n}") for n in range(5)]
    for plan in plans:
        ledger.submit(plan)
        created = ledger.record(plan.plan_id).created
        poll(lambda created=created: server_ms(ledger) > created + 1)  # type: ignore[misc]
    ledger.claim(plans[1].plan_id, "w")
    newest = [plan.plan_id for plan in reversed(plans)]
    assert [record.plan_id for record in ledger.records()] == newest
    assert [record.plan_id for record in ledger.records(2)] == newest[:2]
    assert [record.plan_id for record in ledger.records(states={"leased"})] == [plans[1].plan_id]
    assert [record.worker for record in ledger.records(states=["leased"])] == ["w"]


def test_scripts_come_back_after_the_server_forgot_them(ledger: Ledger, leased: Leased) -> None:
    claim = leased()
    ledger.client.script_flush()
    assert ledger.report(claim.plan_id, claim.plan_id, 1, events=[event()])
    ledger.client.script_flush()
    assert ledger.finish(claim.plan_id, 1, succeeded()).accepted


def test_a_restarted_server_knows_everything(new: Plans) -> None:
    with Server() as server, connect(server.url) as client:
        ledger = Ledger(client, SETTINGS)
        parent, child, queued = new("parent"), new("child", path="0"), new("queued")
        for plan in (parent, queued):
            ledger.submit(plan)
        ledger.claim(parent.plan_id, "w", events=[event(n=1)])
        ledger.suspend(parent.plan_id, 1, [child], journal={"a": b"1"})
        ledger.claim(child.plan_id, "w")
        records = [ledger.record(plan.plan_id) for plan in (parent, child, queued)]

        server.restart(kill=True)

        assert [ledger.record(plan.plan_id) for plan in (parent, child, queued)] == records
        assert ledger.renew("w", [(child.plan_id, 1)]) == {child.plan_id: "held"}
        ledger.report(child.plan_id, parent.plan_id, 1, events=[event(n=2)])
        (wake,) = ledger.finish(child.plan_id, 1, succeeded(7)).wake
        assert wake.plan_id == parent.plan_id
        claim = ledger.claim(parent.plan_id, "w")
        assert claim is not None
        assert claim.journal["a"] == b"1"
        assert unpack(claim.journal["0"])["output"] == 7
        assert [seq for seq, _ in ledger.events(parent.plan_id)] == [1, 2]
