"""Claims in two steps: sent by one thread, waited for by another, and taken once whatever happens in between."""

from __future__ import annotations

import threading

from somatize_worker.ledger import Claim, Ledger, connect
from somatize_worker.worker.early import EarlyClaims
from tests.integration.ledger.conftest import SETTINGS, Plans
from tests.support.server import Server, poll


def test_it_is_taken_before_anybody_waits(ledger: Ledger, new: Plans) -> None:
    plan = new()
    ledger.submit(plan)
    assert ledger.claim("none", "w1") is None  # from now on the server has the script
    reply = ledger.claim_soon(plan.plan_id, "w1")
    poll(lambda: ledger.state(plan.plan_id) == "leased")
    claims: list[Claim | None] = []
    thread = threading.Thread(target=lambda: claims.append(reply()))
    thread.start()
    thread.join()
    (claim,) = claims
    assert claim is not None
    assert (claim.plan_id, claim.epoch, claim.spec) == (plan.plan_id, 1, b"spec")
    assert ledger.claim(plan.plan_id, "w2") is None


def test_what_is_not_to_be_run_is_not_taken(ledger: Ledger, new: Plans) -> None:
    plan = new()
    assert ledger.claim_soon(plan.plan_id, "w1")() is None
    ledger.submit(plan)
    replies = [ledger.claim_soon(plan.plan_id, worker) for worker in ("w1", "w2")]
    claims = [reply() for reply in reversed(replies)]
    assert sorted(claim.epoch for claim in claims if claim is not None) == [1]


def test_connections_are_used_again(ledger: Ledger, new: Plans) -> None:
    for _ in range(3):
        plans = [new() for _ in range(4)]
        for plan in plans:
            ledger.submit(plan)
        claims = [reply() for reply in [ledger.claim_soon(plan.plan_id, "w1") for plan in plans]]
        assert [claim.plan_id for claim in claims if claim is not None] == [plan.plan_id for plan in plans]
        before = ledger.client.info("clients")["connected_clients"]
    assert ledger.client.info("clients")["connected_clients"] == before


def test_a_server_that_does_not_have_the_script(ledger: Ledger, new: Plans) -> None:
    plan = new()
    ledger.submit(plan)
    ledger.client.script_flush()
    claim = ledger.claim_soon(plan.plan_id, "w1")()
    assert claim is not None


def test_a_reply_that_is_lost(new: Plans) -> None:
    """The lease is taken, the connection breaks: asking again gets that same lease."""
    with Server() as server, connect(server.url) as client, server.client() as other:
        ledger = Ledger(client, SETTINGS)
        plan = new()
        ledger.submit(plan)
        assert ledger.claim("none", "w1") is None
        reply = ledger.claim_soon(plan.plan_id, "w1")
        poll(lambda: ledger.state(plan.plan_id) == "leased")
        other.client_kill_filter(_type="normal", skipme=True)
        claim = reply()
        assert claim is not None
        assert claim.epoch == 1
        assert ledger.record(plan.plan_id).epoch == 1


def test_a_connection_that_broke_while_idle(new: Plans) -> None:
    with Server() as server, connect(server.url) as client:
        ledger = Ledger(client, SETTINGS)
        first, second = new(), new()
        ledger.submit(first)
        ledger.submit(second)
        assert ledger.claim_soon(first.plan_id, "w1")() is not None
        server.restart()
        claim = ledger.claim_soon(second.plan_id, "w1")()
        assert claim is not None
        assert claim.epoch == 1


def test_claims_that_nobody_comes_for_are_given_back(ledger: Ledger, new: Plans) -> None:
    early = EarlyClaims(ledger, "w1")
    plans = [new() for _ in range(3)]
    for plan in plans:
        ledger.submit(plan)
        early.begin(plan.plan_id)
    wanted = early.take(plans[0].plan_id)
    assert wanted is not None
    assert wanted() is not None
    assert early.take(plans[0].plan_id) is None
    assert [wake.plan_id for wake in early.give_back()] == [plan.plan_id for plan in plans[1:]]
    records = [ledger.record(plan.plan_id) for plan in plans]
    assert [(record.state, record.attempts) for record in records] == [("leased", 0), ("queued", 0), ("queued", 0)]
