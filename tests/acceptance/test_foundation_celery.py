"""Plain Celery on either side: programs that do not know this package, workers started by hand."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from somatize_worker import Coordinator, Filter, NoWorker, PlanConflict, SomaError, protocol
from somatize_worker.settings import Settings
from tests.support.cluster import Cluster, short
from tests.support.messages import assign_plan
from tests.support.server import Server, free_port, poll


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster({"cpu": 1, "gpu": 1}, slots=1, settings=short()) as running:
        yield running


class Shifts(Filter):
    def __init__(self, size: int = 1) -> None:
        self.size = size

    def fit(self, x: Any, y: Any = None) -> Any:
        return {"mean": float(np.mean(x)), "big": np.ones(self.size)}

    def forward(self, x: Any, state: Any) -> Any:
        return x - state["mean"]


# ── messages from other programs ─────────────────────────────────────────────────────────────────────────────────────

_FOREIGN = """
import json, sys
from celery import Celery

app = Celery(broker=sys.argv[1], backend=sys.argv[1])
request = json.load(sys.stdin)
task = app.send_task("somatize.assign_plan", request["arguments"], queue=request["queue"])
answer = {"task": None, "plan": None, "error": None}
try:
    answer["task"] = task.get(timeout=20)
except Exception as error:
    answer["error"] = [type(error).__name__, str(error)]
answer["state"] = task.state
if request.get("plan_id"):
    result = app.AsyncResult(request["plan_id"])
    answer["plan_state"] = result.state
    if result.successful():
        answer["plan"] = result.get(timeout=5)
