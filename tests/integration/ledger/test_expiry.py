"""Nothing that belongs to a finished plan stays for ever."""

from __future__ import annotations

from somatize_worker.ledger import Ledger, Sweeper, celery_results, connect, keys
from somatize_worker.settings import Settings
from tests.integration.ledger.conftest import Plans, event, failed, succeeded
from tests.support.server import poll


def live_through_everything(ledger: Ledger, new: Plans) -> None:
    """Plans that end in all ways, with all that can belong to them."""
    meta = celery_results.success("1")
    # a parent with a child that succeeds, one that fails, one that is cancelled while it is leased, one that waits
    parent = new("parent", reply="r", aliases=("alias",), timeout_ms=60_000)
    children = [new(f"child{n}", path=f"{n}", reply="r") for n in range(4)]
    grandchild = new("grandchild", path="0")
    ledger.submit(parent)
    ledger.claim(parent.plan_id, "w", events=[event()])
    ledger.watch(parent.plan_id, "another")
    ledger.report(parent.plan_id, parent.plan_id, 1, journal={"a": b"1"}, output=["line"], node="n")
    ledger.suspend(parent.plan_id, 1, children)
    for child in children:
        ledger.claim(child.plan_id, "w", events=[event()])
        ledger.report(child.plan_id, parent.plan_id, 1, journal={"b": b"1"}, output=["line"])
    ledger.suspend(children[3].plan_id, 1, [grandchild])
    ledger.finish(children[0].plan_id, 1, succeeded(), celery_meta=meta)
    ledger.finish(children[1].plan_id, 1, failed(), celery_meta=meta)
    ledger.claim(parent.plan_id, "w")
    ledger.finish(parent.plan_id, 2, failed(), events=[event()], output=["line"], celery_meta=meta)
    # a cancelled child's worker goes on for a while
    ledger.report(children[2].plan_id, parent.plan_id, 1, events=[event()], journal={"c": b"1"}, output=["late"])
    ledger.suspend(children[2].plan_id, 1, [new("never")], events=[event()], journal={"c": b"1"})
    # queued ones that are cancelled: with a delay, without, never seen
    for delay_ms in (0, 60_000):
        plan = new("queued", reply="r")
        ledger.submit(plan)
        ledger.claim(plan.plan_id, "w")
        ledger.release(plan.plan_id, 1, why="x", count_attempt=True, delay_ms=delay_ms)
        ledger.cancel(plan.plan_id, "stop")
    unseen = new("unseen", reply="r", aliases=("late",))
    ledger.cancel(unseen.plan_id, "stop")
    ledger.submit(unseen)
    # too late for everything
    for plan in (parent, *children, unseen):
        ledger.submit(plan)
        ledger.claim(plan.plan_id, "w", events=[event()])
        ledger.watch(plan.plan_id, "r")
        ledger.cancel(plan.plan_id, "late")
        for epoch in (1, 2, 3):
            ledger.report(plan.plan_id, parent.plan_id, epoch, events=[event()], journal={"x": b"1"}, output=["x"])
            ledger.finish(plan.plan_id, epoch, succeeded(), events=[event()], output=["x"], celery_meta=meta)
    # a job, a worker, a sweeper
    job = new("job", kind="job")
    ledger.submit(job)
    ledger.claim(job.plan_id, "w", events=[event()])
    ledger.finish(job.plan_id, 1, succeeded(), output=["x"], celery_meta=meta)
    ledger.register("w", {"queues": ["cpu"]}, 200)
    ledger.agree_store("file:///x")


def test_every_key_of_a_finished_plan_expires(ledger: Ledger, new: Plans) -> None:
    live_through_everything(ledger, new)
    Sweeper(ledger, ledger.settings).tick(0.0)
    states = {record.state for record in ledger.records(1000, children=True)}
    assert states == {"succeeded", "failed", "cancelled"}
    everlasting = {key.decode() for key in ledger.client.scan_iter() if ledger.client.ttl(key) == -1}
    assert everlasting <= set(keys.REGISTRIES)
    for registry in (keys.QUEUED, keys.DELAYED, keys.LEASES, keys.DEADLINES, keys.CANCELLING):
        assert ledger.client.exists(registry) == 0


def test_in_the_end_nothing_is_left(url: str, new: Plans) -> None:
    settings = Settings(result_ttl_s=0.3, lease_s=0.3)
    with connect(url) as client:
        ledger = Ledger(client, settings)
        live_through_everything(ledger, new)
        sweeper = Sweeper(ledger, settings)

        def all_gone() -> bool:
            sweeper.tick(0.0)
            ledger.workers()
            return {key.decode() for key in client.scan_iter()} <= {keys.SWEEPER, keys.STORE}

        poll(all_gone)
