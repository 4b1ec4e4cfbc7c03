"""A value keeps its name in the cache wherever its plan goes on: in a helper, a child plan, after a wait or a crash."""

from __future__ import annotations

from typing import Any

import numpy as np

from somatize_worker.hosts.inside.caching import Digests
from somatize_worker.packing import pack, unpack
from tests.unit.inside.world import Memory, World, remote, sequence

KEY = bytes(range(32))


def test_names_travel_with_values_and_parts_of_values() -> None:
    here, there = Digests(), Digests()
    named = np.arange(3.0)
    here.name(named, KEY)
    value = {"a": [named, 1], "b": np.arange(3.0), "c": "text"}
    names = unpack(pack(here.names_in(value)))
    copy = unpack(pack(value))
    there.take_names(copy, names)
    assert here.of(named) == there.of(copy["a"][0]) == KEY
    assert here.of(value) == there.of(copy) != Digests().of(value)
    assert here.of(value["b"]) == there.of(copy["b"]) != KEY


def test_a_view_of_a_named_array_has_its_name() -> None:
    digests = Digests()
    named = np.arange(3.0)
    digests.name(named, KEY)
    assert digests.names_in(named.view()) == [[[], KEY]]
    assert digests.names_in(named[1:]) == []


def test_a_plan_that_waited_finds_what_one_in_one_process_kept() -> None:
    ran: list[str] = []

    def noted(name: str) -> Any:
        def filter(x: Any) -> Any:
            ran.append(name)
            return x + 1

        return filter

    filters = {"a": noted("a"), "b": noted("b"), "far": lambda x: x}
    memory = Memory()
    World(sequence("a", "b"), filters, cache=True, memory=memory, live=True).run(np.arange(4.0))
    assert ran == ["a", "b"]
    child = World(sequence("a"), filters, cache=True, memory=memory, live=True)
    output = child.run(np.arange(4.0))
    names = child.journal.digests.names_in(output)
    entry = pack({"state": "succeeded", "output": output, "states": {}, "names": names})
    parent = World(
        sequence(remote("far", {"Execute": {"node_id": "a"}}), "b"),
        filters,
        cache=True,
        memory=memory,
        journal={"0": entry},
        live=True,
    )
    np.testing.assert_array_equal(parent.run(np.arange(4.0)), np.arange(4.0) + 2)
    assert ran == ["a", "b"]
