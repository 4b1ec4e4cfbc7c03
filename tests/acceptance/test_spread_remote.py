"""Parts of a plan on other workers: anywhere in the tree, without holding slots, data moved as references."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from somatize_worker import Coordinator, Filter, PlanFailed, protocol
from somatize_worker.pipeline.steps import branch, fork, loop, pipeline
from tests.support.busy import Holds, Says, held, let_go, ran, wait_gone_soon
from tests.support.cluster import Cluster, folder_bytes, short
from tests.support.server import poll

TAGS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Four workers of one slot each, every one with a tag of its own, and the first with ``cpu``, too."""
    with Cluster({"cpu,a": 1, "b": 1, "c": 1, "d": 1}, slots=1, settings=short()) as running:
        yield running


class Adds(Filter):
    def __init__(self, amount: float) -> None:
        self.amount = amount

    def forward(self, x: Any, state: Any = None) -> Any:
        return x + self.amount


class Centers(Filter):
    """Learns the mean of its input."""

    def fit(self, x: Any, y: Any = None) -> Any:
        return {"mean": float(np.mean(x)), "rows": len(x), "targets": None if y is None else float(np.sum(y))}

    def forward(self, x: Any, state: Any) -> Any:
        return x - state["mean"]


def add(amount: float, name: str) -> Any:
    return Adds(amount).named(name)


def where(run: Any) -> dict[str, str]:
    """Node id to the first letter of the worker that completed it."""
    return {
        message.event.node_id: message.worker_id.partition("-")[0]
        for message in run.messages()
        if isinstance(message.event, protocol.NodeCompleted)
    }


# ── where it may stand ───────────────────────────────────────────────────────────────────────────────────────────────


def test_in_a_sequence(c: Coordinator) -> None:
    run = c.forward(add(1, "one") >> add(2, "two").on("b") >> add(3, "three") >> add(4, "four").on("c"), 0)
    result = run.result(timeout=20)
    assert result.output == 10
    assert where(run) == {"one": "cpu", "two": "b", "three": "cpu", "four": "c"}
    assert len(c.ledger.family(run.plan_id)) == 2


def test_in_parallel_branches(c: Coordinator) -> None:
    steps = fork(add(1, "one"), add(2, "two").on("b"), add(3, "three").on("c") >> add(30, "thirty"))
    run = c.forward(steps >> (lambda x: sum(x.values())), 0)
    assert run.result(timeout=20).output == 36
    assert {name: where(run)[name] for name in ("one", "two", "three", "thirty")} == {
        "one": "cpu", "two": "b", "three": "c", "thirty": "cpu",
    }  # fmt: skip


def test_in_a_loop(c: Coordinator) -> None:
    run = c.forward(loop(add(1, "here") >> add(10, "there").on("b"), max_iterations=5), 0)
    assert run.result(timeout=20).output == 55
    assert len(c.ledger.family(run.plan_id)) == 5
    completed = [e.node_id for e in run.events() if isinstance(e, protocol.NodeCompleted)]
    assert completed == ["here", "there"] * 5


def test_in_the_arms_of_a_branch(c: Coordinator) -> None:
    steps = branch(lambda x: x > 0, {True: add(1, "up").on("b"), False: add(-1, "down").on("c")})
    for x, output in ((5, 6), (-5, -6)):
        run = c.forward(steps, x)
        assert run.result(timeout=20).output == output
        assert len(c.ledger.family(run.plan_id)) == 1


def test_around_other_constructs_and_inside_each_other(c: Coordinator) -> None:
    inner = loop(add(1, "one") >> add(1, "two").on("c"), max_iterations=2).on("b")
    outer = fork(inner >> add(100, "hundred"), (add(5, "five") >> add(6, "six").on("d")).on("b"))
    run = c.forward(loop(outer >> (lambda x: sum(x.values())), max_iterations=2), 0)
    assert run.result(timeout=30).output == 345  # round one: 4 + 100 + 11, round two: 119 + 100 + 126


def test_five_deep_on_one_slot_each(c: Coordinator) -> None:
    step: Any = add(1, "deepest")
    for depth, tag in enumerate(["b", "c", "d", "b", "c"]):
        step = pipeline(add(1, f"down{depth}"), step.on(tag), add(1, f"up{depth}"))
    run = c.forward(step, 0)
    assert run.result(timeout=30).output == 11
    family = c.ledger.family(run.plan_id)
    assert len(family) == 5
    assert {record.root for record in family} == {run.plan_id}


