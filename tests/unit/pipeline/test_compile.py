"""Compiled pipelines: node ids, plans, specs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from somatize_worker import protocol
from somatize_worker.errors import InvalidPipeline
from somatize_worker.packing import Reference, pack, unpack
from somatize_worker.pipeline import (
    Chain,
    CompiledPipeline,
    Filter,
    Target,
    as_step,
    branch,
    compile_once,
    compile_pipeline,
    composite,
    dumps,
    fork,
    loads,
    loop,
    pipeline,
)
from somatize_worker.pipeline.outline import last_node
from somatize_worker.values import load_state


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


def a(x):
    return x


def b(x):
    return x


def c(x):
    return x


def execute(node_id: str) -> Any:
    return {"Execute": {"node_id": node_id}}


def remote(target: str, node_id: str, plan: Any) -> Any:
    return {"Remote": {"node_id": node_id, "target": {"Tag": target}, "plan": plan}}


def plan_of(obj: Any, default_tag: Any = None) -> Any:
    return compile_once(obj).plan_at(default_tag)


# --- names -------------------------------------------------------------------------------------------------------


def test_names_are_derived_and_made_unique_in_order():
    compiled = compile_once(pipeline(Scaler(), a, Scaler(), lambda x: x, Model(), Scaler()))
    assert compiled.node_ids == ("Scaler", "a", "Scaler_2", "lambda", "Model", "Scaler_3")
    assert compiled.trainable == ("Scaler", "Scaler_2", "Scaler_3")


def test_given_names_come_first():
    built = pipeline(Scaler(), Scaler(), Model().named("Scaler"), Model().named("Scaler_3"), Scaler())
    assert compile_once(built).node_ids == ("Scaler_2", "Scaler_4", "Scaler", "Scaler_3", "Scaler_5")


def test_the_same_object_twice_is_two_nodes():
    step = Scaler()
    compiled = compile_once(step >> step)
    assert compiled.node_ids == ("Scaler", "Scaler_2")
    assert compiled.filters[0].pickle is compiled.filters[1].pickle


def test_names_given_twice_are_refused():
    with pytest.raises(InvalidPipeline, match="two nodes are named 'm'"):
        compile_once(Model().named("m") >> Scaler() >> Model().named("m"))
    with pytest.raises(InvalidPipeline, match="names 'm' and 'choose'"):
        compile_once(branch(Model().named("m"), {"x": a}, name="choose"))


def test_a_named_chain_names_its_branch_and_nothing_else():
    built = (as_step(a) >> b).named("left") | (as_step(c) >> b).named("right")
    assert plan_of(built) == {
        "Parallel": [{"Sequence": [execute("a"), execute("left")]}, {"Sequence": [execute("c"), execute("right")]}],
    }
    assert compile_once((as_step(a) >> b).named("whole")).node_ids == ("a", "b")
    assert compile_once((as_step(a) >> b).named("whole")).summary == "whole: a → b"
    with pytest.raises(InvalidPipeline, match="names 'own' and 'left'"):
        compile_once(fork(left=as_step(a) >> as_step(b).named("own")))
    with pytest.raises(InvalidPipeline, match="branch 'left' ends in a fork"):
        compile_once(fork(left=as_step(a) >> (as_step(b) | c)))


# --- plans -------------------------------------------------------------------------------------------------------


def test_every_construct():
    built = (
        as_step(a).named("start")
        >> fork(x=a, y=b)
        >> loop(a, b, max_iterations=3, name="again")
        >> branch(c, {True: a, "other": as_step(b) >> c}, name="choose")
        >> composite(a, b, name="end")
    )
    assert plan_of(built) == {
        "Sequence": [
            execute("start"),
            {"Parallel": [execute("x"), execute("y")]},
            {
                "Loop": {
                    "node_id": "again",
                    "body": {"Sequence": [execute("a"), execute("b")]},
                    "max_iterations": 3,
                }
            },
            {
                "Branch": {
                    "node_id": "choose",
                    "arms": [["true", execute("a_2")], ["other", {"Sequence": [execute("b_2"), execute("c")]}]],
                }
            },
            {"Composite": {"node_ids": ["a_3", "end"]}},
        ]
    }


def test_neighbours_with_one_target_travel_together():
    assert plan_of(as_step(a) >> as_step(b).on("gpu") >> as_step(c).on("gpu") >> as_step(a).on("cpu")) == {
        "Sequence": [
            execute("a"),
            remote("gpu", "c", {"Sequence": [execute("b"), execute("c")]}),
            remote("cpu", "a_2", execute("a_2")),
        ]
    }


def test_nothing_is_sent_to_where_it_is():
    built = as_step(a).on("cpu") >> as_step(b).on("gpu") >> as_step(c).on("cpu")
    assert plan_of(built, "cpu") == {"Sequence": [execute("a"), remote("gpu", "b", execute("b")), execute("c")]}
    assert plan_of(built, protocol.Tag("cpu")) == plan_of(built, "cpu")
    assert plan_of(built, protocol.WorkerId("cpu")) == plan_of(built)
    nested = (as_step(a) >> (as_step(b).on("gpu") >> c).on("gpu")).on("gpu")
    inner = {"Sequence": [execute("a"), execute("b"), execute("c")]}
    assert plan_of(nested) == remote("gpu", "c", inner)
    assert plan_of(nested, "gpu") == inner


def test_back_and_forth():
    built = (as_step(a) >> as_step(b).on("gpu") >> c).on("cpu")
    assert plan_of(built) == remote(
        "cpu", "c", {"Sequence": [execute("a"), remote("gpu", "b", execute("b")), execute("c")]}
    )


def test_places_inside_constructs():
    built = loop(as_step(a).on("gpu")) >> (as_step(b).on("x") | c) >> branch(as_step(a).on("y"), {"k": b}).on("z")
    assert compile_once(built).targets == ("gpu", "x", "z", "y")
    worker = compile_once(as_step(a).on(protocol.WorkerId("w1")))
    assert worker.plan["Remote"]["target"] == {"WorkerId": "w1"}


def test_home_is_where_all_of_it_was_told_to_run():
    assert compile_once((as_step(a) >> b).on("gpu")).home == Target("Tag", "gpu")
    assert compile_once(as_step(a).on("gpu") >> as_step(b).on("gpu")).home == Target("Tag", "gpu")
    assert compile_once(as_step(a).on("gpu") >> b).home is None


def test_hand_made_nodes_are_checked_too():
    with pytest.raises(InvalidPipeline, match="without steps"):
        compile_once(Chain(steps=()))


names = st.none() | st.sampled_from([f"n{number}" for number in range(60)])
targets = st.none() | st.sampled_from(["cpu", "gpu"])


def _placed(built: Any, target: str | None) -> Any:
    return built if target is None else built.on(target)


leaves = st.builds(_placed, st.sampled_from([as_step(obj) for obj in (Scaler(), Model(), a, b)]), targets)


def _trees(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, min_size=1, max_size=4)
    built = (
        some.map(lambda parts: pipeline(*parts))
        | some.map(lambda parts: fork(*parts))
        | st.builds(lambda body, until: loop(body, until=until), inner, st.none() | st.just(len))
        | some.map(lambda arms: branch(a, {f"arm{index}": arm for index, arm in enumerate(arms)}))
        | st.lists(st.sampled_from([Scaler(), Model(), b]), min_size=1, max_size=3).map(lambda parts: composite(*parts))
    )
    return st.builds(_placed, built, targets)


def plans_in(plan: Any) -> Iterator[Any]:
    yield plan
    ((kind, body),) = plan.items()
    below = {"Sequence": body, "Parallel": body, "Loop": [body["body"]] if kind == "Loop" else []}.get(kind, [])
    below = [body["plan"]] if kind == "Remote" else [arm for _, arm in body["arms"]] if kind == "Branch" else below
    for part in below:
        yield from plans_in(part)


@given(st.recursive(leaves, _trees, max_leaves=25), targets)
def test_any_tree_compiles_to_a_plan_whose_nodes_are_its_filters(tree: Any, home: str | None):
    compiled = compile_once(tree)
    plan = compiled.plan_at(home)
    message = protocol.from_json(protocol.ExecutionPlan, json.dumps(plan).encode())
    assert protocol.plans.repeated_node_ids(message) == ()
    assert protocol.plans.node_ids(message) == compiled.node_ids
    loops = [part["Loop"]["node_id"] for part in plans_in(plan) if "Loop" in part]
    assert len(set(loops) | set(compiled.node_ids)) == len(loops) + len(compiled.node_ids)
    assert last_node(plan) == protocol.plans.last_node_id(message)
    for part in plans_in(plan):
        if "Remote" in part:
            assert part["Remote"]["node_id"] == last_node(part["Remote"]["plan"])
            assert part["Remote"]["plan"].get("Remote", {}).get("target") != part["Remote"]["target"]
        if "Sequence" in part:
            kinds = [step.get("Remote", {}).get("target") for step in part["Sequence"]]
            assert len(kinds) > 1
            assert not any(one is not None and one == two for one, two in pairwise(kinds))
            assert not any("Sequence" in step for step in part["Sequence"])
    assert compile_once(tree).node_ids == compiled.node_ids


# --- specs -------------------------------------------------------------------------------------------------------


def test_a_spec_has_the_form_that_the_ledger_keeps():
    x, y = np.arange(4.0), Reference(type="Local", path="a.npy")
    spec = compile_pipeline(
        Scaler() >> Model().on("gpu"),
        plan_id="p1",
        mode="fit",
        input=x,
        y=y,
        batch_size=2,
        states={"Scaler": {"max": 3.0}},
        metadata={"experiment": 7},
        options={"events": False},
    )
    scaler, model = spec["filters"]
    assert spec["plan_id"] == "p1"
    assert spec["mode"] == {"Fit": {"y": y, "batch_size": 2}}
    assert spec["input"] is x
    assert (scaler["node_id"], scaler["trainable"], scaler["state"], scaler["requirements"]) == (
        "Scaler", True, {"max": 3.0}, [],
    )  # fmt: skip
    assert (model["node_id"], model["trainable"], model["state"]) == ("Model", False, None)
    assert loads(scaler["pickle"]).factor == 2.0
    soma = spec["metadata"]["soma"]
    assert spec["metadata"]["experiment"] == 7
    assert soma == {"python": compile_once(a).python, "summary": "Scaler → Model@gpu", "events": False}
    again = unpack(pack(spec))
    np.testing.assert_array_equal(again.pop("input"), x)
    assert again == {key: value for key, value in spec.items() if key != "input"}


def test_modes():
    compiled = compile_once(Scaler())
    assert compiled.spec(plan_id="p", mode="forward")["mode"] == "Forward"
    assert compiled.spec(plan_id="p", mode="fit")["mode"] == {"Fit": {"y": None, "batch_size": None}}
    assert compile_once(Model()).spec(plan_id="p", mode="fit")["mode"]  # nothing to train is fine
    for options, said in [
        ({"mode": "train"}, 'should be "fit" or "forward"'),
        ({"mode": "forward", "y": 1}, "y and batch_size are for fit"),
        ({"mode": "forward", "batch_size": 1}, "y and batch_size are for fit"),
        ({"mode": "fit", "batch_size": 0}, "positive integer"),
        ({"mode": "fit", "batch_size": 2.5}, "positive integer"),
        ({"mode": "fit", "batch_size": True}, "positive integer"),
        ({"mode": "fit", "states": {"Scalar": 1}}, "states for 'Scalar', but the pipeline's nodes are 'Scaler'"),
        ({"mode": "fit", "metadata": {"a": object()}}, "metadata is kept as JSON"),
    ]:
        with pytest.raises(InvalidPipeline, match=said):
            compiled.spec(plan_id="p", **options)  # type: ignore[arg-type]


def test_states_travel_in_their_own_form():
    compiled = compile_once(Scaler() >> Scaler() >> Scaler() >> Scaler())
    kept = Reference(type="Cached", cache_key=b"k" * 32)
    live = Scaler(7.0)
    first = compiled.spec(plan_id="p", mode="forward", states={"Scaler": live})["filters"][0]["state"]
    states = {"Scaler": first, "Scaler_2": kept, "Scaler_3": np.ones(2), "Scaler_4": (1, 2)}
    sent = [one["state"] for one in compiled.spec(plan_id="p", mode="forward", states=states)["filters"]]
    assert load_state(sent[0]).factor == 7.0
    assert sent[0] is first
    assert sent[1] is kept
    assert sent[2] is states["Scaler_3"]
    assert load_state(sent[3]) == (1, 2)


def test_options_say_what_to_spread():
    def soma(built: Any, **options: Any) -> Mapping[str, Any]:
        spec: dict[str, Any] = compile_pipeline(built, plan_id="p", mode="forward", options=options)
        soma: dict[str, Any] = spec["metadata"]["soma"]
        return soma

    assert "spread" not in soma(as_step(a) | b)
    assert soma(fork(a, b, spread=True))["spread"] is True
    assert soma(as_step(c) >> (as_step(a) | b).spread())["spread"] is True
    assert soma(fork(a, b, spread=True), spread=False)["spread"] is False
    assert soma(as_step(a) | b, spread=True)["spread"] is True


class Always(Model):
    _cacheable = True


class Never(Model):
    _cacheable = False


def test_options_say_what_to_cache():
    def cached(built: Any, **options: Any) -> Any:
        soma = compile_pipeline(built, plan_id="p", mode="forward", options=options)["metadata"]["soma"]
        found = soma.get("cache")
        expected = compile_once(built).node_ids if found is True else found or []
        assert sorted(soma.get("fingerprints", {})) == sorted(expected)
        return found

    built = pipeline(Model(), Scaler())
    assert cached(built, cache=True) is True
    assert cached(built) is None
    assert cached(Model() >> Scaler().cached()) == ["Scaler"]
    assert cached(a >> Always()) == ["Always"]
    assert cached(a >> Never(), cache=True) == ["a"]
    assert cached((as_step(a) >> as_step(b).cached(False) >> c).cached()) == ["a", "c"]
    assert cached(as_step(Never()), cache=True) is False


def test_frozen_means_frozen():
    scaler = Scaler(2.0)
    compiled = compile_once(as_step(scaler))
    before = compiled.code
    scaler.factor = 3.0
    assert loads(compiled.filters[0].pickle).factor == 2.0
    assert compiled.fingerprints() == compile_once(Scaler(2.0)).fingerprints()
    assert compile_once(compiled) is compiled
    assert compile_once(as_step(scaler)).code != before
    assert compile_once(as_step(scaler)).code == compile_once(as_step(scaler)).code


def test_the_code_digest_counts_requirements():
    one, two = Model(), Model()
    object.__setattr__(two, "requirements", ["numpy"])
    assert compile_once(one).code != compile_once(two).code
    assert len(compile_once(one).code) == 64


def test_the_digest_of_a_spec_is_that_of_its_content():
    def digest(built: Any, **changes: Any) -> str:
        compiled = compile_once(built)
        options: dict[str, Any] = {"mode": "fit", "input": np.arange(3.0), "y": [1], "metadata": {"k": 1}, **changes}
        return compiled.digest(compiled.spec(plan_id="p", **options))

    same = digest(Scaler() >> a)
    assert same == digest(Scaler() >> a)
    assert same == digest(loads(dumps(Scaler())) >> as_step(a))
    others = [
        digest(Scaler(3.0) >> a),
        digest(Scaler() >> b),
        digest(Scaler() >> as_step(a).on("gpu")),
        digest(Scaler() >> a, input=np.arange(4.0)),
        digest(Scaler() >> a, y=[2]),
        digest(Scaler() >> a, metadata={"k": 2}),
        digest(Scaler() >> a, states={"Scaler": 1}),
        digest(Scaler() >> a, options={"each": True}),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_a_long_pipeline_compiles_in_a_fraction_of_its_pickling():
    steps = pipeline(*[Scaler(float(number)) for number in range(100)])
    start = time.perf_counter()
    compiled = compile_once(steps)
    freezing = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(10):
        compiled.spec(plan_id="p", mode="forward", input=None)
    assert (time.perf_counter() - start) / 10 < freezing / 10


def test_summaries_stay_short():
    assert len(compile_once(pipeline(*[as_step(Model()).named("n" * 90 + str(n)) for n in range(9)])).summary) == 200
    assert repr(compile_once(Scaler() >> a)) == "CompiledPipeline(Scaler → a)"


def test_compiled_pipelines_are_not_steps():
    compiled = compile_once(a)
    assert isinstance(compiled, CompiledPipeline)
    with pytest.raises(InvalidPipeline, match=r"CompiledPipeline.*cannot be a step"):
        Model() >> compiled
