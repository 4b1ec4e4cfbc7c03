"""How filters are called, fitted and cut into batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from somatize_worker.errors import InvalidPipeline
from somatize_worker.hosts.inside import batches
from somatize_worker.hosts.inside.calls import Step
from somatize_worker.hosts.inside.failures import NodeFailed
from tests.unit.inside.world import Scaler, World, execute, run, sequence


def make(trainable: bool = True, **methods: Any) -> Any:
    return type("Made", (), {"_kind": "trainable" if trainable else "stateless", **methods})()


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: (x, None),
        lambda self, x, training=False: (x, None),
        lambda self, x, state: (x, state),
        lambda self, x, state=None: (x, state),
        lambda self, x, parameters: (x, parameters),
        lambda self, *args: args if len(args) > 1 else (*args, None),
    ],
)
def test_forward_is_given_the_state_if_it_takes_one(forward: Any):
    step = Step("n", make(forward=forward, fit=lambda self, x: 1), load_state=lambda: "s")
    x, state = step.run(5)
    assert (x, state) in ((5, "s"), (5, None))
    takes = "state" in forward.__code__.co_varnames or "parameters" in forward.__code__.co_varnames
    assert state == "s" or not takes


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        (lambda self, x: [x], [1]),
        (lambda self, x, y: [x, y], [1, 2]),
        (lambda self, x, y=None: [x, y], [1, 2]),
        (lambda self, x, targets=5: [x, targets], [1, 2]),
        (lambda self, x, epochs=5: [x, epochs], [1, 5]),
        (lambda self, *args: list(args), [1, 2]),
    ],
)
def test_fit_is_given_y_if_it_takes_it(fit: Any, expected: Any):
    step = Step("n", make(fit=fit, forward=lambda self, x, state: x))
    assert step.fit(1, 2, None) == expected
    assert step.state() == expected


@pytest.mark.parametrize(
    ("partial_fit", "expected"),
    [
        (lambda self, x: len(x), 1),
        (lambda self, x, y: (len(x), len(y)), (1, 1)),
        (lambda self, x, state: (state or 0) + len(x), 3),
        (lambda self, x, y=None, state=None: (state or 0) + len(x) + len(y), 6),
        (lambda self, x, y, before: (before or 0) + len(y), 3),
    ],
)
def test_partial_fit_is_given_what_it_names(partial_fit: Any, expected: Any):
    step = Step("n", make(partial_fit=partial_fit, forward=lambda self, x, state: x))
    assert step.fit([1, 2, 3], [4, 5, 6], 2) == expected


def test_an_object_with_neither_forward_nor_call_is_no_filter():
    with pytest.raises(InvalidPipeline, match="node 'n': an object of builtins.int is no filter"):
        Step("n", 5)
    with pytest.raises(InvalidPipeline, match="node 'n': .*Scaler is a class; make an object of it"):
        Step("n", Scaler)


@pytest.mark.parametrize("forward", [lambda self: 1, lambda self, x, state, more: 1, lambda self, x, *, needed: 1])
def test_methods_that_nobody_can_call_are_refused(forward: Any):
    with pytest.raises(InvalidPipeline, match="node 'n'"):
        Step("n", make(forward=forward))


def test_a_callable_object_is_a_stateless_function():
    class Times:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, x):
            return x * self.factor

    assert run(execute("a"), {"a": Times(3)}, 4) == 12
    assert run(execute("a"), {"a": abs}, -4) == 4
    assert run(execute("a"), {"a": list}, (1, 2)) == [1, 2]


def test_a_trainable_filter_without_state_is_not_fitted():
    with pytest.raises(NodeFailed, match="node 's' is trainable and not fitted; fit first, or pass states"):
        run(execute("s"), {"s": Scaler()}, np.ones(3))
    assert run(execute("s"), {"s": Scaler()}, 5.0, states={"s": {"mean": 1.0}}) == 4.0


def test_a_filter_that_can_do_without_a_state_is_run_and_its_failure_has_a_hint():
    class Prepared(Scaler):
        def forward(self, x, state=None):
            return x - state["mean"] if x else "as it came"

    assert run(execute("s"), {"s": Prepared()}, 0) == "as it came"
    with pytest.raises(NodeFailed, match=r"TypeError: .*\(the node is trainable and has no state: fit first"):
        run(execute("s"), {"s": Prepared()}, 1)


def test_the_spec_can_say_that_a_filter_is_trainable():
    class Plain:
        def fit(self, x):
            return sum(x)

        def forward(self, x, state):
            return state

    assert run(execute("s"), {"s": Plain()}, [1, 2], fit=True, trainable=("s",)) == 3
    with pytest.raises(NodeFailed, match="said to be trainable, but .* has neither fit nor partial_fit"):
        run(execute("s"), {"s": lambda x: x}, [1, 2], fit=True, trainable=("s",))


def test_a_fit_that_returns_nothing_leaves_no_state():
    class Inside:
        _kind = "trainable"

        def fit(self, x):
            self.total = sum(x)

        def forward(self, x):
            return self.total

    world = World(execute("s"), {"s": Inside()}, fit=True)
    assert (world.run([1, 2]), world.states()) == (3, {"s": None})


def test_a_live_state_stays_live_within_the_plan():
    class State:
        pass

    class Keeps:
        _kind = "trainable"

        def fit(self, x):
            self.given = State()
            return self.given

        def forward(self, x, state):
            return state is self.given

    assert run(execute("s"), {"s": Keeps()}, 1, fit=True) is True


def test_a_state_that_cannot_leave_names_its_node():
    class Opens:
        _kind = "trainable"

        def fit(self, x):
            return (i for i in range(3))

        def forward(self, x, state):
            return x

    with pytest.raises(NodeFailed, match="node 's': a state of type generator cannot be pickled"):
        run(execute("s"), {"s": Opens()}, 1, fit=True)


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Counting:
    _kind = "trainable"

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def partial_fit(self, x, y=None, state=None):
        self.calls.append(("fit", len(x), None if y is None else len(y)))
        return (state or 0) + float(np.sum(x))

    def forward(self, x, state):
        self.calls.append(("forward", len(x)))
        return np.asarray(x) * state


class Whole(Counting):
    partial_fit = None  # type: ignore[assignment]

    def fit(self, x, y=None):
        self.calls.append(("fit", len(x), None if y is None else len(y)))
        return float(np.sum(x))


def test_partial_fit_sees_every_batch_in_turn_and_fit_sees_everything():
    parts, whole = Counting(), Whole()
    stateless: list[int] = []

    def passing(x):
        stateless.append(len(x))
        return x

    filters = {"parts": parts, "f": passing, "whole": whole}
    world = World(sequence("parts", "f", "whole"), filters, fit=True, y=list(range(7)), batch_size=3, live=True)
    output = world.run(np.ones((7, 2)))
    assert parts.calls == [("fit", 3, 3), ("fit", 3, 3), ("fit", 1, 1), ("forward", 3), ("forward", 3), ("forward", 1)]
    assert stateless == [7]
    assert whole.calls == [("fit", 7, 7), ("forward", 7)]
    np.testing.assert_array_equal(output, np.ones((7, 2)) * 14 * 14 * 14)


def test_a_filter_may_look_at_all_data_before_the_batches():
    class Prepares(Counting):
        def prepare(self, x, y):
            self.calls.append(("prepare", len(x), len(y)))

    filter = Prepares()
    World(execute("a"), {"a": filter}, fit=True, y=[1, 2, 3], batch_size=2, live=True).run([1, 2, 3])
    assert filter.calls[:2] == [("prepare", 3, 3), ("fit", 2, 2)]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, 3], [1, 2], "x has 3 rows here and y has 2"),
        ({"a": 1}, None, "only arrays and lists can be cut along a first axis; this is builtins.dict"),
        (np.float64(3), None, "0-dimensional array"),
    ],
)
def test_what_cannot_be_cut_names_the_node(x: Any, y: Any, message: str):
    with pytest.raises(NodeFailed, match=f"node 'a'.*{message}"):
        run(execute("a"), {"a": Counting()}, x, fit=True, y=y, batch_size=2)


def test_outputs_that_cannot_be_joined_name_the_node():
    class Scalar(Counting):
        def forward(self, x, state):
            return 1.5

    with pytest.raises(NodeFailed, match="node 'a': outputs of pieces cannot be put together: float"):
        run(execute("a"), {"a": Scalar()}, [1, 2, 3], fit=True, batch_size=2)


def test_without_rows_there_is_one_empty_batch():
    assert [len(x) for x, _ in batches.cut([], None, 3)] == [0]
    assert run(execute("a"), {"a": Counting()}, [], fit=True, batch_size=2).tolist() == []


def test_joined():
    assert batches.joined([[1], [2, 3]]) == [1, 2, 3]
    assert batches.joined([(1,), (2,)]) == (1, 2)
    assert batches.joined([None, None]) is None
    assert batches.joined([np.ones((1, 2)), np.ones((2, 2))]).shape == (3, 2)
