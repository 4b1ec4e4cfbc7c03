"""Every kind of plan, run without a process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from somatize_worker.errors import InvalidPipeline
from somatize_worker.hosts.inside.each import run_each
from somatize_worker.hosts.inside.failures import NodeFailed, Suspend
from somatize_worker.hosts.inside.rules import chosen_arm, ends_loop
from tests.unit.inside.world import (
    Memory,
    Scaler,
    World,
    branch,
    execute,
    loop,
    noting,
    parallel,
    remote,
    run,
    sequence,
)

ADD = {"a": lambda x: x + 1, "b": lambda x: x * 10, "c": lambda x: x - 3}


def test_empty_hands_its_input_through():
    assert run("Empty", {}, {"x": 1}) == {"x": 1}
    assert run(sequence("Empty", "a", "Empty"), ADD, 1) == 2


def test_a_sequence_hands_each_step_the_output_of_the_one_before():
    assert run(sequence("a", "b", "c"), ADD, 1) == 17


def test_a_parallel_maps_last_node_ids_to_outputs():
    assert run(parallel(sequence("a", "b"), "c"), ADD, 1) == {"b": 20, "c": -2}


def test_a_branch_without_nodes_is_named_by_its_index():
    assert run(parallel("a", "Empty"), ADD, 1) == {"a": 2, "1": 1}


def test_a_nested_parallel_is_named_by_its_last_branch():
    assert run(parallel("a", parallel("b", "c")), ADD, 1) == {"a": 2, "c": {"b": 10, "c": -2}}


def test_branches_that_cannot_be_told_apart_are_refused():
    with pytest.raises(InvalidPipeline, match="two branches .* 'a'"):
        run(parallel("a", sequence("b", "a")), ADD, 1)


def test_branches_cannot_change_each_others_input():
    def spoil(x):
        x += 1
        return x

    with pytest.raises(NodeFailed, match=r"node 'a': ValueError: .*read-only.*copy first"):
        run(sequence("make", parallel("a", "b")), {"make": lambda _: np.zeros(3), "a": spoil, "b": lambda x: x}, None)


def test_inputs_from_the_store_are_read_only_and_the_error_says_what_to_do():
    def spoil(x):
        x[0] = 1.0

    value = np.zeros(3)
    value.flags.writeable = False
    with pytest.raises(NodeFailed, match="copy first"):
        run(execute("a"), {"a": spoil}, value)


@pytest.mark.parametrize("end", [None, True, "done", "stop", {"done": True, "x": 1}, np.True_])
def test_a_loop_ends_with(end: Any):
    def count(x):
        return x + 1 if isinstance(x, int) and x < 5 else end

    assert ends_loop(run(loop("l", execute("count")), {"count": count}, 1))


@pytest.mark.parametrize("go_on", [False, 0, 1, "go", [], {"done": False}, {}, "", np.zeros(2)])
def test_a_loop_goes_on_after(go_on: Any):
    assert not ends_loop(go_on)


def test_a_loop_has_a_limit_of_100_or_its_own():
    plus = {"a": lambda x: x + 1}
    assert run(loop("l", execute("a")), plus, 0) == 100
    assert run(loop("l", execute("a"), 7), plus, 0) == 7
    assert run(loop("l", execute("a"), 0), plus, 5) == 5


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("left", 0), ("right", 1), ({"branch": "right"}, 1), (True, 2), ({"branch": False}, 3), ("nowhere", 4), (None, 4)],
)
def test_a_branch_reads_its_arm_from(choice: Any, expected: int):
    assert chosen_arm(choice, ["left", "right", "true", "false", "default"]) == expected


def test_without_the_arm_named_else_or_the_first_is_taken():
    assert chosen_arm("nowhere", ["left", "else"]) == 1
    assert chosen_arm(3, ["left", "right"]) == 0


def test_an_arm_receives_the_branch_nodes_own_input():
    filters = {"choose": lambda x: "big" if x > 10 else "small", "b": lambda x: x * 100, "s": lambda x: -x}
    plan = branch("choose", small=execute("s"), big=execute("b"))
    assert run(plan, filters, 20) == 2000
    assert run(plan, filters, 3) == -3


def test_a_branch_without_arms_is_refused():
    with pytest.raises(InvalidPipeline, match="has no arms"):
        run(branch("a"), ADD, 1)


def test_a_composite_passes_objects_as_they_are():
    class Tensor:
        def __init__(self, grads):
            self.grads = grads

    filters = {"a": lambda x: Tensor([x]), "b": lambda t: t, "c": lambda t: t.grads}
    assert run({"Composite": {"node_ids": ["a", "b", "c"]}}, filters, 4) == [4]


def test_a_composite_is_fitted_together_where_its_filters_can_be():
    class Part:
        _kind = "trainable"

        def __init__(self, name):
            self.name = name

        def fit(self, x, y=None):
            raise AssertionError("fitted alone")

        def fit_together(self, filters, x, y=None):
            return [f"{f.name} of {len(filters)} with {y}" for f in filters]

        def forward(self, x, state):
            return [*x, state]

    world = World({"Composite": {"node_ids": ["a", "b"]}}, {"a": Part("a"), "b": Part("b")}, fit=True, y=5)
    assert world.run([]) == ["a of 2 with 5", "b of 2 with 5"]
    assert world.states() == {"a": "a of 2 with 5", "b": "b of 2 with 5"}
    kinds = [(event["event_type"], event["node_id"]) for event in world.happened()]
    assert kinds == [("NodeStarted", "a"), ("NodeStarted", "b"), ("NodeCompleted", "a"), ("NodeCompleted", "b")]


def test_a_cached_step_loads_what_lies_under_its_key():
    memory = Memory()
    memory.keep(b"k" * 32, [1, 2])
    plan = {"Cached": {"node_id": "a", "key": list(b"k" * 32)}}
    world = World(plan, {}, memory=memory)
    assert world.run(None) == [1, 2]
    [event] = world.happened()
    assert (event["event_type"], event["tier"], event["key"]) == ("NodeCacheHit", "Local", list(b"k" * 32))


def test_a_cached_step_that_misses_names_its_node():
    with pytest.raises(NodeFailed, match=f"node 'a': no stored output under the key {(b'k' * 32).hex()}"):
        run({"Cached": {"node_id": "a", "key": list(b"k" * 32)}}, {}, None)


def test_a_stream_runs_chunk_by_chunk():
    seen = []

    def note(x):
        seen.append(len(x))
        return x * 2

    plan = {"Stream": {"node_ids": ["a", "b"], "chunk_size": 4}}
    world = World(plan, {"a": note, "b": lambda x: x + 1}, live=True)
    output = world.run(np.arange(10.0))
    np.testing.assert_array_equal(output, np.arange(10.0) * 2 + 1)
    assert seen == [4, 4, 2]
    kinds = [event["event_type"] for event in world.happened()]
    assert kinds.count("NodeStarted") == kinds.count("NodeCompleted") == 2


def test_a_barrier_in_a_stream_sees_everything_at_once():
    class Sort:
        _stream_mode = "barrier"

        def forward(self, x):
            return np.sort(x)

    filters = {"a": lambda x: -x, "sort": Sort(), "b": lambda x: x * 10}
    plan = {"Stream": {"node_ids": ["a", "sort", "b"], "chunk_size": 2}}
    np.testing.assert_array_equal(run(plan, filters, np.arange(5.0)), np.array([-40.0, -30, -20, -10, 0]))


def test_an_evolving_filter_moves_its_state_with_each_chunk():
    class Total:
        _stream_mode = "evolving"
        _kind = "trainable"

        def partial_fit(self, x, y=None, state=None):
            return (state or 0) + sum(x)

        def forward(self, x, state):
            return [state] * len(x)

    world = World({"Stream": {"node_ids": ["t"], "chunk_size": 2}}, {"t": Total()})
    assert world.run([1, 2, 3, 4]) == [3, 3, 10, 10]
    assert world.states() == {"t": 10}


def test_fit_over_a_stream_fits_by_chunks():
    class Mean:
        _kind = "trainable"

        def partial_fit(self, x, y=None, state=None):
            return [*(state or []), len(x)]

        def forward(self, x, state):
            return x

    world = World({"Stream": {"node_ids": ["m"], "chunk_size": 3}}, {"m": Mean()}, fit=True)
    np.testing.assert_array_equal(world.run(np.arange(7)), np.arange(7))
    assert world.states() == {"m": [3, 3, 1]}


def test_each_runs_the_plan_for_every_item_and_names_the_one_that_failed():
    world = World(sequence("a", "b"), ADD)
    assert run_each(world.interpreter, world.plan, [1, 2, 3]) == [20, 30, 40]
    world = World(execute("a"), {"a": lambda x: x.sum()})
    assert run_each(world.interpreter, world.plan, np.ones((4, 3))) == [3.0] * 4

    def picky(x):
        if x == 2:
            raise ValueError("two")
        return x

    world = World(execute("p"), {"p": picky})
    with pytest.raises(NodeFailed, match="item 2: node 'p': ValueError: two") as caught:
        run_each(world.interpreter, world.plan, [0, 1, 2, 3])
    assert caught.value.failure.details["item"] == 2


def test_each_needs_items():
    world = World(execute("a"), ADD)
    with pytest.raises(InvalidPipeline, match="needs a list or an array, not dict"):
        run_each(world.interpreter, world.plan, {})


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_filter_that_ends_the_process_fails_its_node(error: BaseException):
    def leave(x):
        raise error

    with pytest.raises(NodeFailed, match=r"node 'a': the filter (called sys.exit\(3\)|raised KeyboardInterrupt)"):
        run(execute("a"), {"a": leave}, 1)


def test_a_failure_names_node_type_bases_and_the_users_lines():
    def broken(x):
        return {"x": x}["nothing"]

    with pytest.raises(NodeFailed) as caught:
        run(sequence("a", "broken"), {**ADD, "broken": broken}, 1)
    failure = caught.value.failure
    assert failure.node_id == "broken"
    assert failure.error == "node 'broken': KeyError: 'nothing'"
    assert failure.error_type == "builtins.KeyError"
    assert failure.error_mro[:2] == ["builtins.KeyError", "builtins.LookupError"]
    assert "in broken" in failure.traceback
    assert "hosts/inside" not in failure.traceback


def test_a_node_without_a_filter_is_refused_before_anything_runs():
    ran: list[Any] = []
    with pytest.raises(InvalidPipeline, match="no filter for node 'z'; the plan has filters for 'a'"):
        World(sequence("a", "z"), {"a": ran.append}, live=True)
    assert not ran


def test_an_unknown_kind_is_refused():
    with pytest.raises(InvalidPipeline, match="unknown kind of plan 'Teleport'"):
        run({"Teleport": {}}, {}, 1)


def test_fit_fits_in_order_and_forwards():
    class Centre(Scaler):
        def fit(self, x, y=None):
            return {"mean": float(np.mean(x)), "y": y}

    world = World(sequence("a", "s", "t"), {"a": lambda x: x + 1, "s": Scaler(), "t": Centre()}, fit=True, y=[1, 2])
    np.testing.assert_allclose(world.run(np.array([1.0, 3.0])), [-1.0, 1.0])
    assert world.states() == {"s": {"mean": 3.0}, "t": {"mean": 0.0, "y": [1, 2]}}


def test_branches_that_start_elsewhere_are_handed_over_before_others_run():
    ran: list[str] = []
    plan = parallel(sequence("a", remote("r1")), sequence("b", "c"), remote("r2"), sequence(remote("r3"), "d"))
    filters = {name: noting(ran, name, lambda x: x + 1) for name in "abcd"}
    first = World(plan, filters, live=True)
    with pytest.raises(Suspend) as caught:
        first.run(1)
    assert (caught.value.goes_on, ran) == (True, [])
    assert [(child["path"], child["value"]) for child in caught.value.children] == [("2", 1), ("3.0", 1)]

    second = World(plan, filters, live=True, running=["2", "3.0"])
    with pytest.raises(Suspend) as caught:
        second.run(1)
    assert (caught.value.goes_on, ran) == (False, ["a", "b", "c"])
    assert [(child["path"], child.get("value")) for child in caught.value.children] == [
        ("0.1", 2),
        ("2", None),
        ("3.0", None),
    ]
    assert caught.value.children[0]["node_ids"] == ["r1"]
    assert set(second.journal.take()) == {"0.0", "1"}


def test_what_was_done_before_branches_start_elsewhere_is_kept():
    ran: list[str] = []
    plan = sequence("a", parallel(remote("r"), sequence("b", parallel(remote("s"), "c"))))
    filters = {name: noting(ran, name, lambda x: x + 1) for name in "abc"}
    first = World(plan, filters, live=True)
    with pytest.raises(Suspend):
        first.run(1)
    journal = first.journal.take()
    assert set(journal) == {"0"}
    second = World(plan, filters, live=True, journal=journal, running=["1.0"])
    with pytest.raises(Suspend) as caught:
        second.run(1)
    assert (caught.value.goes_on, ran) == (False, ["a", "b", "c"])
    assert [child["path"] for child in caught.value.children] == ["1.0", "1.1.1.0"]
