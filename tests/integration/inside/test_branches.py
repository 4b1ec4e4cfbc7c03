"""Branches of a ``Parallel`` at the same time, in helper processes of the host."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from somatize_worker.packing import unpack
from tests.integration.inside.hosting import Hosted, eventually, is_alive, spec
from tests.unit.inside.world import Scaler, execute, loop, parallel, remote, sequence


def spin(seconds: float) -> Callable[[Any], Any]:
    """A filter that uses the processor for about so long, in pure Python, and tells its process."""

    def filter(x):
        import os
        import time

        until = time.thread_time() + seconds
        number = 0
        while time.thread_time() < until:
            number += 1
        return os.getpid()

    return filter


def meet(names: str, mine: str) -> Callable[[Any], Any]:
    """A filter that ends when every other has begun, in the folder that is its input: they must run at once."""

    def filter(folder):
        import os
        import time

        open(os.path.join(folder, mine), "w").close()
        until = time.monotonic() + 60
        while not all(os.path.exists(os.path.join(folder, name)) for name in names):
            assert time.monotonic() < until, "the others did not start"
            time.sleep(0.01)
        return os.getpid()

    return filter


def together(names: str) -> dict[str, Any]:
    return {name: meet(names, name) for name in names}


def test_branches_run_at_the_same_time_and_their_processes_stay_warm(host: Hosted):
    first = host.run(spec(parallel(*"abc"), together("abc"), str(host.folder)), cores=3)
    assert len(set(first.output.values())) == 3
    assert host.process.pid in first.output.values()
    assert first.content["clean"] is True
    assert set(first.output.values()) == {host.process.pid, *first.content["helpers"]}
    for name in "abc":
        (host.folder / name).unlink()
    second = host.run(spec(parallel(*"abc"), together("abc"), str(host.folder)), cores=3)
    assert set(second.output.values()) == set(first.output.values())


def test_events_of_all_branches_are_there_and_in_order(host: Hosted):
    plan = sequence(parallel(sequence("a", "x"), sequence("b", "y")), "z")
    filters = {**together("ab"), "x": lambda x: x, "y": lambda y: y, "z": sorted}
    ended = host.run(spec(plan, filters, str(host.folder)))
    assert ended.output == ["x", "y"]
    kinds = [(event["event_type"], event.get("node_id")) for event in ended.events]
    assert sorted(kinds, key=str) == sorted(
        [("RunStarted", None), ("RunCompleted", None)]
        + [(kind, node) for kind in ("NodeStarted", "NodeCompleted") for node in "abxyz"],
        key=str,
    )
    for first, then in [("a", "x"), ("b", "y"), ("x", "z"), ("y", "z")]:
        assert kinds.index(("NodeCompleted", first)) < kinds.index(("NodeStarted", then))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_branches_on_two_cores_take_clearly_less_than_their_sum(host: Hosted):
    filters = {"a": spin(0.8), "b": spin(0.8)}
    host.run(spec(parallel("a", "b"), filters), cores=2)  # starts the helper

    def seconds(plan: Any, cores: int) -> float:
        started = time.monotonic()
        assert host.run(spec(plan, filters), cores=cores).kind == "done"
        return time.monotonic() - started

    ratios = []
    for _ in range(8):  # other work on the machine may take a core away for a while
        ratios.append(seconds(parallel("a", "b"), 2) / seconds(sequence("a", "b"), 1))
        if ratios[-1] < 0.8:
            return
    if not two_processes_scale():
        pytest.skip("other work keeps this machine from running two processes at the same time")
    raise AssertionError(f"at the same time against one after the other: {ratios}")


def two_processes_scale() -> bool:
    """Whether two plain processes at the same time take clearly less than one after the other."""
    command = [sys.executable, "-c", "for _ in range(20_000_000): pass"]

    def seconds(at_once: int) -> float:
        started = time.monotonic()
        for _ in range(2 // at_once):
            running = [subprocess.Popen(command) for _ in range(at_once)]
            assert [process.wait() for process in running] == [0] * at_once
        return time.monotonic() - started

    return max(seconds(2) / seconds(1) for _ in range(3)) < 0.8


def test_short_branches_see_no_other_process(host: Hosted):
    def pid(x):
        import os

        return os.getpid()

    ended = host.run(spec(parallel("a", "b"), {"a": pid, "b": pid}, 1), cores=4)
    assert ended.output == {"a": host.process.pid, "b": host.process.pid}
    assert ended.content["helpers"] == []


def test_one_core_runs_them_one_after_the_other(host: Hosted):
    ended = host.run(spec(parallel("a", "b"), {"a": spin(0.1), "b": spin(0.1)}), cores=1)
    assert set(ended.output.values()) == {host.process.pid}


def test_large_values_and_live_objects_travel_both_ways(host: Hosted):
    def work(meeting: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda pair: ({meeting(pair[0])}, pair[1] * 2)

    plan = sequence("make", parallel("a", "b"), "check")
    filters = {
        "make": lambda folder: (folder, np.arange(1e6)),
        "a": work(meet("ab", "a")),
        "b": work(meet("ab", "b")),
        "check": lambda outputs: [type(outputs["b"][0]).__name__, float(outputs["b"][1].sum()), len(outputs["a"][0])],
    }
    ended = host.run(spec(plan, filters, str(host.folder)))
    assert ended.output == ["set", float(np.arange(1e6).sum() * 2), 1]
    files = {path.name for path in host.folder.rglob("*") if path.is_file()}
    journaled = {os.path.basename(reference.fields["path"]) for reference in ended.content["garbage"]}
    assert files - journaled == {"a", "b", "printed"}


def test_what_cannot_leave_stays_here(host: Hosted):
    def wait(x):
        import os
        import time

        time.sleep(0.3)
        return [next(x), os.getpid()]

    filters = {"make": lambda x: (number for number in range(10)), "a": wait, "b": wait}
    ended = host.run(spec(sequence("make", parallel("a", "b")), filters, 1))
    assert sorted(number for number, _ in ended.output.values()) == [0, 1]
    assert {pid for _, pid in ended.output.values()} == {host.process.pid}


def test_fitted_states_come_back(host: Hosted):
    class Fits(Scaler):
        def __init__(self, wait):
            self.wait = wait

        def fit(self, x, y=None):
            self.wait(y)
            return {"mean": float(np.mean(x))}

    plan = sequence(parallel(sequence("a", "c"), "b"), "d")
    filters = {"a": Fits(meet("ab", "a")), "b": Fits(meet("ab", "b")), "c": Scaler(), "d": lambda x: x["b"]}
    mode = {"Fit": {"y": str(host.folder), "batch_size": None}}
    ended = host.run(spec(plan, filters, np.array([1.0, 3.0]), mode=mode))
    np.testing.assert_array_equal(ended.output, [-1.0, 1.0])
    assert ended.content["states"] == {"a": {"mean": 2.0}, "b": {"mean": 2.0}, "c": {"mean": 0.0}}


def test_with_edges_nodes_after_a_branch_read_inside_it(host: Hosted):
    plan = sequence("in", parallel(sequence("a", "x"), sequence("b", "y")), "z")
    edges = [["in", "a"], ["in", "b"], ["a", "x"], ["in", "y"], ["a", "z"], ["b", "z"], ["y", "z"]]
    filters = {**together("ab"), "in": lambda x: x, "x": str, "y": lambda y: ["y", y], "z": lambda z: z}
    ended = host.run(spec(plan, filters, str(host.folder), edges=edges))
    assert set(ended.output) == {"a", "b", "y"}
    assert ended.output["y"] == ["y", str(host.folder)]
    assert ended.output["a"] != ended.output["b"]


def test_parts_for_other_workers_inside_branches(host: Hosted):
    plan = parallel(sequence("a", remote("r")), sequence("b", remote("s")), "c")
    packed = spec(plan, {**together("ab"), "c": lambda x: 3}, str(host.folder))
    first = host.run(packed)
    assert first.kind == "suspended"
    assert sorted(child["path"] for child in first.content["children"]) == ["0.1", "1.1"]
    journal = first.content["journal"]
    for frame in first.frames:
        journal |= frame[1] if frame[0] == "journal" else {}
    assert {"0.0", "1.0", "2"} <= set(journal)
    inputs = {child["node_id"]: child["input"] for child in first.content["children"]}
    assert unpack(journal["0.0"])["output"] == inputs["r"]


def test_a_branch_that_fails_stops_the_others(host: Hosted):
    def fails(folder):
        meeting(folder)
        raise ValueError("no")

    def long(folder):
        import time

        other(folder)
        time.sleep(600)

    meeting, other = meet("ab", "a"), meet("ab", "b")
    ended = host.run(spec(parallel("a", "b"), {"a": fails, "b": long}, str(host.folder)))
    assert ended.error == "node 'a': ValueError: no"
    assert [event["event_type"] for event in ended.events][-2:] == ["NodeFailed", "RunFailed"]
    if ended.content["clean"]:
        assert host.run(spec(execute("a"), {"a": lambda x: x}, 5)).output == 5
        assert host.run(spec(parallel("a", "b"), {"a": spin(0.2), "b": spin(0.2)})).kind == "done"


def test_a_helper_that_fails_ends_the_plan_though_the_host_is_busy(host: Hosted):
    def busy(folder):
        import time

        first(folder)
        time.sleep(600)

    def fails(folder):
        second(folder)
        raise ValueError("no")

    first, second = meet("ab", "a"), meet("ab", "b")
    ended = host.run(spec(parallel("a", "b"), {"a": busy, "b": fails}, str(host.folder)))
    assert ended.error == "node 'b': ValueError: no"
    assert ended.content["clean"] is False
    assert ended.events[-1]["event_type"] == "RunFailed"
    host.process.wait(60)


def test_a_helper_that_dies_fails_the_plan_and_says_how(host: Hosted):
    def dies(folder):
        import os
        import signal

        meeting(folder)
        os.kill(os.getpid(), signal.SIGSEGV)

    meeting, other = meet("ab", "b"), meet("ab", "a")
    ended = host.run(spec(parallel("a", "b"), {"a": other, "b": dies}, str(host.folder)))
    assert "was killed by SIGSEGV while it ran node 'b'" in ended.error
    assert ended.content["error_type"] == "somatize_worker.errors.HostDied"
    assert ended.content["node_id"] == "b"


def test_helpers_end_with_their_host(host: Hosted):
    pids = host.run(spec(parallel("a", "b"), together("ab"), str(host.folder))).content["helpers"]
    assert len(pids) == 1
    host.process.kill()
    host.process.wait(60)
    eventually(lambda: not any(map(is_alive, pids)), "the helpers are gone")


def test_a_helper_with_something_left_behind_is_not_used_again(host: Hosted):
    def leaves(folder):
        import threading

        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return meeting(folder)

    meeting, other = meet("ab", "b"), meet("ab", "a")
    ended = host.run(spec(parallel("a", "b"), {"a": other, "b": leaves}, str(host.folder)))
    assert ended.content["clean"] is True
    eventually(lambda: not is_alive(ended.output["b"]), "the helper is gone")


def test_nested_and_repeated_branches(host: Hosted):
    inner = loop("l", parallel("a", parallel("b", "c")), 2)
    plan = sequence(parallel(inner, "d"), "e")
    filters = {name: spin(0.05) for name in "abcd"} | {"e": lambda x: [sorted(x), sorted(x["l"]), sorted(x["l"]["c"])]}
    ended = host.run(spec(plan, filters), cores=3)
    assert ended.output == [["d", "l"], ["a", "c"], ["b", "c"]]


def test_what_a_branch_printed_is_in_the_hosts_output(host: Hosted):
    def prints(folder):
        import os

        print("hello from", os.getpid())
        return meeting(folder)

    meeting, other = meet("ab", "b"), meet("ab", "a")
    ended = host.run(spec(parallel("a", "b"), {"a": other, "b": prints}, str(host.folder)))
    assert f"hello from {ended.output['b']}" in host.printed()


def test_a_helpers_questions_are_answered(host: Hosted):
    class Uses(Scaler):
        def __init__(self, wait):
            self.wait = wait

        def forward(self, folder, state):
            self.wait(folder)
            return float(state["weights"].sum())

    state = host.put({"weights": np.ones(1 << 15)})
    filters = {"a": Uses(meet("ab", "a")), "b": Uses(meet("ab", "b"))}
    packed = spec(parallel("a", "b"), filters, str(host.folder), states={"a": state, "b": state}, cache=True)
    assert host.run(packed).output == {"a": 1 << 15, "b": 1 << 15}
    again = host.run(packed)
    assert [event["event_type"] for event in again.events].count("NodeCacheHit") == 2
