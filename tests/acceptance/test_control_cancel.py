"""Cancelling, wherever a plan is: the processes are gone within two seconds, and it never runs again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from somatize_worker import Coordinator, PlanCancelled
from somatize_worker.pipeline.steps import fork, loop
from tests.acceptance.conftest import MakeCluster
from tests.support.busy import Holds, Says, held, let_go, ran, wait_gone_soon
from tests.support.cluster import Cluster, short
from tests.support.server import poll


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two workers of one slot each."""
    with Cluster({"cpu": 1, "gpu": 1}, slots=1, settings=short()) as running:
        yield running


def test_a_queued_plan(c: Coordinator, tmp_path: Path) -> None:
    blocker = c.forward(Holds(tmp_path), 1)
    held(tmp_path)
    queued = c.forward(Says(tmp_path, "queued"), 1)
    queued.cancel("not needed")
    with pytest.raises(PlanCancelled, match="not needed"):
        queued.result(timeout=10)
    assert queued.record.cause == "not needed"
    let_go(tmp_path)
    assert blocker.result(timeout=10).output == 1
    assert c.forward(Says(tmp_path, "next"), 1).result(timeout=10).output == 2
    assert ran(tmp_path) == ["next"]


def test_a_running_plan_and_all_its_processes(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(Holds(tmp_path, children=True) >> Says(tmp_path, "after"), 1)
    pids = held(tmp_path)
    run.cancel("changed my mind")
    wait_gone_soon(pids)
    with pytest.raises(PlanCancelled, match="changed my mind"):
        run.result(timeout=10)
    assert ran(tmp_path) == []
    assert [event.event_type for event in run.events()][-1] == "RunFailed"
    assert c.forward(Says(tmp_path, "next"), 1).result(timeout=10).output == 2


def test_a_plan_with_branches_in_helper_processes(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(fork(a=Holds(tmp_path, "a", children=True), b=Holds(tmp_path, "b", children=True)), 1)
    pids = held(tmp_path, "a", "b")
    assert len(set(pids)) == 4
    run.cancel()
    wait_gone_soon(pids)
    with pytest.raises(PlanCancelled):
        run.result(timeout=10)


def test_a_plan_that_waits_for_children_of_children(c: Coordinator, tmp_path: Path) -> None:
    inner = Says(tmp_path, "inner") >> Holds(tmp_path, "grandchild", children=True).on("cpu")
    run = c.forward(Says(tmp_path, "outer") >> loop(inner, max_iterations=1).on("gpu") >> Says(tmp_path, "never"), 1)
    pids = held(tmp_path, "grandchild")
    poll(lambda: run.state == "waiting", timeout_s=10)
    family = c.ledger.family(run.plan_id)
    assert len(family) == 2
    run.cancel("all of it")
    wait_gone_soon(pids)
    with pytest.raises(PlanCancelled, match="all of it"):
        run.result(timeout=10)
    poll(lambda: all(c.plan(one.plan_id).done() for one in family), timeout_s=10)
    assert [c.plan(one.plan_id).state for one in family] == ["cancelled", "cancelled"]
    for tag in ("cpu", "gpu"):  # both slots are free
        assert c.forward(Says(tmp_path, "next"), 1, on=tag).result(timeout=10).output == 2
    assert sorted(ran(tmp_path)) == ["inner", "next", "next", "outer"]


def test_a_child_alone_fails_its_parent(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(Holds(tmp_path, "child").on("gpu") >> Says(tmp_path, "never"), 1)
    pids = held(tmp_path, "child")
    (child,) = c.ledger.family(run.plan_id)
    c.cancel_plan(child.plan_id, "only this part")
    wait_gone_soon(pids)
    with pytest.raises(Exception, match="only this part"):
        run.result(timeout=10)
    assert ran(tmp_path) == []


def test_a_plan_that_no_worker_has_seen(c: Coordinator, tmp_path: Path) -> None:
    c.cancel_plan("chosen-before", "too early")
    run = c.forward(Says(tmp_path, "never"), 1, plan_id="chosen-before")
    with pytest.raises(PlanCancelled, match="too early"):
        run.result(timeout=10)
    assert c.forward(Says(tmp_path, "next"), 1).result(timeout=10).output == 2
    assert ran(tmp_path) == ["next"]


def test_a_finished_plan_stays_as_it_is(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(Says(tmp_path, "done"), 1)
    assert run.result(timeout=10).output == 2
    run.cancel()
    assert c.plan(run.plan_id).result(timeout=10).output == 2


def test_a_worker_that_starts_later_does_not_run_what_was_cancelled(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 1}, slots=1)
    c = cluster.coordinator()
    running = c.forward(Holds(tmp_path, "running"), 1)
    pids = held(tmp_path, "running")
    queued = c.forward(Says(tmp_path, "queued"), 1)
    cluster.kill(cluster.workers[0])
    running.cancel("while nobody is there")
    queued.cancel("while nobody is there")
    wait_gone_soon(pids)
    cluster.add_worker()
    for run in (running, queued):
        with pytest.raises(PlanCancelled, match="while nobody is there"):
            run.result(timeout=20)
    assert c.forward(Says(tmp_path, "next"), 1).result(timeout=10).output == 2
    assert ran(tmp_path) == ["next"]
    assert len((tmp_path / "pids").read_text().splitlines()) == 1
