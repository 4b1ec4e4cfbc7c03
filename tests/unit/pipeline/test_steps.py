"""Building pipelines: operators, helpers, what they refuse."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from somatize_worker import protocol
from somatize_worker.errors import InvalidPipeline
from somatize_worker.pipeline import (
    Chain,
    Composite,
    Filter,
    Fork,
    Loop,
    Step,
    Target,
    as_step,
    branch,
    composite,
    fork,
    loop,
    pipeline,
)
from somatize_worker.pipeline.adapters import adapt, kind_of


class Scaler(Filter):
    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def fit(self, x, y=None):
        return {"max": x.max()}

    def forward(self, x, state):
        return x * self.factor


class Model(Filter):
    def forward(self, x, state):
        return x


class Duck:
    def fit(self, x):
        return 1

    def forward(self, x):
        return x


def double(x):
    return 2 * x


def test_chains_flatten_in_any_grouping():
    a, b, c = Scaler().named("a"), Scaler().named("b"), Model().named("c")
    for built in (a >> b >> c, a >> (b >> c), (a >> b) >> c, pipeline(a, b, c), pipeline(a >> b, c)):
        assert isinstance(built, Chain)
        assert [step.name for step in built.steps] == ["a", "b", "c"]


def test_forks_flatten_and_bind_less_tightly_than_chains():
    built = Scaler() >> Model() | Model() | double
    assert isinstance(built, Fork)
    assert [type(part).__name__ for part in built.branches] == ["Chain", "Step", "Step"]


def test_groups_with_a_place_or_a_name_are_kept():
    group = (Scaler() >> Model()).on("gpu")
    built = double >> group
    assert isinstance(built, Chain)
    assert built.steps[1] is group


@pytest.mark.parametrize("foreign", [double, StandardScaler(), functools.partial(np.add, 1), Duck(), len])
def test_operators_take_foreign_objects_on_both_sides(foreign: Any):
    assert repr(foreign >> Model()).endswith("→ Model>")
    assert repr(Model() >> foreign).startswith("<Chain Model →")
    assert isinstance(foreign | Model(), Fork)
    assert isinstance(Model() | foreign, Fork)


def test_methods_leave_the_original_alone():
    step = as_step(Model())
    named, placed, cached, spread = step.named("m"), step.on("gpu"), step.cached(), step.spread()
    assert (step.name, step.target, step.caching, step.spreading) == (None, None, None, None)
    assert (named.name, placed.target, cached.caching, spread.spreading) == ("m", Target("Tag", "gpu"), True, True)
    with pytest.raises(AttributeError):
        step.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "target, expected",
    [
        ("gpu", Target("Tag", "gpu")),
        (protocol.Tag("gpu"), Target("Tag", "gpu")),
        (protocol.WorkerId("w-1"), Target("WorkerId", "w-1")),
        ({"WorkerId": "w-1"}, Target("WorkerId", "w-1")),
        (Target("WorkerId", "w"), Target("WorkerId", "w")),
    ],
)
def test_targets(target: Any, expected: Target):
    assert Model().on(target).target == expected


@pytest.mark.parametrize("target", ["", "a b", "a,b", "a\n", 3, None, {"Queue": "q"}, ["gpu"]])
def test_bad_targets(target: Any):
    with pytest.raises(InvalidPipeline, match=r"cannot be a|place to run"):
        Model().on(target)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 201, 7, None])
def test_bad_names(name: Any):
    with pytest.raises(InvalidPipeline, match="cannot be a name"):
        Model().named(name)


class Headless(Filter):
    def fit(self, x, y=None):
        return 1


class Greedy:
    def forward(self, x, state, more):
        return x


class Asynchronous:
    async def forward(self, x, state):
        return x


class OnlyFit:
    def fit(self, x, y=None):
        return 1


class OddKind:
    _kind = "opaque"

    def forward(self, x, state):
        return x


async def later(x):
    return x


@pytest.mark.parametrize(
    "given, said",
    [
        (Model, r"Model is a class, not an object: write Model\(\.\.\.\)$"),
        (float, r"float is a class.*, or lambda x: float\(x\) to call it with each input"),
        (3, "int.*cannot be a step: a step is an object with fit"),
        (None, "cannot be a step"),
        ("model", "cannot be a step"),
        (np.ones(3), "Data is not part of a pipeline"),
        ([Model()], r"use pipeline\(\*steps\)"),
        ({"a": Model()}, r"use fork\(name=step"),
        (OnlyFit(), "has fit, but neither forward, transform nor predict"),
        (Headless(), "Headless has no forward method"),
        (Greedy(), r"forward\(x, state, more\) cannot be called"),
        (Asynchronous(), "is async"),
        (later, "async function"),
        (lambda: 1, r"lambda\(\) cannot be a step: a step is called with one argument"),
        (lambda x, y: 1, "missing a required argument: 'y'"),
    ],
)
def test_what_cannot_be_a_step(given: Any, said: str):
    with pytest.raises(InvalidPipeline, match=said):
        as_step(given)
    with pytest.raises(InvalidPipeline, match=said):
        Model() >> given


def test_data_on_the_left_is_an_error_and_not_a_pipeline_for_each_number():
    with pytest.raises(InvalidPipeline, match="Data is not part of a pipeline"):
        np.ones(3) >> Model()


def test_empty_constructs():
    for build in (pipeline, fork, loop, composite):
        with pytest.raises(InvalidPipeline, match="at least one"):
            build()
    with pytest.raises(InvalidPipeline, match="at least one arm"):
        branch(Model(), {})


@pytest.mark.parametrize("rounds", [0, -1, 2.0, True, "3"])
def test_loops_need_a_positive_number_of_rounds(rounds: Any):
    with pytest.raises(InvalidPipeline, match="positive integer"):
        loop(Model(), max_iterations=rounds)


def test_loop_until_stops_and_keeps_the_value():
    built = loop(lambda x: x / 2, until=lambda x: x < 1, name="halve")
    assert isinstance(built, Chain)
    rounds, result = built.steps
    assert isinstance(rounds, Loop)
    assert result.name == "halve"
    halve, check = (step.filter for step in rounds.body.parts if isinstance(step, Step))
    value: Any = 20.0
    count = 0
    while not (isinstance(value, dict) and value["done"]):
        value, count = check.forward(halve.forward(value)), count + 1
    assert count == 5
    assert isinstance(result, Step)
    assert result.filter.forward(value) == 0.625
    assert result.filter.forward(4.0) == 4.0


def test_branches_name_their_arms():
    built = branch(lambda x: x > 0, {True: double, "no": Model()}, default=len)
    assert [label for label, _ in built.arms] == ["true", "no", "default"]  # type: ignore[attr-defined]
    with pytest.raises(InvalidPipeline, match="chosen by one step"):
        branch(Scaler() >> Model(), {"a": double})
    with pytest.raises(InvalidPipeline, match="cannot be a branch's label"):
        branch(double, {1.5: double})


def test_composites_hold_single_steps_in_one_place():
    assert isinstance(composite(Scaler(), Model()), Composite)
    assert len(composite(Scaler() >> Model(), double).parts) == 3
    with pytest.raises(InvalidPipeline, match="single steps"):
        composite(Scaler() | Model())
    with pytest.raises(InvalidPipeline, match="one process"):
        composite(Scaler(), Model().on("gpu"))


def test_kinds_follow_fit_unless_stated():
    class Explicit(Filter):
        _kind = "stateless"

        def fit(self, x, y=None):
            return 1

        def forward(self, x, state):
            return x

    class Heir(Scaler):
        pass

    objects = (Scaler(), Model(), Explicit(), Heir(), Duck(), double, StandardScaler())
    kinds = [kind_of(adapt(obj)) for obj in objects]
    assert kinds == ["trainable", "stateless", "stateless", "trainable", "trainable", "stateless", "trainable"]
    assert (Scaler._kind, Model._kind, Model()._kind) == ("trainable", "stateless", "stateless")
    with pytest.raises(InvalidPipeline, match="_kind is 'opaque'"):
        kind_of(OddKind())


def test_a_filter_without_fit_learns_nothing():
    assert Model().fit(np.ones(3)) is None
    assert repr(Scaler(3.0)) == "Scaler(factor=3.0)"


def test_repr_says_what_runs_where():
    built = (
        StandardScaler()
        >> (Scaler().named("s") | (double >> Model()).on("cpu"))
        >> LogisticRegression()
        >> Model().on("gpu")
    )
    assert repr(built) == "<Chain StandardScaler → (s | (double → Model)@cpu) → LogisticRegression → Model@gpu>"
    long = repr(pipeline(*[Model() for _ in range(50)]))
    assert long == "<Chain Model → Model → Model → … 45 more … → Model → Model>"


def test_describe_draws_a_tree():
    built = Scaler() >> fork(left=Model(), right=Scaler() >> double) >> branch(Model(), {"a": len}).on("gpu").cached()
    assert built.describe().splitlines() == [
        "Chain",
        "├── Scaler · trainable",
        "├── Fork",
        "│   ├── left (Model) · stateless",
        "│   └── Chain right",
        "│       ├── Scaler · trainable",
        "│       └── double · stateless",
        "└── Branch @gpu cached",
        "    ├── Model · stateless",
        "    └── a: len · stateless",
    ]


def test_notebooks_get_boxes_with_names_escaped():
    html = (Model().named("<b>") >> Scaler())._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert html.count('class="soma-box') == 4
