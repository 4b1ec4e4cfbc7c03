"""Plans that wait for plans: suspending, waking, races, cancellation of whole trees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from somatize_worker.errors import PlanConflict
from somatize_worker.ledger import Claim, Ledger, Submission, keys, scripts
from somatize_worker.packing import unpack
from tests.integration.ledger.conftest import Plans, cancelled, event, failed, succeeded
from tests.support.server import poll

Leased = Callable[..., Claim]


def claim(ledger: Ledger, plan: Submission | str, worker: str = "w2") -> Claim:
    taken = ledger.claim(plan if isinstance(plan, str) else plan.plan_id, worker)
    assert taken is not None
    return taken


def journal(ledger: Ledger, plan_id: str) -> dict[str, object]:
    values = ledger.command("HGETALL", keys.journal(plan_id))
    return {path.decode(): unpack(packed) for path, packed in values.items()}


def state(ledger: Ledger, plan: Submission | str) -> str:
    return ledger.record(plan if isinstance(plan, str) else plan.plan_id).state


def test_the_last_child_wakes_the_parent(ledger: Ledger, leased: Leased, new: Plans) -> None:
    parent = leased()
    children = [new("child", queue="gpu", path=f"0/{n}") for n in range(3)]
    suspended = ledger.suspend(parent.plan_id, 1, children)
    assert [(wake.plan_id, wake.queue) for wake in suspended.wake] == [(child.plan_id, "gpu") for child in children]
    record = ledger.record(parent.plan_id)
    assert (record.state, record.worker) == ("waiting", "")
    first = claim(ledger, children[0])
    assert (first.root, first.path) == (parent.plan_id, "0/0")
    assert ledger.record(first.plan_id).parent == parent.plan_id
    assert ledger.finish(first.plan_id, 1, succeeded(0)).wake == []
    claim(ledger, children[2])
    assert ledger.finish(children[2].plan_id, 1, succeeded(2)).wake == []
    assert ledger.claim(parent.plan_id, "w1") is None
    claim(ledger, children[1])
    (wake,) = ledger.finish(children[1].plan_id, 1, succeeded(1)).wake
    assert wake.plan_id == parent.plan_id
    again = claim(ledger, parent.plan_id)
    assert (again.epoch, again.attempts) == (2, 0)
    assert {path: unpack(packed) for path, packed in again.journal.items()} == {
        f"0/{n}": {"state": "succeeded", "output": n, "states": {}, "duration_ms": 1} for n in range(3)
    }
    assert {record.plan_id for record in ledger.family(parent.plan_id)} == {child.plan_id for child in children}
    assert [record.plan_id for record in ledger.records()] == [parent.plan_id]
    assert len(ledger.records(children=True)) == 4


def test_a_failed_child_wakes_the_parent_at_once_and_its_failure_is_journaled(
    ledger: Ledger, leased: Leased, new: Plans
) -> None:
    parent, bad, other, queued = leased(), new("bad", path="0"), new("other", path="1"), new("queued", path="2")
    ledger.suspend(parent.plan_id, 1, [bad, other, queued])
    claim(ledger, bad)
    claim(ledger, other)
    (wake,) = ledger.finish(bad.plan_id, 1, failed("broken")).wake
    assert wake.plan_id == parent.plan_id
    again = claim(ledger, parent.plan_id)
    assert unpack(again.journal["0"])["state"] == "failed"
    assert unpack(again.journal["0"])["error"] == "broken"
    assert state(ledger, other) == "leased"

    # The parent fails in its turn: what is left of its children is cancelled.
    assert ledger.finish(parent.plan_id, 2, failed("a child failed")).accepted
    assert state(ledger, queued) == "cancelled"
    assert ledger.renew("w2", [(other.plan_id, 1)]) == {other.plan_id: "cancel"}
    assert ledger.client.exists(keys.CANCELLING) == 0


def test_results_with_many_entries_are_journaled_with_their_state(ledger: Ledger, leased: Leased, new: Plans) -> None:
    from somatize_worker.ledger import Outcome
    from somatize_worker.packing import pack

    for size in (0, 1, 14, 15, 16, 300):
        parent, child = leased(), new("child", path="0")
        ledger.suspend(parent.plan_id, 1, [child])
        claim(ledger, child)
        result = {f"k{n}": n for n in range(size)}
        ledger.finish(child.plan_id, 1, Outcome("succeeded", pack(result)))
        assert journal(ledger, parent.plan_id)["0"] == {"state": "succeeded", **result}


def test_a_child_that_ends_while_the_parent_runs_again_is_not_waited_for(
    ledger: Ledger, leased: Leased, new: Plans
) -> None:
    parent, bad, slow = leased(), new("bad", path="0"), new("slow", path="1")
    ledger.suspend(parent.plan_id, 1, [bad, slow])
    for child in (bad, slow):
        claim(ledger, child)
    ledger.finish(bad.plan_id, 1, failed())
    claim(ledger, parent.plan_id)
    assert ledger.finish(slow.plan_id, 1, succeeded()).wake == []
    suspended = ledger.suspend(parent.plan_id, 2, [slow])
    assert suspended.accepted
    assert [wake.plan_id for wake in suspended.wake] == [parent.plan_id]
    assert state(ledger, parent.plan_id) == "queued"
    assert set(claim(ledger, parent.plan_id).journal) == {"0", "1"}


def test_a_child_that_failed_meanwhile_wakes_the_parent_again(ledger: Ledger, leased: Leased, new: Plans) -> None:
    parent, bad, slow = leased(), new("bad", path="0"), new("slow", path="1")
    ledger.suspend(parent.plan_id, 1, [slow])
    claim(ledger, slow)
    ledger.cancel(slow.plan_id, "x")
    ledger.finish(slow.plan_id, 1, cancelled())
    claim(ledger, parent.plan_id)
    suspended = ledger.suspend(parent.plan_id, 2, [bad, slow])
    assert [wake.plan_id for wake in suspended.wake] == [bad.plan_id, parent.plan_id]


def test_children_start_while_their_parent_goes_on(ledger: Ledger, leased: Leased, new: Plans) -> None:
    parent, quick, slow = leased(), new("quick", path="0"), new("slow", path="1")
    both = [quick, slow]
    for _ in range(2):  # the second time as after a lost reply
        started = ledger.suspend(parent.plan_id, 1, both, journal={"a": b"1"}, stay=True)
        assert (started.accepted, [wake.plan_id for wake in started.wake]) == (True, [one.plan_id for one in both])
    assert (state(ledger, parent.plan_id), state(ledger, quick)) == ("leased", "queued")
    holder = ledger.record(parent.plan_id).worker
    assert ledger.renew(holder, [(parent.plan_id, 1)]) == {parent.plan_id: "held"}
    for child in both:
        claim(ledger, child)
    assert ledger.finish(quick.plan_id, 1, succeeded()).wake == []
    waits = ledger.suspend(parent.plan_id, 1, [], running=[quick.plan_id, slow.plan_id])
    assert (waits.accepted, waits.wake) == (True, [])
    assert state(ledger, parent.plan_id) == "waiting"
    (wake,) = ledger.finish(slow.plan_id, 1, succeeded()).wake
    assert wake.plan_id == parent.plan_id
    assert set(claim(ledger, parent.plan_id).journal) == {"a", "0", "1"}


def test_a_parent_that_starts_again_is_told_which_parts_run(ledger: Ledger, leased: Leased, new: Plans) -> None:
    parent, quick, slow = leased(), new("quick", path="0"), new("slow", path="1")
    ledger.suspend(parent.plan_id, 1, [quick, slow], stay=True)
    claim(ledger, quick)
    ledger.finish(quick.plan_id, 1, succeeded())
    ledger.release(parent.plan_id, 1, why="its worker died", count_attempt=True)
    again = claim(ledger, parent.plan_id)
    assert (list(again.running), set(again.journal)) == (["1"], {"0"})
    # What it was given may differ this time, so it must not be asked for anew.
    assert ledger.suspend(parent.plan_id, 2, [], running=[slow.plan_id]).accepted
    assert state(ledger, parent.plan_id) == "waiting"


def test_a_child_that_failed_while_its_parent_went_on(ledger: Ledger, leased: Leased, new: Plans) -> None:
    parent, bad, slow = leased(), new("bad", path="0"), new("slow", path="1")
    ledger.suspend(parent.plan_id, 1, [bad, slow], stay=True)
    claim(ledger, bad)
    assert ledger.finish(bad.plan_id, 1, failed("broken")).wake == []
    waits = ledger.suspend(parent.plan_id, 1, [], running=[bad.plan_id, slow.plan_id])
    assert [wake.plan_id for wake in waits.wake] == [parent.plan_id]
    assert unpack(claim(ledger, parent.plan_id).journal["0"])["error"] == "broken"


def test_suspending_for_nothing_goes_on_at_once(ledger: Ledger, leased: Leased) -> None:
    parent = leased()
    (wake,) = ledger.suspend(parent.plan_id, 1, [], journal={"a": b"1"}, events=[event()], output=["line"]).wake
    assert wake.plan_id == parent.plan_id
    assert claim(ledger, parent.plan_id).journal == {"a": b"1"}
    assert len(ledger.events(parent.plan_id)) == 1
    assert ledger.output(parent.plan_id) == ["line"]


def test_asking_for_a_child_again_makes_no_second_one(ledger: Ledger, leased: Leased, new: Plans) -> None:
    parent, child = leased(), new("child", path="0")
    ledger.suspend(parent.plan_id, 1, [child])
    claim(ledger, child)
    ledger.release(child.plan_id, 1, why="x", count_attempt=True)
    # The parent is run again although its child has not ended (as after a failed sibling), and asks again.
    ledger.client.hset(keys.plan(parent.plan_id), "state", "queued")
    claim(ledger, parent.plan_id)
    suspended = ledger.suspend(parent.plan_id, 2, [child])
    assert (suspended.accepted, suspended.wake) == (True, [])
    record = ledger.record(child.plan_id)
    assert (record.state, record.epoch) == ("queued", 1)


def test_a_childs_id_with_other_content_changes_nothing(ledger: Ledger, leased: Leased, new: Plans) -> None:
    parent, taken, fresh = leased(), new("taken"), new("fresh")
    ledger.submit(taken)
    before = ledger.record(parent.plan_id)
    for child in (taken, replace(taken, digest="other")):
        with pytest.raises(PlanConflict):
            ledger.suspend(parent.plan_id, 1, [fresh, child], events=[event()], journal={"a": b"1"})
    assert ledger.record(parent.plan_id) == before
    assert ledger.family(parent.plan_id) == []
    assert journal(ledger, parent.plan_id) == {}


def test_a_child_cancelled_before_it_existed(ledger: Ledger, leased: Leased, new: Plans) -> None:
    parent, child = leased(), new("child", path="0")
    assert ledger.cancel(child.plan_id, "not wanted").state_before == "unseen"
    suspended = ledger.suspend(parent.plan_id, 1, [child])
    assert [wake.plan_id for wake in suspended.wake] == [parent.plan_id]
    assert unpack(claim(ledger, parent.plan_id).journal["0"])["state"] == "cancelled"


# ── cancellation ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancelling_what_is_queued(ledger: Ledger, new: Plans) -> None:
    plan = new(reply="channel")
    ledger.submit(plan)
    answer = ledger.cancel(plan.plan_id, "not wanted")
    assert (answer.state_before, answer.cancelled, answer.holders) == ("queued", [plan.plan_id], [])
    record = ledger.record(plan.plan_id)
    assert (record.state, record.cause) == ("cancelled", "not wanted")
    assert record.result == {"error": "not wanted", "error_type": "somatize_worker.errors.PlanCancelled"}
    assert ledger.claim(plan.plan_id, "w") is None
    assert "RunFailed" in ledger.events(plan.plan_id)[-1][1]
    assert ledger.cancel(plan.plan_id, "again").state_before == "cancelled"
    assert ledger.record(plan.plan_id) == record


def test_cancelling_what_is_leased_tells_its_worker(ledger: Ledger, leased: Leased) -> None:
    plan = leased(worker := "w-cancel-test")
    with ledger.client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(keys.control_channel(worker))
        poll(lambda: ledger.client.pubsub_numsub(keys.control_channel(worker))[0][1] == 1)
        answer = ledger.cancel(plan.plan_id, "stop")
        assert (answer.state_before, answer.holders, answer.cancelled) == ("leased", [(worker, plan.plan_id)], [])
        message = poll(lambda: pubsub.get_message(timeout=0.1))
    assert unpack(message["data"]) == {"cancel": plan.plan_id}
    assert state(ledger, plan.plan_id) == "leased"
    assert ledger.renew(worker, [(plan.plan_id, 1)]) == {plan.plan_id: "cancel"}
    assert ledger.finish(plan.plan_id, 1, cancelled()).accepted
    assert state(ledger, plan.plan_id) == "cancelled"


@pytest.mark.parametrize("how", ["suspend", "release"])
def test_a_plan_being_cancelled_does_not_go_on(ledger: Ledger, leased: Leased, new: Plans, how: str) -> None:
    plan, child = leased(), new("child")
    ledger.cancel(plan.plan_id, "stop")
    if how == "suspend":
        suspended = ledger.suspend(plan.plan_id, 1, [child])
        assert (suspended.accepted, suspended.wake) == (False, [])
    else:
        assert ledger.release(plan.plan_id, 1, why="host died", count_attempt=True) == []
    record = ledger.record(plan.plan_id)
    assert (record.state, record.cause) == ("cancelled", "stop")
    assert ledger.family(plan.plan_id) == []
    assert "RunFailed" in ledger.events(plan.plan_id)[-1][1]


def test_a_tombstone_keeps_a_plan_from_running(ledger: Ledger, new: Plans) -> None:
    plan = new(summary="late", queue="gpu")
    answer = ledger.cancel(plan.plan_id, "changed my mind", unseen_queue="gpu")
    assert (answer.state_before, answer.cancelled) == ("unseen", [plan.plan_id])
    assert ledger.claim(plan.plan_id, "w") is None
    submitted = ledger.submit(plan)
    assert (submitted.created, submitted.state) == (False, "cancelled")
    record = ledger.watch(plan.plan_id, "channel")
    assert record is not None
    assert (record.state, record.summary, record.queue) == ("cancelled", "late", "gpu")
    assert ledger.submit(plan).state == "cancelled"
    with pytest.raises(PlanConflict):
        ledger.submit(replace(plan, digest="other"))


def tree(ledger: Ledger, new: Plans, root: Claim, fan: int) -> dict[str, list[Submission]]:
    """root waits for `fan` children; the first of them waits for `fan` more, one of which is leased."""
    middle = [new(f"middle{n}", path=f"{n}") for n in range(fan)]
    leaves = [new(f"leaf{n}", path=f"{n}") for n in range(fan)]
    ledger.suspend(root.plan_id, root.epoch, middle)
    claim(ledger, middle[0])
    ledger.suspend(middle[0].plan_id, 1, leaves)
    claim(ledger, leaves[-1], "w9")
    return {"middle": middle, "leaves": leaves}


def test_cancelling_a_tree(ledger: Ledger, leased: Leased, new: Plans) -> None:
    root = leased()
    plans = tree(ledger, new, root, 3)
    answer = ledger.cancel(root.plan_id, "stop")
    assert answer.state_before == "waiting"
    assert answer.wake == []
    assert answer.holders == [("w9", plans["leaves"][-1].plan_id)]
    others = [root.plan_id, *(plan.plan_id for plan in [*plans["middle"], *plans["leaves"][:-1]])]
    assert sorted(answer.cancelled) == sorted(others)
    assert {state(ledger, plan) for plan in others} == {"cancelled"}
    assert ledger.finish(plans["leaves"][-1].plan_id, 1, cancelled()).wake == []
    assert ledger.client.exists(keys.CANCELLING) == 0


def test_cancelling_a_part_wakes_what_waits_for_it(ledger: Ledger, leased: Leased, new: Plans) -> None:
    root = leased()
    plans = tree(ledger, new, root, 2)
    answer = ledger.cancel(plans["middle"][0].plan_id, "stop")
    assert [wake.plan_id for wake in answer.wake] == [root.plan_id]
    assert state(ledger, root.plan_id) == "queued"
    assert state(ledger, plans["middle"][1]) == "queued"
    assert state(ledger, plans["leaves"][0]) == "cancelled"


def cancel_step(ledger: Ledger, plan_id: str, budget: int) -> bool:
    """What Ledger.cancel does first, with a small budget, as if its process died after that."""
    from somatize_worker.ledger import cancelled_result, celery_results

    arguments = [plan_id, "stop", cancelled_result("stop"), celery_results.revoked("stop"), 60_000, budget, "", 100]
    return bool(ledger.run(scripts.load("cancel"), arguments)[1])


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("completed_by", ["repeat", "sweeper"])
def test_a_cancellation_that_was_cut_short_is_completed(
    ledger: Ledger, leased: Leased, new: Plans, budget: int, completed_by: str
) -> None:
    from somatize_worker.ledger import Sweeper

    root = leased()
    plans = tree(ledger, new, root, 4)
    assert cancel_step(ledger, root.plan_id, budget)
    everyone = [*plans["middle"], *plans["leaves"]]
    assert all(ledger.claim(plan.plan_id, "w") is None for plan in everyone)
    if completed_by == "repeat":
        ledger.cancel(root.plan_id, "stop")
    else:
        Sweeper(ledger, ledger.settings).tick(0.0)
    states = [state(ledger, plan) for plan in everyone]
    assert states == ["cancelled"] * 7 + ["leased"]
    assert ledger.renew("w9", [(everyone[-1].plan_id, 1)]) == {everyone[-1].plan_id: "cancel"}
    assert ledger.client.exists(keys.CANCELLING) == 0


def test_a_wide_tree_is_cancelled_in_steps(ledger: Ledger, leased: Leased, new: Plans) -> None:
    root = leased()
    children = [new(f"{n}", path=f"{n}") for n in range(2500)]
    ledger.suspend(root.plan_id, 1, children)
    answer = ledger.cancel(root.plan_id, "stop")
    assert len(answer.cancelled) == 2501
    assert {record.state for record in ledger.family(root.plan_id)} == {"cancelled"}