assert "somatize_worker" not in sys.modules or answer["error"]
print(json.dumps(answer))
"""


def from_elsewhere(cluster: Cluster, *arguments: Any, plan_id: str = "", queue: str = "gpu") -> dict[str, Any]:
    """What a Celery program in a process of its own gets back."""
    done = subprocess.run(
        [sys.executable, "-c", _FOREIGN, cluster.settings.redis_url],
        input=json.dumps({"arguments": arguments, "queue": queue, "plan_id": plan_id}),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("form", ["object", "text"])
def test_another_program_reads_the_result_message(cluster: Cluster, form: str) -> None:
    message: Any = assign_plan(f"foreign-{form}", lambda x: {"doubled": 2 * x}, 21)
    answer = from_elsewhere(cluster, message if form == "object" else json.dumps(message), plan_id=f"foreign-{form}")
    assert (answer["state"], answer["plan_state"], answer["error"]) == ("SUCCESS", "SUCCESS", None)
    assert answer["task"] == answer["plan"]
    result = answer["task"]
    assert (result["type"], result["plan_id"]) == ("PlanResult", f"foreign-{form}")
    assert result["worker_id"].startswith("gpu-")
    assert result["result"]["status"] == "Success"
    assert result["result"]["output"] == {"delivery": "Inline", "value": {"type": "Json", "data": {"doubled": 42}}}


def test_another_program_reads_a_failure(cluster: Cluster) -> None:
    def fails(x: Any) -> Any:
        raise ValueError(f"will not take {x}")

    answer = from_elsewhere(cluster, assign_plan("foreign-fails", fails, 3), plan_id="foreign-fails")
    assert (answer["state"], answer["plan_state"]) == ("FAILURE", "FAILURE")
    assert answer["error"][0] == "PlanFailed"
    assert "node 'fails': ValueError: will not take 3" in answer["error"][1]


def test_another_program_trains_with_large_states(cluster: Cluster, c: Coordinator) -> None:
    x = np.arange(6.0).reshape(3, 2)
    message = assign_plan("foreign-fit", Shifts(50_000), x, mode="fit", y=np.ones(3))
    result = from_elsewhere(cluster, message)["task"]["result"]
    assert result["output"]["value"]["data"]["values"] == [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
    state = result["states"]["Shifts"]["data"]
    assert state["mean"] == 2.5
    assert len(state["big"]["data"]["values"] if "data" in state["big"] else state["big"]["values"]) == 50_000


def test_a_large_output_comes_as_a_reference(cluster: Cluster, c: Coordinator) -> None:
    result = from_elsewhere(cluster, assign_plan("foreign-large", lambda x: x + np.zeros(100_000), 1.5))["task"]
    assert result["result"]["output"]["delivery"] == "Reference"
    assert c.plan("foreign-large").result(timeout=5).output.sum() == 150_000


_BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no JSON": (lambda m: "hello", "InvalidMessage: .*expected JSON, found 'hello'"),
    "a number": (lambda m: 42, "InvalidMessage: .*expected an object"),
    "nothing": (lambda m: None, "InvalidMessage: .*expected an object"),
    "another message": (lambda m: {"type": "Ping"}, "InvalidMessage: .*takes an AssignPlan message, not Ping"),
    "an unknown message": (lambda m: {"type": "Assign"}, "InvalidMessage: .*unknown variant 'Assign'"),
    "no plan id": (lambda m: _without(m, "plan_id"), "InvalidMessage: .*plan.plan_id is missing"),
    "a wrong plan id": (lambda m: _with(m, plan_id="a\nb"), "InvalidPipeline: .*plan_id should be printable"),
    "a wrong plan": (lambda m: _with(m, plan={"Run": {}}), "InvalidMessage: .*plan.plan: .*unknown variant 'Run'"),
    "no filter": (lambda m: _with(m, filters=[]), "InvalidPipeline: .*no filter for 'double'"),
    "values that do not fit": (
        lambda m: _with(m, input=_inline({"type": "Tensor", "data": {"shape": [2, 2], "values": [1.0, 2.0, 3.0]}})),
        r"InvalidMessage: .*plan.input.value.data.values: expected 4 values, as shape \[2, 2\] says, found 3",
    ),
    "too deep": (lambda m: _with(m, plan=_nested(m["plan"]["plan"], 110)), "InvalidMessage: .*nested 111 deep.* 100"),
    "far too deep": (lambda m: _with(m, plan=_nested(m["plan"]["plan"], 400)), "InvalidMessage: .*at most 120 deep"),
    "options that are none": (lambda m: _with(m, metadata={"soma": 7}), r'InvalidMessage: .*metadata\["soma"\]'),
    "a part for nobody": (lambda m: _with(m, plan=_remote(m["plan"]["plan"])), "NoWorker: .*'tpu'.*cpu, gpu"),
    "a reference to nothing": (
        lambda m: _with(m, input={"source": "Reference", "data_ref": {"type": "Local", "path": "gone.npy"}}),
        "PlanFailed: no data behind Local 'gone.npy'.*submit the data again",
    ),
    "a path that leads out": (
        lambda m: _with(m, input={"source": "Reference", "data_ref": {"type": "Local", "path": "../../etc/passwd"}}),
        "PlanFailed: .*not a path below",
    ),
    "a pickle that is none": (
        lambda m: _with(m, filters=[{**m["plan"]["filters"][0], "pickled_filter": "aGVsbG8="}]),
        "PlanFailed: node 'double': its filter does not unpickle on worker gpu-",
    ),
    "another Python": (
        lambda m: _with(m, metadata={"soma": {"python": "3.9"}}),
        "PlanFailed: .*pickled by Python 3.9, and worker gpu-.* runs Python 3",
    ),
}


@pytest.mark.parametrize("what", _BAD)
def test_a_malformed_message_fails_with_a_clear_text(cluster: Cluster, c: Coordinator, what: str) -> None:
    def double(x: Any) -> Any:
        return 2 * x

    change, expected = _BAD[what]
    message = change(assign_plan(f"bad-{what.replace(' ', '-')}", double, 1))
    task = c.app.send_task("somatize.assign_plan", [message], queue="gpu")
    with pytest.raises(SomaError) as failure:
        task.get(timeout=20)
    text = f"{type(failure.value).__name__}: {failure.value}"
    assert task.state == "FAILURE"
    kind, _, pattern = expected.partition(": ")
    assert text.startswith(kind)
    assert re.search(pattern, text), text


def test_wrong_arguments_fail_with_a_clear_text(c: Coordinator) -> None:
    for arguments, named in (([], {}), ([1, 2], {}), ([], {"message": 1})):
        task = c.app.send_task("somatize.assign_plan", arguments, named, queue="gpu")
        with pytest.raises(Exception, match="takes one argument, the protocol message"):
            task.get(timeout=20)


def test_the_same_message_twice_is_one_plan(cluster: Cluster, c: Coordinator) -> None:
    message = assign_plan("twice", lambda x: x + 1, 1)
    first, second = from_elsewhere(cluster, message), from_elsewhere(cluster, message)
    assert first["task"] == second["task"]
    assert c.plan("twice").record.epoch == 1
    other = copy.deepcopy(message)
    other["plan"]["input"]["value"]["data"] = 2
    assert from_elsewhere(cluster, other)["error"][0] == "PlanConflict"


_SUBMITS = """
import sys
from somatize_worker import Coordinator, PlanConflict

