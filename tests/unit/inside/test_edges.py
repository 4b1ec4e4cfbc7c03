"""What a node receives where ``metadata`` has edges."""

from __future__ import annotations

from typing import Any

import pytest

from somatize_worker.errors import InvalidPipeline
from somatize_worker.hosts.inside.edges import as_pairs
from somatize_worker.hosts.inside.failures import Suspend
from somatize_worker.packing import pack
from tests.unit.inside.world import World, branch, execute, loop, parallel, remote, run, sequence, tells

TELL = {name: tells(name) for name in "abcdef"}


def test_one_predecessor_gives_its_output_and_several_a_mapping():
    edges = [["a", "c"], ["a", "d"], ["b", "d"]]
    a, b = ["a", 1], ["b", 1]
    assert run(sequence("a", "b", "c"), TELL, 1, edges=edges) == ["c", a]
    assert run(sequence("a", "b", "c", "d"), TELL, 1, edges=edges) == ["d", {"a": a, "b": b}]


def test_nodes_that_edges_do_not_mention_follow_the_tree():
    assert run(sequence("a", "b", "c"), TELL, 1, edges=[["a", "b"]]) == ["c", ["b", ["a", 1]]]


def test_a_parallel_is_transparent():
    plan = sequence(parallel("a", sequence("b", "c")), "d")
    assert run(plan, TELL, 1, edges=[["b", "c"], ["b", "d"], ["a", "d"]]) == ["d", {"b": ["b", 1], "a": ["a", 1]}]


def test_a_loop_is_one_node_from_outside_and_has_its_input_inside():
    plan = sequence("a", "b", loop("l", sequence("c", "d"), 2), "e")
    edges = [["a", "c"], ["c", "d"], ["d", "c"], ["d", "e"]]
    round1 = ["d", ["c", ["a", 1]]]
    assert run(plan, TELL, 1, edges=edges) == ["e", ["d", ["c", round1]]]


def test_a_branch_is_one_node_and_arms_that_did_not_run_are_left_out():
    filters = {**TELL, "if": lambda x: "yes"}
    plan = sequence("a", branch("if", yes=execute("b"), no=execute("c")), "d")
    edges = [["a", "if"], ["if", "b"], ["if", "c"], ["b", "d"], ["c", "d"]]
    assert run(plan, filters, 1, edges=edges) == ["d", ["b", ["a", 1]]]


def test_a_composites_nodes_are_all_visible():
    plan = sequence({"Composite": {"node_ids": ["a", "b"]}}, "c")
    assert run(plan, TELL, 1, edges=[["a", "b"], ["a", "c"]]) == ["c", ["a", 1]]


def test_a_remote_part_receives_what_its_first_node_reads():
    plan = sequence("a", "b", remote("r", sequence("c", "d")))
    with pytest.raises(Suspend) as caught:
        World(plan, TELL, edges=[["a", "c"], ["c", "d"]]).run(1)
    assert caught.value.children[0]["value"] == ["a", 1]


def test_a_remote_part_cannot_read_from_several_places():
    plan = sequence("a", "b", remote("r", sequence("c", "d")))
    with pytest.raises(InvalidPipeline, match="'r' runs as a plan of its own .*'c' from \\['a'\\]; 'd' from \\['b'\\]"):
        World(plan, TELL, edges=[["a", "c"], ["b", "d"]]).run(1)


@pytest.mark.parametrize("plan", [sequence("a", "b"), parallel("b", "a"), parallel(parallel("b"), "a")])
def test_edges_must_lead_forward(plan: Any):
    with pytest.raises(InvalidPipeline, match="'b' does not run before 'a'"):
        run(plan, TELL, 1, edges=[["b", "a"]])


def test_the_middle_of_a_part_that_ran_elsewhere_cannot_be_read():
    plan = sequence("a", parallel(sequence("b", "c"), "d"), "e")
    journal = {f"1.{i}": pack({"state": "succeeded", "output": i, "states": {}}) for i in range(2)}
    with pytest.raises(InvalidPipeline, match="'e' reads from 'b', which runs inside a part that runs elsewhere"):
        World(plan, TELL, edges=[["b", "e"]], spread=True, journal=journal).run(1)


@pytest.mark.parametrize("edges", ["ab", [["a"]], [["a", 1]], {"a": "b"}])
def test_edges_must_be_pairs(edges: Any):
    with pytest.raises(InvalidPipeline, match="list of pairs"):
        as_pairs({"edges": edges})
