"""Filter hosts as processes: what they send, and what user code may do to them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from somatize_worker.hosts.inside.note import Note, read
from somatize_worker.packing import Reference, pack, unpack
from tests.integration.inside.hosting import Hosted, eventually, is_alive, spec
from tests.unit.inside.world import Scaler, execute, parallel, remote, sequence


def test_a_plan_runs_and_the_host_is_clean_afterwards(host: Hosted):
    assert host.ready == {"pid": host.process.pid, "python": sys.version.split()[0]}
    ended = host.run(spec(sequence("a", "b"), {"a": lambda x: x + 1, "b": lambda x: x * 2}, 3))
    assert ended.output == 8
    assert ended.content["clean"] is True
    assert ended.content["states"] == {}
    assert [event["event_type"] for event in ended.events] == [
        "RunStarted", "NodeStarted", "NodeCompleted", "NodeStarted", "NodeCompleted", "RunCompleted",
    ]  # fmt: skip
    assert ended.events[0]["plan_summary"] == {"total_nodes": 2, "cached_nodes": 0, "parallel_branches": 0}


def test_run_events_are_only_those_of_the_whole_plan_and_the_first_attempt(host: Hosted):
    later = host.run(spec(execute("a"), {"a": abs}, 3), first=False)
    assert [event["event_type"] for event in later.events] == ["NodeStarted", "NodeCompleted", "RunCompleted"]
    child = host.run(spec(execute("a"), {"a": abs}, 3, parent="p0", run_id="p0"))
    assert [(e["event_type"], e["run_id"]) for e in child.events] == [("NodeStarted", "p0"), ("NodeCompleted", "p0")]
    silent = host.run(spec(execute("a"), {"a": abs}, 3, events=False))
    assert silent.events == []
    failed = host.run(spec(execute("a"), {"a": lambda x: 1 / 0}, 3))
    assert [event["event_type"] for event in failed.events][-2:] == ["NodeFailed", "RunFailed"]


def test_large_values_are_files_and_are_read_in_place(host: Hosted):
    value = np.arange(1 << 17, dtype=np.float64)

    def double(x):
        assert not x.flags.writeable
        return x * 2

    ended = host.run(spec(execute("a"), {"a": double}, host.put(value)))
    assert isinstance(ended.output, Reference)
    np.testing.assert_array_equal(host.get(ended.output), value * 2)


def test_a_value_that_is_handed_through_is_not_written_again(host: Hosted):
    reference = host.put(np.zeros(1 << 17))
    ended = host.run(spec(execute("a"), {"a": lambda x: x}, reference))
    assert ended.output == reference


def test_a_missing_reference_is_named(host: Hosted):
    ended = host.run(spec(execute("a"), {"a": abs}, Reference(type="Local", path="ab/nothing.npy")))
    assert "there is no nothing.npy" in ended.error
    assert ended.content["error_type"] == "somatize_worker.errors.MissingData"


def test_fit_returns_states_and_forward_takes_them(host: Hosted):
    plan = execute("s")
    x = np.array([1.0, 3.0])
    fitted = host.run(spec(plan, {"s": Scaler()}, x, mode={"Fit": {"y": None, "batch_size": None}}))
    assert fitted.content["states"] == {"s": {"mean": 2.0}}
    forwarded = host.run(spec(plan, {"s": Scaler()}, x, states=fitted.content["states"]))
    np.testing.assert_array_equal(forwarded.output, [-1.0, 1.0])


def test_filters_and_targets_may_be_references(host: Hosted):
    class Learns:
        _kind = "trainable"

        def fit(self, x, y):
            return {"sum": float(y.sum())}

        def forward(self, x, state):
            return state["sum"]

    whole = unpack(spec(execute("s"), {"s": Learns()}, 1))
    y = host.put(np.ones(1 << 15))
    whole["filters"] = host.put(pack(whole["filters"]))
    whole["mode"] = {"Fit": {"y": y, "batch_size": None}}
    assert host.run(pack(whole)).output == float(1 << 15)


def test_a_plan_for_each_item(host: Hosted):
    ended = host.run(spec(sequence("a", "b"), {"a": lambda x: x + 1, "b": lambda x: x * x}, [1, 2, 3], each=True))
    assert ended.output == [4, 9, 16]
    assert [event["event_type"] for event in ended.events] == ["RunStarted", "RunCompleted"]


def test_an_output_that_cannot_travel_names_node_and_type(host: Hosted):
    ended = host.run(spec(sequence("a", "b"), {"a": lambda x: x, "b": lambda x: {"deep": [object()]}}, 1))
    assert "the output of node 'b': an object of type object at ['deep'][0] cannot travel" in ended.error
    assert ended.content["node_id"] == "b"


def test_parts_for_other_workers_are_handed_out_and_taken_in(host: Hosted):
    plan = sequence("a", remote("r"), "b")
    packed = spec(plan, {"a": lambda x: np.full(1 << 16, float(x)), "b": lambda x: x + 1}, 7)
    first = host.run(packed)
    assert first.kind == "suspended"
    [child] = first.content["children"]
    assert {key: child[key] for key in ("path", "node_id", "target", "plan", "node_ids")} == {
        "path": "1", "node_id": "r", "target": {"Tag": "gpu"}, "plan": execute("r"), "node_ids": ["r"],
    }  # fmt: skip
    np.testing.assert_array_equal(host.get(child["input"]), np.full(1 << 16, 7.0))
    journal = first.content["journal"]
    assert unpack(journal["0"])["output"] == child["input"]
    journal["1"] = pack({"state": "succeeded", "output": 41, "states": {"r": 1}, "duration_ms": 3})
    second = host.run(packed, journal=journal, first=False)
    assert second.output == 42
    assert second.content["states"] == {"r": 1}


# ── what user code may do ────────────────────────────────────────────────────────────────────────────────────────


def after(host: Hosted) -> None:
    """The host goes on."""
    assert host.run(spec(execute("a"), {"a": lambda x: x + 1}, 1)).output == 2


@pytest.mark.parametrize("leave", ["sys.exit(3)", "raise KeyboardInterrupt", "quit()"])
def test_a_filter_that_wants_to_end_the_process_fails_its_plan(host: Hosted, leave: str):
    def filter(x):
        exec("import sys\n" + leave)

    ended = host.run(spec(execute("a"), {"a": filter}, 1))
    assert "node 'a': the filter" in ended.error
    after(host)


def test_os_exit_ends_the_process_and_the_note_names_the_node(host: Hosted, tmp_path: Path):
    def filter(x):
        import os

        os._exit(7)

    note = tmp_path / "note"
    host.send(spec(sequence("a", "exits"), {"a": abs, "exits": filter}, 1), note=str(note))
    with pytest.raises(EOFError):
        host.end()
    assert host.process.wait(60) == 7
    assert read(note) == "exits"


def test_the_note_is_empty_when_no_node_runs(host: Hosted, tmp_path: Path):
    note = tmp_path / "note"
    Note.at(str(note)).write("left over")
    host.run(spec(execute("a"), {"a": abs}, 1), note=str(note))
    assert read(note) is None


def test_a_flood_of_output_never_touches_the_wire(host: Hosted):
    def filter(x):
        import os

        for fd in (1, 2):
            os.write(fd, b"x" * (1 << 16))
        print("y" * (1 << 20))
        os.write(1, b"\x00\x00\x00\x05junk!")
        return "quiet"

    assert host.run(spec(execute("a"), {"a": filter}, 1)).output == "quiet"
    assert host.printed().count("y") == 1 << 20
    after(host)


def test_output_is_out_before_the_plan_is_done(host: Hosted):
    def filter(x):
        import ctypes
        import sys

        sys.stdout.write("from python")
        ctypes.PyDLL(None).puts(b"from C")

    host.run(spec(execute("a"), {"a": filter}, 1))
    assert all(text in host.printed() for text in ("from python", "from C"))


def test_processes_left_behind_are_told(host: Hosted):
    def filter(x):
        import subprocess

        return subprocess.Popen(["sleep", "600"]).pid

    ended = host.run(spec(execute("a"), {"a": filter}, 1))
    assert ended.content["clean"] is False
    os.kill(ended.output, signal.SIGKILL)


def test_daemons_left_behind_are_told(host: Hosted):
    def filter(x):
        import subprocess

        command = "setsid sleep 600 >/dev/null & echo $!"
        return int(subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, check=True).stdout.split()[0])

    ended = host.run(spec(execute("a"), {"a": filter}, 1))
    assert ended.content["clean"] is False
    os.kill(ended.output, signal.SIGKILL)


def test_threads_left_behind_are_told_and_a_pools_that_end_are_not(host: Hosted):
    def stays(x):
        import threading

        threading.Thread(target=threading.Event().wait, daemon=True).start()

    def ends(x):
        from concurrent.futures import ThreadPoolExecutor

        return list(ThreadPoolExecutor(2).map(abs, [-1, -2]))

    assert host.run(spec(execute("a"), {"a": ends}, 1)).content["clean"] is True
    assert host.run(spec(execute("a"), {"a": stays}, 1)).content["clean"] is False


def test_a_child_that_runs_on_in_the_plan_says_nothing(host: Hosted):
    def filter(x):
        import os

        return "child" if os.fork() == 0 else "parent"

    ended = host.run(spec(sequence("a", "b"), {"a": filter, "b": lambda x: x}, 1))
    assert ended.output == "parent"
    after(host)


def test_a_changed_folder_and_streams_are_put_back(host: Hosted):
    def spoil(x):
        import io
        import os
        import sys

        os.chdir("/")
        sys.stdout = io.StringIO()

    def look(x):
        import os
        import sys

        return os.getcwd(), sys.stdout is sys.__stdout__

    host.run(spec(execute("a"), {"a": spoil}, 1))
    assert host.run(spec(execute("a"), {"a": look}, 1)).output == [os.getcwd(), True]


def test_the_end_of_the_wire_ends_everything_even_in_a_long_call(host: Hosted):
    def filter(x):
        import subprocess
        import time

        print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
        time.sleep(600)

    host.send(spec(execute("a"), {"a": filter}, 1))
    child = eventually(lambda: host.printed().strip(), "the child's number")
    host.channel.close()
    assert host.process.wait(60) == -signal.SIGKILL
    eventually(lambda: not is_alive(int(child)), "the child is gone")


def test_stop_ends_the_host(host: Hosted):
    host.channel.send(["stop"])
    assert host.process.wait(60) == 0


def test_filters_are_fresh_for_each_plan_unless_kept(host: Hosted):
    class Counts:
        def __init__(self):
            self.count = 0

        def forward(self, x):
            self.count += 1
            return self.count

    packed = spec(execute("a"), {"a": Counts()}, 1)
    assert [host.run(packed).output for _ in range(3)] == [1, 1, 1]
    assert [host.run(packed, keep=True).output for _ in range(3)] == [1, 2, 3]
    assert host.run(packed).output == 1


def test_a_long_node_is_told_while_it_runs_and_events_come_live(host: Hosted):
    def wait(x):
        import os
        import time

        while not os.path.exists(x):
            time.sleep(0.01)

    gate = host.folder / "gate"
    host.send(spec(sequence("a", "waits"), {"a": lambda x: x, "waits": wait}, str(gate)))
    seen: list[Any] = []
    while ["node", "waits"] not in seen or not any("waits" in str(frame) for frame in seen if frame[0] == "events"):
        seen.append(host.receive())
    gate.touch()
    assert host.end().kind == "done"


def test_what_is_done_is_in_the_journal_while_the_next_node_runs(host: Hosted):
    def wait(x):
        import os
        import time

        while not os.path.exists(x):
            time.sleep(0.01)
        return "through"

    gate = host.folder / "gate"
    packed = spec(sequence("a", "b", "waits"), {"a": str, "b": str, "waits": wait}, str(gate))
    host.send(packed)
    journal: dict[str, bytes] = {}
    while not journal:
        frame = host.receive()
        journal = frame[1] if frame[0] == "journal" else {}
    os.killpg(host.process.pid, signal.SIGKILL)
    gate.touch()
    with Hosted(host.folder) as another:
        again = another.run(packed, journal=journal)
    assert again.output == "through"
    started = [event["node_id"] for event in again.events if event["event_type"] == "NodeStarted"]
    assert started == {"0": ["b", "waits"], "1": ["waits"]}[max(journal)]


def test_reports_become_events(host: Hosted):
    def filter(x):
        from somatize_worker import report

        for number in range(1000):
            report(progress=number / 999, metrics={"loss": 1.0} if number < 300 else None)

    ended = host.run(spec(execute("a"), {"a": filter}, 1, study_id="s"))
    metrics = [event for event in ended.events if event["event_type"] == "TrialMetric"]
    assert [event["metric"]["step"] for event in metrics] == list(range(300))
    assert {(event["study_id"], event["trial_id"]) for event in metrics} == {("s", "a")}
    progress = [event["progress"] for event in ended.events if event["event_type"] == "NodeProgress"]
    assert progress[-1] == 1.0
    assert progress == sorted(progress)
    assert len(progress) < 100


def test_reports_from_a_thread_of_the_nodes_count_for_it(host: Hosted):
    def filter(x):
        import threading

        from somatize_worker import report

        thread = threading.Thread(target=report, args=(0.5,))
        thread.start()
        thread.join()

    ended = host.run(spec(execute("a"), {"a": filter}, 1))
    assert [(e["node_id"], e["progress"]) for e in ended.events if e["event_type"] == "NodeProgress"] == [("a", 0.5)]


def test_the_cache_is_asked_and_fed(host: Hosted):
    plan, filters = sequence("a", "b"), {"a": lambda x: x + 1.0, "b": lambda x: x * 2}
    packed = spec(plan, filters, np.zeros(1 << 15), cache=True)
    first = host.run(packed)
    assert host.asked == ["find", "keep", "find", "keep"]
    second = host.run(packed)
    assert [e["event_type"] for e in second.events] == ["RunStarted", "NodeCacheHit", "NodeCacheHit", "RunCompleted"]
    np.testing.assert_array_equal(host.get(second.output), host.get(first.output))


def test_the_package_that_runs_is_the_hosts_own(tmp_path: Path):
    other = tmp_path / "site" / "somatize_worker"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('the wrong one')")

    def filter(x):
        import sys

        import somatize_worker

        return [somatize_worker.__file__, [path for path in sys.path if path.endswith("inside")]]

    with Hosted(tmp_path, environ={"PYTHONPATH": str(other.parent)}) as host:
        path, inside = host.run(spec(execute("a"), {"a": filter}, 1)).output
    assert Path(path).is_relative_to(Path(__file__).parents[3])
    assert inside == []


BLOCKED = """
import sys

