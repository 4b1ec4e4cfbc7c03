"""Run again with the journal of an earlier run, whenever that ended: the same output, and nothing done twice."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from somatize_worker.errors import Unrepresentable
from somatize_worker.hosts.inside.each import run_each
from somatize_worker.hosts.inside.failures import NodeFailed, Suspend
from somatize_worker.hosts.inside.interpreter import Interpreter
from somatize_worker.hosts.inside.journal import Journal
from somatize_worker.packing import pack, unpack
from tests.unit.inside.trees import expected, plans
from tests.unit.inside.world import Memory, Scaler, World, execute, loop, noting, parallel, remote, sequence, tells


def slow_clock() -> Callable[[], int]:
    """A clock by which every step takes a minute, so that journaling it is always cheap."""
    ticks = count(step=60_000_000_000)
    return lambda: next(ticks)


class Watched:
    """Runs a plan, taking what the journal has each time a node starts, as the flusher might."""

    def __init__(self, plan: Any, filters: dict[str, Any], journal: dict[str, bytes], **options: Any) -> None:
        self.entries = dict(journal)
        self.ran: list[str] = []
        self.before: list[dict[str, bytes]] = []
        wrapped = {node_id: self._watch(node_id, filter) for node_id, filter in filters.items()}
        self.world = World(plan, wrapped, journal=journal, clock=slow_clock(), live=True, **options)

    def _watch(self, node_id: str, filter: Any) -> Any:
        def started(x: Any) -> Any:
            self.entries.update(self.world.journal.take())
            self.before.append(dict(self.entries))
            self.ran.append(node_id)
            return x

        if not hasattr(filter, "fit"):
            return lambda x: filter(started(x))

        class Watching:
            _kind = "trainable"

            def fit(self, x, y=None):
                return filter.fit(started(x), y)

            def forward(self, x, state):
                return filter.forward(x, state)

        return Watching()


@settings(max_examples=150, deadline=None)
@given(plans())
def test_random_plans_put_out_what_the_protocol_says(case: tuple[Any, dict[str, Any]]):
    plan, filters = case
    assert World(plan, filters, live=True, events=False).run(1) == expected(plan, filters, 1)


@settings(max_examples=100, deadline=None)
@given(plans())
def test_after_a_crash_at_any_node_nothing_is_done_twice(case: tuple[Any, dict[str, Any]]):
    plan, filters = case
    whole = Watched(plan, filters, {})
    output = whole.world.run(1)
    for number, journal in enumerate(whole.before):
        again = Watched(plan, filters, journal)
        assert again.world.run(1) == output
        assert again.ran == whole.ran[number:]


def test_states_of_finished_nodes_come_from_the_journal():
    plan = sequence("s", parallel(sequence("t", "a"), "u"), "v")
    filters = {name: Scaler() for name in "stuv"} | {"a": lambda x: {"x": x}}
    filters["v"] = type("Join", (Scaler,), {"fit": lambda self, x, y=None: {"mean": 1.0}, "forward": lambda *_: 7})()
    x = np.array([1.0, 2.0, 6.0])
    whole = Watched(plan, filters, {}, fit=True)
    output = whole.world.run(x)
    states = whole.world.states()
    assert set(states) == set("stuv")
    for number, journal in enumerate(whole.before):
        again = Watched(plan, filters, journal, fit=True)
        assert again.world.run(x) == output
        assert again.ran == whole.ran[number:]
        assert again.world.states() == states


def test_a_nodes_state_after_a_loop_is_the_last_rounds():
    plan = sequence(loop("l", sequence("s", "a"), 12), "b")
    filters = {"s": Scaler(), "a": lambda x: x * 2 + 1, "b": lambda x: x}
    whole = Watched(plan, filters, {}, fit=True)
    output = whole.world.run(np.arange(3.0))
    for number, journal in enumerate(whole.before):
        again = Watched(plan, filters, journal, fit=True)
        np.testing.assert_array_equal(again.world.run(np.arange(3.0)), output)
        assert again.ran == whole.ran[number:]
        assert again.world.states() == whole.world.states()


def test_with_edges_each_output_is_kept():
    plan = sequence("a", parallel("b", sequence("c", "d")), "e", "f")
    edges = [["a", "b"], ["a", "c"], ["c", "d"], ["b", "e"], ["a", "f"], ["c", "f"], ["e", "f"]]
    filters = {name: tells(name) for name in "abcdef"}
    whole = Watched(plan, filters, {}, edges=edges)
    output = whole.world.run(1)
    a = ["a", 1]
    assert output == ["f", {"a": a, "c": ["c", a], "e": ["e", ["b", a]]}]
    for number, journal in enumerate(whole.before):
        again = Watched(plan, filters, journal, edges=edges)
        assert again.world.run(1) == output
        assert again.ran == whole.ran[number:]


def test_each_goes_on_after_the_last_item_that_is_done():
    whole = Watched(execute("a"), {"a": lambda x: x * 2}, {})
    assert run_each(whole.world.interpreter, whole.world.plan, [1, 2, 3, 4]) == [2, 4, 6, 8]
    again = Watched(execute("a"), {"a": lambda x: x * 2}, whole.before[2])
    assert run_each(again.world.interpreter, again.world.plan, [1, 2, 3, 4]) == [2, 4, 6, 8]
    assert len(again.ran) == 2


class Odd:
    """Something that is no plain data, and pickles."""

    def __init__(self, x: Any) -> None:
        self.x = x


def test_live_objects_are_kept_by_pickle_with_their_type():
    filters = {"a": lambda x: (x, Odd(x)), "b": lambda pair: (type(pair), type(pair[1]).__name__, pair[1].x)}
    whole = Watched(sequence("a", "b"), filters, {})
    output = whole.world.run(3)
    again = Watched(sequence("a", "b"), filters, whole.before[1])
    assert (again.world.run(3), again.ran) == (output, ["b"])


def test_what_cannot_be_pickled_is_computed_again():
    filters = {"a": lambda x: (i for i in range(x)), "b": sum, "c": lambda x: x + 1}
    whole = Watched(sequence("a", "b", "c"), filters, {})
    assert whole.world.run(4) == 7
    assert Watched(sequence("a", "b", "c"), filters, whole.before[1]).world.run(4) == 7
    last = Watched(sequence("a", "b", "c"), filters, whole.before[2])
    assert (last.world.run(4), last.ran) == (7, ["c"])


# ── parts that run elsewhere ─────────────────────────────────────────────────────────────────────────────────────


def finish(child: dict[str, Any], filters: dict[str, Any]) -> bytes:
    """The journal entry that the ledger makes when a child has finished."""
    output = World(child["plan"], filters).run(child["value"])
    return pack({"state": "succeeded", "output": output, "states": {child["node_id"]: 1}})


def run_with_children(plan: Any, filters: dict[str, Any], value: Any, **options: Any) -> tuple[Any, list[str], int]:
    """Run a plan to its end, its children one at a time; output, nodes that ran here, and how often it was run."""
    journal: dict[str, bytes] = {}
    ran: list[str] = []
    runs = 0
    while True:
        runs += 1
        watched = Watched(plan, filters, journal, **options)
        try:
            output = watched.world.run(value)
        except Suspend as suspended:
            ran += watched.ran
            journal.update(watched.entries)
            journal.update(watched.world.journal.take())
            child = suspended.children[0]
            journal[child["path"]] = finish(child, filters)
        else:
            return output, [*ran, *watched.ran], runs


PLUS = {name: tells(name) for name in "abcdefg"}


@pytest.mark.parametrize(
    "plan",
    [
        remote("a"),
        sequence("a", remote("b"), "c"),
        sequence("a", remote("b", sequence("b", "c")), remote("d"), "e"),
        parallel(sequence("a", remote("b"), "c"), remote("d"), "e"),
        sequence("a", parallel("b", sequence("c", remote("d"))), "e"),
        sequence("a", loop("l", sequence("b", remote("c")), 3), "d"),
        sequence("a", {"Branch": {"node_id": "g", "arms": [["x", sequence("b", remote("c"), "d")]]}}, "e"),
        sequence("a", {"Composite": {"node_ids": ["b", "c"]}}, remote("d")),
    ],
)
def test_a_plan_goes_on_where_its_children_have_finished(plan: Any):
    here = World(local(plan), PLUS, live=True).run(1)
    output, ran, _ = run_with_children(plan, PLUS, 1)
    assert output == here
    executed: list[str] = []
    World(without_remote_nodes(plan), {name: noting(executed, name, PLUS[name]) for name in PLUS}, live=True).run(1)
    assert sorted(ran) == sorted(executed)


def local(plan: Any) -> Any:
    """The same plan with nothing running elsewhere."""
    return _changed(plan, lambda body: body["plan"])


def without_remote_nodes(plan: Any) -> Any:
    return _changed(plan, lambda body: "Empty")


def _changed(plan: Any, change: Callable[[Any], Any]) -> Any:
    if plan == "Empty":
        return plan
    ((kind, body),) = plan.items()
    if kind == "Remote":
        return change(body)
    if kind in ("Sequence", "Parallel"):
        return {kind: [_changed(part, change) for part in body]}
    if kind == "Loop":
        return {kind: {**body, "body": _changed(body["body"], change)}}
    if kind == "Branch":
        return {kind: {**body, "arms": [[label, _changed(arm, change)] for label, arm in body["arms"]]}}
    return plan


def test_with_edges_steps_that_do_not_wait_run_at_once():
    plan = sequence("a", remote("b"), remote("c"), "d", "e", "f")
    edges = [["a", "b"], ["a", "c"], ["a", "d"], ["b", "e"], ["c", "e"], ["d", "f"], ["e", "f"]]
    first = Watched(plan, PLUS, {}, edges=edges)
    with pytest.raises(Suspend) as caught:
        first.world.run(1)
    assert (caught.value.goes_on, first.ran) == (True, ["a"])  # "d" has to wait until the others have started
    assert [(child["path"], child["value"]) for child in caught.value.children] == [("1", ["a", 1]), ("2", ["a", 1])]
    second = Watched(plan, PLUS, first.world.journal.take(), edges=edges, running=["1", "2"])
    with pytest.raises(Suspend) as caught:
        second.world.run(1)
    assert (caught.value.goes_on, second.ran) == (False, ["d"])
    assert caught.value.children == [{"path": "1"}, {"path": "2"}]
    output, ran, runs = run_with_children(plan, PLUS, 1, edges=edges)
    a = ["a", 1]
    assert output == ["f", {"d": ["d", a], "e": ["e", {"b": ["b", a], "c": ["c", a]}]}]
    assert (sorted(ran), runs) == (["a", "d", "e", "f"], 3)


def test_with_edges_a_chain_does_not_go_on_while_it_waits():
    world = World(sequence("a", remote("b"), "c"), PLUS, edges=[["a", "b"], ["b", "c"]])
    with pytest.raises(Suspend) as caught:
        world.run(1)
    assert not caught.value.goes_on


def test_spread_branches_are_children_without_a_target():
    plan = sequence("a", parallel(sequence("b", "c"), "d"), "e")
    world = World(plan, PLUS, spread=True)
    with pytest.raises(Suspend) as caught:
        world.run(1)
    assert [
        (child["path"], child["node_id"], child["target"], child["node_ids"]) for child in caught.value.children
    ] == [
        ("1.0", "c", None, ["b", "c"]),
        ("1.1", "d", None, ["d"]),
    ]
    output, ran, _ = run_with_children(plan, PLUS, 1, spread=True)
    assert output == ["e", {"c": ["c", ["b", ["a", 1]]], "d": ["d", ["a", 1]]}]
    assert ran == ["a", "e"]


def test_a_childs_states_are_the_plans():
    _, _, _ = run_with_children(sequence("a", remote("b")), PLUS, 1)
    world = World(remote("b"), {}, journal={"root": pack({"state": "succeeded", "output": 1, "states": {"b": [2]}})})
    assert (world.run(0), world.states()) == (1, {"b": [2]})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"state": "failed", "error": "node 'b': ValueError: no", "error_type": "builtins.ValueError"}, "no"),
        ({"state": "cancelled", "error": "cancelled by user"}, "cancelled by user"),
    ],
)
def test_a_childs_failure_is_the_plans(entry: dict[str, Any], message: str):
    world = World(sequence("a", remote("b")), PLUS, journal={"0": pack({"output": 1}), "1": pack(entry)})
    with pytest.raises(NodeFailed, match=message):
        world.run(0)


def test_what_feeds_a_child_must_be_able_to_leave():
    filters = {"a": lambda x: (i for i in range(3)), "b": lambda x: x}
    with pytest.raises(Unrepresentable, match=r"node 'a' feeds a step that runs elsewhere.*generator"):
        World(sequence("a", remote("b")), filters).run(1)


# ── what an entry may cost ───────────────────────────────────────────────────────────────────────────────────────


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def noted(output: Any, after_ms: float) -> dict[str, Any]:
    clock = Clock()
    journal = Journal({}, Memory(), clock)
    clock.now = int(after_ms * 1e6)
    journal.note("0", output, "")
    return {path: unpack(entry) for path, entry in journal.take().items()}


def test_small_values_are_always_noted_and_large_ones_when_that_takes_a_tenth_of_the_time():
    assert noted(5, 0) == {"0": {"output": 5, "states": {}}}
    assert noted(np.arange(10), 0) != {}
    megabyte = np.zeros(1 << 17)
    assert noted(megabyte, 15) == {}
    assert noted(megabyte, 25) != {}
    assert noted({"a": [1, 2]}, 0.1) == {}
    assert noted({"a": [1, 2]}, 1) != {}


def test_what_was_noted_is_a_copy():
    clock = Clock()
    journal = Journal({}, Memory(), clock)
    clock.now = 1_000_000_000
    values: list[Any] = [np.zeros(3), {"x": [1]}]
    for number, value in enumerate(values):
        journal.note(f"p{number}", value)
        clock.now += 1_000_000_000
    values[0][:] = 9
    values[1]["x"].append(2)
    kept = {path: unpack(entry)["output"] for path, entry in journal.take().items()}
    np.testing.assert_array_equal(kept["p0"], np.zeros(3))
    assert kept["p1"] == {"x": [1]}


def test_of_a_sequence_only_the_newest_entry_waits():
    world = World(sequence(*"abcd"), PLUS, clock=slow_clock())
    world.run(1)
    assert set(world.journal.take()) == {"3"}


def test_an_interpreter_without_a_runner_runs_branches_here():
    assert isinstance(World(parallel("a", "b"), PLUS).interpreter, Interpreter)
