"""Questions about plans, and what can be known to be wrong before one runs."""

from __future__ import annotations

from typing import Any

import pytest

from somatize_worker import protocol
from somatize_worker.errors import InvalidMessage, InvalidPipeline
from somatize_worker.protocol import (
    Branch,
    Cached,
    CacheKey,
    Composite,
    EmptyPlan,
    Execute,
    ExecutionPlan,
    Loop,
    Parallel,
    Remote,
    Sequence,
    SerializedFilter,
    SerializedPlan,
    Stream,
    Tag,
    WorkerId,
)


def run(node_id: str) -> Execute:
    return Execute(node_id=node_id)


PLAN = Sequence(
    [
        run("load"),
        Parallel([Sequence([run("a"), EmptyPlan()]), Remote(node_id="far", target=Tag("gpu"), plan=run("b"))]),
        Loop(node_id="loop", body=run("step")),
        Branch(node_id="choose", arms=(("x", run("step")), ("y", Composite(node_ids=("c", "d"))))),
        Cached(node_id="kept", key=CacheKey.hash_data(b"")),
        Stream(node_ids=("e",), chunk_size=10),
        Remote(node_id="far2", target=WorkerId("w"), plan=Remote(node_id="far3", target=Tag("gpu"), plan=EmptyPlan())),
    ]
)


def test_facts() -> None:
    assert protocol.node_ids(PLAN) == ("load", "a", "b", "step", "choose", "c", "d", "e")
    assert protocol.repeated_node_ids(PLAN) == ("step",)
    assert protocol.count_nodes(PLAN) == 10
    assert protocol.summarize(PLAN) == protocol.PlanSummary(total_nodes=10, cached_nodes=1, parallel_branches=2)
    assert protocol.remote_targets(PLAN) == (Tag("gpu"), WorkerId("w"))
    assert protocol.plan_depth(PLAN) == 4
    assert protocol.plan_depth(EmptyPlan()) == 1
    assert [type(part).__name__ for part in protocol.walk(PLAN)][:4] == ["Sequence", "Execute", "Parallel", "Sequence"]


@pytest.mark.parametrize(
    "plan, name",
    [
        (run("a"), "a"),
        (EmptyPlan(), None),
        (Sequence([]), None),
        (Sequence([run("a"), run("b"), EmptyPlan()]), "b"),
        (Parallel([run("a"), Sequence([run("b")])]), "b"),
        (Composite(node_ids=("a", "b")), "b"),
        (Loop(node_id="l", body=run("a")), "l"),
        (Remote(node_id="r", target=Tag("t"), plan=run("a")), "r"),
        (Branch(node_id="b", arms=(("x", run("a")),)), "b"),
        (Cached(node_id="c", key=CacheKey.hash_data(b"")), "c"),
        (Sequence([run("a"), Composite(node_ids=())]), "a"),
    ],
)
def test_last_node_id(plan: ExecutionPlan, name: str | None) -> None:
    assert protocol.last_node_id(plan) == name


def test_questions_about_plans_of_any_depth() -> None:
    plan: ExecutionPlan = run("a")
    for _ in range(20_000):
        plan = Sequence([plan])
    assert protocol.plan_depth(plan) == 20_001
    assert protocol.count_nodes(plan) == 1
    assert protocol.last_node_id(plan) == "a"
    again: ExecutionPlan = run("a")
    for _ in range(20_000):
        again = Sequence([again])
    assert plan == again


@pytest.mark.parametrize("form", ["json", "maps", "arrays", "packed"])
@pytest.mark.parametrize("variant", ["Sequence", "Loop", "Branch", "Remote"])
def test_the_deepest_plan_there_may_be(variant: str, form: str) -> None:
    plan: ExecutionPlan = run("a")
    for _ in range(protocol.MAX_PLAN_DEPTH - 1):
        plan = {
            "Sequence": lambda inner: Sequence([inner]),
            "Loop": lambda inner: Loop(node_id="l", body=inner),
            "Branch": lambda inner: Branch(node_id="b", arms=(("x", inner),)),
            "Remote": lambda inner: Remote(node_id="r", target=Tag("t"), plan=inner),
        }[variant](plan)
    assert through(form, plan) == plan
    with pytest.raises(InvalidMessage, match=f"nested at most {protocol.MAX_PLAN_DEPTH} deep"):
        protocol.from_data(ExecutionPlan, {"Sequence": [protocol.to_data(plan)]})