def test_back_to_the_very_worker_that_waits(c: Coordinator) -> None:
    (home,) = [worker.worker_id for worker in c.workers() if "cpu" in worker.queues]
    step = add(1, "one") >> add(2, "two").on(protocol.WorkerId(home)) >> add(3, "three").on("a")
    assert c.forward(step, 0).result(timeout=20).output == 6


def test_fifty_parents_on_one_slot(c: Coordinator) -> None:
    step = add(1, "before") >> (add(2, "child").on("a") >> add(3, "other").on("b")) >> add(4, "after")
    runs = [c.forward(step, number) for number in range(50)]
    assert [run.result(timeout=60).output for run in runs] == [number + 10 for number in range(50)]


def test_a_waiting_parent_holds_no_slot(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(add(1, "before") >> Holds(tmp_path).on("b") >> add(1, "after"), 0)
    held(tmp_path)
    poll(lambda: run.state == "waiting", timeout_s=10)
    assert c.forward(add(1, "another"), 0).result(timeout=20).output == 1
    let_go(tmp_path)
    assert run.result(timeout=20).output == 2


def test_a_branch_elsewhere_runs_while_others_run_here(c: Coordinator, tmp_path: Path) -> None:
    here, there = Holds(tmp_path, "here"), Holds(tmp_path, "there")
    before = Says(tmp_path, "before").named("before")
    run = c.forward(before >> fork(here.named("h"), there.on("b").named("t")) >> (lambda v: sum(v.values())), 0)
    held(tmp_path, "here", "there")
    time.sleep(0.5)
    let_go(tmp_path)
    result = run.result(timeout=20)
    assert result.output == 2
    assert result.duration.total_seconds() >= 0.5  # from the first start, not from the last
    assert ran(tmp_path) == ["before"]
    assert [event.event_type for event in run.events()].count("RunStarted") == 1


def test_a_branch_elsewhere_goes_on_when_the_worker_of_the_others_is_killed(tmp_path: Path) -> None:
    with Cluster({"cpu": 2, "b": 1}, slots=1, settings=short()) as cluster, Coordinator(settings=cluster.settings) as c:
        here, there = Holds(tmp_path, "here"), Holds(tmp_path, "there")
        run = c.forward(fork(here.named("h"), there.on("b").named("t")), 0)
        held(tmp_path, "here", "there")
        holder = c.ledger.record(run.plan_id).worker
        (pid,) = [worker.pid for worker in c.workers() if worker.worker_id == holder]
        cluster.kill(cluster.worker(pid))
        poll(lambda: len(held(tmp_path)) == 3, timeout_s=30, what="the branch that ran here once more")
        let_go(tmp_path)
        assert run.result(timeout=20).output == {"h": 0, "t": 0}
        (part,) = c.ledger.family(run.plan_id)
        assert part.epoch == 1


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_large_arrays_move_as_references_each_written_once(cluster: Cluster, c: Coordinator) -> None:
    store = Path(cluster.settings.store_url.removeprefix("file://"))
    x = np.arange(500_000, dtype=np.float64)
    before, bytes_before = _large(store, x.nbytes), folder_bytes(store)
    steps = add(1, "one") >> fork(add(2, "b").on("b"), add(3, "c").on("c"), keep=pipeline(lambda v: v).on("b"))
    run = c.forward(steps >> (lambda v: v["b"] + v["c"] + v["keep"]), x)
    output = run.result(timeout=30).output
    np.testing.assert_array_equal(output, 3 * x + 8)
    assert not output.flags.writeable
    # the input, what goes to the children, what comes back from two of them (the third returns its input), the output
    assert len(_large(store, x.nbytes) - before) <= 5
    assert folder_bytes(store) - bytes_before < 5.5 * x.nbytes
    client = c.ledger.client
    sizes = [len(client.hget(f"soma:plan:{one.plan_id}", "spec") or b"") for one in c.ledger.family(run.plan_id)]
    assert max(sizes) < 20_000


def _large(folder: Path, size: int) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.stat().st_size >= size}


