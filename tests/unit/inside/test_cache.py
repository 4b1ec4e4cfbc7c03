"""The content-addressed cache: what is found, what is computed again, and under which keys."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from somatize_worker.hosts.inside import caching
from somatize_worker.hosts.inside.caching import Digests, for_output, for_state, of_parts
from somatize_worker.pipeline import fingerprint_of
from somatize_worker.protocol import CacheKey
from tests.unit.inside.world import Memory, Scaler, World, parallel, sequence


def test_keys_are_the_protocols():
    a, b, c = (CacheKey.hash_data(data) for data in (b"a", b"b", b"training_data"))
    assert of_parts(b"training_data") == c.digest
    assert for_state(a.digest, b.digest) == CacheKey.for_state(a, b).digest
    assert for_output(a.digest, b.digest, c.digest) == CacheKey.for_output(a, b, c).digest
    assert caching.configuration("n", b"a", {}) == a.digest
    assert caching.configuration("n", b"a", {"n": str(b)}) == b.digest


@pytest.mark.parametrize(
    "value",
    [None, True, 1, 1.0, "1", b"1", [1], {"1": 1}, np.array(1), np.array([1.0]), np.array([[1.0]]), np.array([1], "f4"),
     [], {}, [[]], np.zeros(0), {"a": np.ones(2)}, {"a": np.ones(3)}, float("nan"), "é"],
)  # fmt: skip
def test_equal_content_has_one_digest_and_other_content_another(value: Any):
    others = [False, 2, 2.0, "2", b"2", [2], {"2": 2}, {"1": 2}, np.array(2), np.array([2.0]), np.array([[1.0, 1]])]
    assert Digests().of(value) == Digests().of(copy.deepcopy(value))
    assert Digests().of(value) not in [Digests().of(other) for other in others]


def test_digests_do_not_depend_on_the_order_of_keys_or_of_memory():
    assert Digests().of({"a": 1, "b": 2}) == Digests().of({"b": 2, "a": 1})
    array = np.arange(6.0).reshape(2, 3)
    assert Digests().of(array) == Digests().of(np.asfortranarray(array))
    assert Digests().of(object()) is None


class Cluster:
    """Runs with one cache; ``hits`` and ``started`` are the nodes of the last run that came from it, or ran."""

    def __init__(self) -> None:
        self.memory = Memory()

    def run(self, plan: Any, filters: dict[str, Any], value: Any, **options: Any) -> World:
        fingerprints = {name: fingerprint_of(filter) for name, filter in filters.items()}
        world = World(plan, filters, memory=self.memory, cache=True, fingerprints=fingerprints, **options)
        self.output = world.run(value)
        happened = world.happened()
        self.hits = [event["node_id"] for event in happened if event["event_type"] == "NodeCacheHit"]
        self.started = [event["node_id"] for event in happened if event["event_type"] == "NodeStarted"]
        return world


def test_the_second_run_computes_nothing():
    cluster = Cluster()
    plan, filters = sequence("a", "s", parallel("b", "c")), FILTERS
    first = cluster.run(plan, filters, np.arange(4.0), fit=True)
    output, states = cluster.output, first.states()
    assert cluster.hits == []
    again = cluster.run(plan, filters, np.arange(4.0), fit=True)
    assert (cluster.hits, cluster.started) == (["a", "s", "b", "c"], [])
    np.testing.assert_equal(cluster.output, output)
    assert again.states() == states


FILTERS = {"a": lambda x: x + 1, "s": Scaler(), "b": lambda x: x.sum(), "c": lambda x: (1, x.tolist())}


@pytest.mark.parametrize(
    ("change", "hits"),
    [
        ({"filters": {"b": lambda x: x.max()}}, ["a", "s", "c"]),
        ({"filters": {"a": lambda x: x + 2}}, []),
        ({"value": np.arange(5.0)}, []),
        ({"y": [1, 2, 3, 4]}, ["a"]),
        ({"fit": False, "states": {"s": {"mean": 9.0}}}, ["a"]),
    ],
)
def test_a_change_invalidates_what_depends_on_it(change: dict[str, Any], hits: list[str]):
    cluster = Cluster()
    plan = sequence("a", "s", parallel("b", "c"))
    cluster.run(plan, FILTERS, np.arange(4.0), fit=True)
    filters = {**FILTERS, **change.pop("filters", {})}
    cluster.run(plan, filters, change.pop("value", np.arange(4.0)), **{"fit": True, **change})
    assert cluster.hits == hits
    assert sorted([*cluster.hits, *cluster.started]) == ["a", "b", "c", "s"]


def test_a_filter_can_refuse_or_ask_for_itself():
    class Asks:
        _cacheable = True

        def forward(self, x):
            return x + 1

    class Refuses(Asks):
        _cacheable = False

    memory = Memory()
    for _ in range(2):
        world = World(sequence("a", "b"), {"a": Asks(), "b": Refuses()}, memory=memory, cache=False)
        assert world.run(1) == 3
    assert [e["node_id"] for e in world.happened() if e["event_type"] == "NodeCacheHit"] == ["a"]
    world = World(sequence("a", "b"), {"a": Asks(), "b": Refuses()}, memory=memory, cache=True)
    assert world.run(1) == 3
    assert [e["node_id"] for e in world.happened() if e["event_type"] == "NodeStarted"] == ["b"]


def test_only_the_nodes_that_are_named_are_cached():
    memory = Memory()
    for _ in range(2):
        world = World(sequence("a", "b"), {"a": abs, "b": abs}, memory=memory, cache=["b"])
        assert world.run(-1) == 1
    assert [e["node_id"] for e in world.happened() if e["event_type"] == "NodeCacheHit"] == ["b"]


def test_what_a_cached_node_put_out_is_not_read_again_to_name_it(monkeypatch: pytest.MonkeyPatch):
    read: list[Any] = []
    of_array = caching._of_array

    def reading(array: Any) -> bytes:
        read.append(array.shape)
        return of_array(array)

    monkeypatch.setattr(caching, "_of_array", reading)
    cluster = Cluster()
    plan = sequence("a", "b", "c")
    filters = {name: (lambda x: x + 1) for name in "abc"}
    for _ in range(2):
        read.clear()
        cluster.run(plan, filters, np.zeros(1000))
        assert read == [(1000,)]


def test_an_output_that_cannot_leave_is_not_kept_and_the_log_says_so(capfd: pytest.CaptureFixture[str]):
    cluster = Cluster()
    filters = {"a": lambda x: (i for i in range(3)), "b": list}
    for _ in range(2):
        cluster.run(sequence("a", "b"), filters, 1)
        assert cluster.output == [0, 1, 2]
    assert "the output of node 'a' is not cached" in capfd.readouterr().err