def double(x):
    return x * 2

with Coordinator() as c:
    try:
        run = c.forward(double, int(sys.argv[1]), plan_id="shared")
        print(run.result(timeout=30).output)
    except PlanConflict as conflict:
        print("conflict:", conflict)
"""


def test_the_same_plan_from_two_processes_is_one_plan(cluster: Cluster, c: Coordinator, tmp_path: Path) -> None:
    (tmp_path / "submits.py").write_text(_SUBMITS)

    def start(number: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "submits.py"), str(number)]
        return subprocess.Popen(command, env={**os.environ, **cluster.environ()}, stdout=subprocess.PIPE, text=True)

    both = [start(4), start(4)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == ["8", "8"]
    assert c.plan("shared").record.epoch == 1
    assert start(5).communicate(timeout=60)[0].startswith("conflict: the plan id 'shared' is taken")
    with pytest.raises(PlanConflict):
        c.forward(lambda x: x, 4, plan_id="shared")


# ── workers started by hand ──────────────────────────────────────────────────────────────────────────────────────────

StartWorker = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def bare_server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Starts ``celery -A somatize_worker worker`` with hardly any environment, and stops it after the test."""
    with ExitStack() as stack:

        def start(*arguments: str, environ: Mapping[str, str]) -> subprocess.Popen[str]:
            kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
            command = [sys.executable, "-m", "celery", "-A", "somatize_worker", "worker", *arguments]
            log = stack.enter_context((tmp_path / f"worker-{len(list(tmp_path.iterdir()))}.log").open("w+"))
            process = subprocess.Popen(
                command, env={**kept, **environ}, stdout=log, stderr=log, text=True, cwd=tmp_path
            )
            stack.callback(_stop, process)
            return process

        yield start


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("worker-*.log"))


def test_a_worker_needs_nothing_but_the_server_and_a_tag(
    bare_server: Server, start_worker: StartWorker, tmp_path: Path
) -> None:
    worker = start_worker("-Q", "gpu", environ={"SOMA_REDIS_URL": bare_server.url})
    with Coordinator(bare_server.url) as c:
        (info,) = poll(c.workers, timeout_s=30, what="the worker is there")
        assert info.tags == ["gpu"]
        result = c.forward(lambda x: x + 1, np.arange(50_000.0), on="gpu").result(timeout=30)
        assert (result.output[-1], result.worker_id) == (50_000.0, info.worker_id)
        worker.terminate()
        assert worker.wait(20) == 0
        assert c.workers() == []
    assert "Traceback" not in logs(tmp_path)