# ── fit ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_fit_returns_the_states_of_all(c: Coordinator) -> None:
    x, y = np.arange(10.0), np.ones(10)
    inner = Centers().named("second") >> Centers().named("third").on("c")
    steps = Centers().named("first") >> fork(inner.on("b"), Centers().named("fourth")) >> (lambda v: sum(v.values()))
    run = c.fit(steps, x, y)
    result = run.result(timeout=30)
    assert set(result.states) == {"first", "second", "third", "fourth"}
    assert result.states["first"]["mean"] == 4.5
    assert {state["targets"] for state in result.states.values()} == {10.0}
    np.testing.assert_allclose(result.output, 2 * (x - 4.5))
    again = c.forward(result.pipeline, x + 1).result(timeout=30)
    np.testing.assert_allclose(again.output, 2 * (x - 3.5))


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_events_come_under_one_id_in_order_with_the_worker_of_each(c: Coordinator) -> None:
    steps = add(1, "first") >> fork(loop(add(1, "round"), max_iterations=20).on("b"), add(3, "c").on("c"))
    run = c.forward(steps, 0)
    messages = list(run.messages())
    assert {message.plan_id for message in messages} == {run.plan_id}
    kinds = [message.event.event_type for message in messages]
    assert kinds[0] == "RunStarted"
    assert kinds[-1] == "RunCompleted"
    assert kinds.count("RunStarted") == kinds.count("RunCompleted") == 1
    by_node: dict[str, list[str]] = {}
    workers: dict[str, set[str]] = {}
    for message in messages[1:-1]:
        node_id = getattr(message.event, "node_id", "")
        by_node.setdefault(node_id, []).append(message.event.event_type)
        workers.setdefault(node_id, set()).add(message.worker_id.partition("-")[0])
    assert by_node["round"] == ["NodeStarted", "NodeCompleted"] * 20
    assert by_node["first"] == by_node["c"] == ["NodeStarted", "NodeCompleted"]
    assert workers == {"first": {"cpu"}, "round": {"b"}, "c": {"c"}}
    numbers = [number for number, _ in c.ledger.events(run.plan_id)]
    assert numbers == list(range(1, len(messages) + 1))


# ── failure ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def fails(x: Any) -> Any:
    raise ValueError(f"cannot use {x}")


def test_a_failed_child_names_its_node_and_takes_its_siblings_along(c: Coordinator, tmp_path: Path) -> None:
    gate = tmp_path / "fail"

    def waits_then_fails(x: Any) -> Any:
        import os
        import time

        while not os.path.exists(str(gate)):
            time.sleep(0.01)
        raise ValueError(f"cannot use {x}")

    bad = add(1, "before") >> pipeline(waits_then_fails, name="bad")
    run = c.forward(fork(bad.on("b"), Holds(tmp_path, children=True).on("c")) >> Says(tmp_path, "never"), 1)
    pids = held(tmp_path)
    gate.touch()
    with pytest.raises(PlanFailed, match="cannot use 2") as failure:
        run.result(timeout=20)
    wait_gone_soon(pids)
    details = failure.value.details
    assert details["node_id"] == "bad"
    assert details["error_type"] == "builtins.ValueError"
    assert "waits_then_fails" in details["traceback"]
    poll(lambda: all(c.plan(one.plan_id).done() for one in c.ledger.family(run.plan_id)), timeout_s=10)
    states = sorted(record.state for record in c.ledger.family(run.plan_id))
    assert states == ["cancelled", "failed"]
    failed: list[Any] = [message for message in run.messages() if isinstance(message.event, protocol.NodeFailed)]
    assert (failed[0].event.node_id, failed[0].worker_id[0]) == ("bad", "b")
    assert [event.event_type for event in run.events()].count("RunFailed") == 1
    assert ran(tmp_path) == []


def test_a_part_for_a_tag_that_nobody_serves(c: Coordinator) -> None:
    from somatize_worker import NoWorker

    with pytest.raises(NoWorker, match="'tpu'") as refusal:
        c.forward(add(1, "one") >> add(2, "two").on("tpu"), 0)
    assert refusal.value.details["served"] == ["a", "b", "c", "cpu", "d"]