class Blocks:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "redis", "celery", "kombu", "typer", "rich", "psutil"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocks())
"""


def test_a_host_needs_only_numpy_cloudpickle_and_msgpack(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)

    def filter(x):
        from somatize_worker import Filter, report

        report(progress=0.5)
        try:
            import pydantic  # noqa: F401
        except ModuleNotFoundError:
            return [Filter.__name__, *sorted({"redis", "celery"} & set(__import__("sys").modules))]

    with Hosted(tmp_path, environ={"PYTHONPATH": str(tmp_path)}) as host:
        ended = host.run(spec(execute("a"), {"a": filter}, 1))
        assert ended.output == ["Filter"]
        assert "NodeProgress" in [event["event_type"] for event in ended.events]


def test_every_failure_is_an_answer(host: Hosted):
    for packed, message in [
        (spec(sequence("a", "z"), {"a": abs}, 1), "no filter for node 'z'"),
        (spec(execute("a"), {"a": b"junk"}, 1), "does not unpickle on worker w1"),
        (spec(execute("a"), {"a": abs}, 1, python="2.7"), "pickled by Python 2.7"),
        (
            spec(execute("a"), {"a": abs}, 1, mode={"Fit": {"y": None, "batch_size": 0}}),
            "batch_size must be at least 1",
        ),
        (
            spec(execute("a"), {"a": abs}, [1], mode={"Fit": {"y": None, "batch_size": None}}, each=True),
            "only forwards",
        ),
        (spec({"Nonsense": {}}, {}, 1), "unknown kind of plan"),
        (spec(parallel("a", sequence("a")), {"a": abs}, 1), "two branches"),
        (spec(execute("a"), {"a": abs}, 1, edges="ab"), "metadata.edges"),
    ]:
        ended: Any = host.run(packed)
        assert message in ended.error
        assert ended.events[-1]["event_type"] == "RunFailed"
        assert ended.content["clean"] is True
    after(host)


def test_what_a_plan_used_is_given_back(host: Hosted):
    def resident() -> int:
        status = Path(f"/proc/{host.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) << 10

    class Large:
        _kind = "trainable"

        def fit(self, x, y=None):
            return np.ones(x)

        def forward(self, x, state):
            return np.ones(x) * state

    before = resident()
    filters = {"a": Large(), "b": lambda x: float(x.sum())}
    ended = host.run(spec(sequence("a", "b"), filters, 25_000_000, mode={"Fit": {"y": None, "batch_size": None}}))
    assert ended.output == 25_000_000
    eventually(lambda: resident() < before + (50 << 20), "the arrays are gone")


def test_files_for_the_journal_alone_are_named_when_the_plan_is_over(host: Hosted):
    def make(x):
        import time

        time.sleep(0.1)
        return np.ones(1 << 17)

    ended = host.run(spec(sequence("a", "b"), {"a": make, "b": lambda x: x * 2}, 1))
    files = {str(path.relative_to(host.folder)) for path in host.folder.rglob("*.npy")}
    garbage = {reference.fields["path"] for reference in ended.content["garbage"]}
    assert files - garbage == {ended.output.fields["path"]}
    assert len(garbage) == 1
