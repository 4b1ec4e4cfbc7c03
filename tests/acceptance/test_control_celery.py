"""What Celery's own tools see of plans, and how they stop them: states, inspect, revoke, Flower."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from somatize_worker import Coordinator, PlanCancelled, PlanFailed
from somatize_worker.coordinator import PlanHandle
from tests.support.busy import Holds, Says, held, let_go, ran, wait_gone_soon
from tests.support.cluster import Cluster, short
from tests.support.messages import assign_plan
from tests.support.server import free_port, poll


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two workers of one slot each."""
    with Cluster({"cpu": 1, "gpu": 1}, slots=1, settings=short()) as running:
        yield running


def fails(x: object) -> object:
    raise ValueError(f"no good: {x}")


def test_async_result_of_a_success(c: Coordinator) -> None:
    run = c.forward(lambda x: x + 1, 1)
    run.result(timeout=10)
    result = AsyncResult(run.plan_id, app=c.app)
    assert result.state == "SUCCESS"
    assert result.get(timeout=5).startswith("Json(number) in ")


def test_async_result_of_a_failure(c: Coordinator) -> None:
    run = c.forward(fails, 7)
    result = AsyncResult(run.plan_id, app=c.app)
    with pytest.raises(PlanFailed, match="no good: 7"):
        result.get(timeout=10)
    assert result.state == "FAILURE"


def test_async_result_of_a_cancelled_plan(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(Holds(tmp_path), 1)
    held(tmp_path)
    run.cancel("enough of it")
    result = AsyncResult(run.plan_id, app=c.app)
    with pytest.raises(TaskRevokedError, match="enough of it"):
        result.get(timeout=10)
    assert result.state == "REVOKED"


def test_inspect_answers_while_plans_run(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(Holds(tmp_path) >> Says(tmp_path, "after"), 1)
    held(tmp_path)
    inspect = c.app.control.inspect(timeout=3, limit=2)
    active = inspect.active()
    assert len(active) == 2
    (task,) = [task for tasks in active.values() for task in tasks]
    assert task["id"] == run.plan_id
    assert task["args"] == [run.plan_id]
    assert len(inspect.ping()) == 2
    assert len(inspect.revoked()) == 2
    assert len(inspect.stats()) == 2
    let_go(tmp_path)
    run.result(timeout=10)
    assert not any(c.app.control.inspect(timeout=3, limit=2).active().values())


def test_revoke_stops_a_running_plan(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(Holds(tmp_path, children=True), 1)
    pids = held(tmp_path)
    c.app.control.revoke(run.plan_id, terminate=True)
    wait_gone_soon(pids)
    with pytest.raises(PlanCancelled, match="revoked"):
        run.result(timeout=10)
    assert AsyncResult(run.plan_id, app=c.app).state == "REVOKED"


def test_revoke_stops_queued_plans(c: Coordinator, tmp_path: Path) -> None:
    blocker = c.forward(Holds(tmp_path), 1)
    held(tmp_path)
    queued = [c.forward(Says(tmp_path, "never"), 1) for _ in range(3)]
    for run in queued:
        c.app.control.revoke(run.plan_id, terminate=True)
    for run in queued:  # although the one slot is taken
        with pytest.raises(PlanCancelled, match="revoked"):
            run.result(timeout=10)
    let_go(tmp_path)
    blocker.result(timeout=10)
    assert c.forward(Says(tmp_path, "next"), 1).result(timeout=10).output == 2
    assert ran(tmp_path) == ["next"]


def test_revoke_without_terminate_stops_what_has_not_started(c: Coordinator, tmp_path: Path) -> None:
    running = c.forward(Holds(tmp_path), 1)
    held(tmp_path)
    queued = c.forward(Says(tmp_path, "never"), 1)
    c.app.control.revoke([running.plan_id, queued.plan_id], reply=True, timeout=3, limit=2)
    let_go(tmp_path)
    assert running.result(timeout=10).output == 1
    with pytest.raises(PlanCancelled, match="revoked"):
        queued.result(timeout=10)
    assert ran(tmp_path) == []


def test_revoke_stops_a_plan_that_waits_and_its_children(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(Holds(tmp_path, "child", children=True).on("gpu") >> Says(tmp_path, "never"), 1)
    pids = held(tmp_path, "child")
    poll(lambda: run.state == "waiting", timeout_s=10)
    AsyncResult(run.plan_id, app=c.app).revoke(terminate=True)
    wait_gone_soon(pids)
    with pytest.raises(PlanCancelled, match="revoked"):
        run.result(timeout=10)


def test_revoke_by_the_task_id_of_another_program(c: Coordinator, tmp_path: Path) -> None:
    message = assign_plan("revoked-by-alias", Holds(tmp_path, children=True), 1)
    task = c.app.send_task("somatize.assign_plan", [message], queue="cpu")
    pids = held(tmp_path)
    task.revoke(terminate=True)
    wait_gone_soon(pids)
    with pytest.raises(PlanCancelled, match="revoked"):
        c.plan("revoked-by-alias").result(timeout=10)
    assert task.state == "REVOKED"
    other = c.app.control.revoke("a-task-of-somebody-else", terminate=True, reply=True, timeout=3, limit=2)
    assert len(other) == 2
    assert "a-task-of-somebody-else" not in {record.plan_id for record in c.plans()}


def test_revoke_stops_a_message_that_no_worker_has_taken(c: Coordinator, tmp_path: Path) -> None:
    blocker = c.forward(Holds(tmp_path), 1)
    held(tmp_path)
    task = c.app.send_task("somatize.assign_plan", [assign_plan("never-admitted", Says(tmp_path, "never"), 1)])
    task.revoke(terminate=True)
    poll(lambda: task.state == "REVOKED", timeout_s=10)
    let_go(tmp_path)
    blocker.result(timeout=10)
    assert c.forward(Says(tmp_path, "next"), 1).result(timeout=10).output == 2
    assert ran(tmp_path) == ["next"]
    assert task.state == "REVOKED"


def test_flower_terminates_plans(cluster: Cluster, c: Coordinator, tmp_path: Path) -> None:
    pytest.importorskip("flower")
    port = free_port()
    environ = {**os.environ, **cluster.environ(), "FLOWER_UNAUTHENTICATED_API": "true"}
    command = [sys.executable, "-m", "celery", "-A", "somatize_worker", "flower"]
    command += ["--address=127.0.0.1", f"--port={port}", "--logging=error"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as flower:
        try:
            base = f"http://127.0.0.1:{port}/api"
            poll(lambda: _sees(base, c.forward(Says(tmp_path, "first"), 1)), timeout_s=60, what="Flower sees plans")
            run = c.forward(Holds(tmp_path, children=True), 1)
            pids = held(tmp_path)
            poll(lambda: run.plan_id in _get(f"{base}/tasks"), timeout_s=20)
            _post(f"{base}/task/revoke/{run.plan_id}?terminate=true")
            wait_gone_soon(pids)
            with pytest.raises(PlanCancelled):
                run.result(timeout=10)
            poll(lambda: '"REVOKED"' in _get(f"{base}/task/info/{run.plan_id}"), timeout_s=10)
        finally:
            flower.terminate()


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())


def _post(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, data=b"", method="POST"), timeout=10):
        pass


def _sees(base: str, run: PlanHandle) -> bool:
    """Whether Flower, which takes a while to start, lists a finished plan."""
    run.result(timeout=20)
    try:
        return run.plan_id in _get(f"{base}/tasks?limit=1000")
    except OSError:
        time.sleep(0.2)
        return False