def test_two_workers_on_one_host_without_names(bare_server: Server, start_worker: StartWorker, tmp_path: Path) -> None:
    environ = {"SOMA_REDIS_URL": bare_server.url, "SOMA_STORE": f"file://{tmp_path}/store"}
    for _ in range(2):
        start_worker("-Q", "cpu", "-c", "1", environ=environ)
    with Coordinator(settings=Settings.from_env(environ)) as c:
        workers = poll(lambda: len(c.workers()) == 2 and c.workers(), timeout_s=30, what="both workers are there")
        assert len({worker.worker_id for worker in workers}) == 2
        for worker in workers:
            run = c.forward(lambda x: x, 1, on=protocol.WorkerId(worker.worker_id))
            assert run.result(timeout=30).worker_id == worker.worker_id
        assert len(c.app.control.inspect(timeout=3, limit=2).ping()) == 2  # Celery tells them apart, too


def test_a_worker_without_a_server_says_so_and_ends(start_worker: StartWorker, tmp_path: Path) -> None:
    worker = start_worker("-Q", "gpu", environ={"SOMA_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"})
    assert worker.wait(20) != 0
    assert "does not answer" in logs(tmp_path)
    assert "SOMA_REDIS_URL" in logs(tmp_path)
    assert "Traceback" not in logs(tmp_path)


def test_a_worker_with_another_store_says_so_and_ends(
    bare_server: Server, start_worker: StartWorker, tmp_path: Path
) -> None:
    environ = {"SOMA_REDIS_URL": bare_server.url}
    start_worker("-Q", "cpu", environ={**environ, "SOMA_STORE": f"file://{tmp_path}/store"})
    with Coordinator(bare_server.url) as c:
        poll(c.workers, timeout_s=30)
        for store in (f"file://{tmp_path}/other", "redis"):
            stranger = start_worker("-Q", "cpu", environ={**environ, "SOMA_STORE": store})
            assert stranger.wait(20) != 0
        assert len(c.workers()) == 1
    found = logs(tmp_path)
    assert "/other is not the one that the cluster keeps its data in" in found
    assert "large values go to 'redis' here, but the cluster keeps them in a shared folder" in found
    assert "Traceback" not in found


def test_wrong_settings_are_named(start_worker: StartWorker, tmp_path: Path) -> None:
    worker = start_worker("-Q", "cpu", environ={"SOMA_LEASE_S": "soon"})
    assert worker.wait(20) != 0
    assert "SOMA_LEASE_S='soon' is not usable" in logs(tmp_path)


# ── routing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_tag_that_nobody_serves(c: Coordinator, cluster: Cluster) -> None:
    with pytest.raises(NoWorker, match=r"'tpu'; served now: cpu, gpu") as refusal:
        c.forward(lambda x: x, 1, on="tpu")
    assert refusal.value.details["served"] == ["cpu", "gpu"]
    waiting = c.forward(lambda x: x + 1, 1, on="tpu", wait=True)
    assert waiting.state == "queued"
    worker = cluster.add_worker("tpu", slots=1)
    assert waiting.result(timeout=30).worker_id == worker.worker_id
    worker.stop(20)
    with pytest.raises(NoWorker):
        poll(lambda: c.forward(lambda x: x, 1, on="tpu") and False, timeout_s=10)


# ── parts of messages ────────────────────────────────────────────────────────────────────────────────────────────────


def _with(message: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**message, "plan": {**message["plan"], **changes}}


def _without(message: dict[str, Any], name: str) -> dict[str, Any]:
    return {**message, "plan": {key: value for key, value in message["plan"].items() if key != name}}


def _inline(value: dict[str, Any]) -> dict[str, Any]:
    return {"source": "Inline", "value": value}


def _nested(plan: Any, depth: int) -> Any:
    for _ in range(depth):
        plan = {"Sequence": [plan]}
    return plan


def _remote(plan: Any) -> dict[str, Any]:
    return {"Remote": {"node_id": "double", "target": {"Tag": "tpu"}, "plan": plan}}