def through(form: str, plan: ExecutionPlan) -> ExecutionPlan:
    if form == "json":
        return protocol.from_json(ExecutionPlan, protocol.to_json(plan))
    if form == "packed":
        return protocol.from_msgpack(ExecutionPlan, protocol.to_packed(plan))
    return protocol.from_msgpack(ExecutionPlan, protocol.to_msgpack(plan, compact=form == "arrays"))


def serialized(plan: ExecutionPlan, nodes: str = "", **more: Any) -> SerializedPlan:
    filters = tuple(SerializedFilter(node_id=node, pickled_filter=b"") for node in nodes.split())
    return SerializedPlan(**{"plan_id": "p", "plan": plan, "filters": filters, **more})


def test_a_plan_without_fault() -> None:
    protocol.check_plan(serialized(PLAN, "load a b step choose c d e unused"), max_depth=4)
    edges = {"edges": [["a", "b"], ["elsewhere", "a"]]}
    protocol.check_plan(serialized(EmptyPlan(), metadata=edges), max_depth=1)


def test_nested_too_deep_for_this_worker() -> None:
    with pytest.raises(InvalidMessage, match="nested 4 deep, more than the limit of 3") as caught:
        protocol.check_plan(serialized(PLAN), max_depth=3)
    assert caught.value.details == {"plan_id": "p", "depth": 4, "limit": 3}


@pytest.mark.parametrize(
    "plan, words, nodes",
    [
        (serialized(Sequence([run("a"), run("b"), run("c")]), "b"), "no filter for 'a', 'c'", ["a", "c"]),
        (serialized(run("a")), "it carries no filters", ["a"]),
        (serialized(run("a"), "a a"), "more than one filter for 'a'", ["a"]),
        (serialized(Remote(node_id="r", target=Tag("t"), plan=run("a"))), "no filter for 'a'", ["a"]),
        (serialized(Parallel([run("a"), Sequence([run("b"), run("a")])]), "a b"), "end in the same node 'a'", ["a"]),
        (serialized(Branch(node_id="b", arms=()), "b"), "Branch 'b' has no arms", ["b"]),
        (serialized(Branch(node_id="b", arms=(("x", run("b")), ("x", run("b")))), "b"), "arm labelled 'x'", ["b"]),
        (serialized(Stream(node_ids=("a",), chunk_size=0), "a"), "chunk_size 0", ["a"]),
        (serialized(Composite(node_ids=())), "Composite has no nodes", []),
        (serialized(Remote(node_id="r", target=Tag(""), plan=EmptyPlan())), "an empty Tag", ["r"]),
        (serialized(run(""), "x"), "empty node id", [""]),
        (serialized(EmptyPlan(), mode=protocol.Fit(batch_size=0)), "batch_size is 0", []),
        (serialized(EmptyPlan(), plan_id=""), "plan_id is empty", []),
        (serialized(EmptyPlan(), metadata={"edges": [["a"]]}), "edges", []),
    ],
)
def test_what_cannot_run(plan: SerializedPlan, words: str, nodes: list[str]) -> None:
    with pytest.raises(InvalidPipeline, match=words) as caught:
        protocol.check_plan(plan, max_depth=100)
    assert caught.value.details["node_ids"] == nodes


def test_everything_wrong_is_told_at_once() -> None:
    plan = serialized(Sequence([run("a"), Stream(node_ids=("b",), chunk_size=0)]), "b")
    with pytest.raises(InvalidPipeline) as caught:
        protocol.check_plan(plan, max_depth=100)
    assert len(caught.value.details["problems"]) == 2
    assert caught.value.details["node_ids"] == ["a", "b"]
