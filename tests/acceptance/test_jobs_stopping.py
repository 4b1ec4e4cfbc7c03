"""Jobs that are cancelled, run out of time or are tried again, wherever they are: nothing of them is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from somatize_worker import Coordinator, PlanCancelled
from somatize_worker.ledger import UNFINISHED
from tests.support.busy import held, let_go, ran, wait_gone_soon
from tests.support.cluster import Cluster, short
from tests.support.jobs import held_build, holding, python_job, saying
from tests.support.server import poll


@pytest.fixture(scope="module")
def cluster(env_folder: str) -> Iterator[Cluster]:
    """A worker of one slot."""
    settings = short(env_folder=env_folder, env_allow=("paths",))
    with Cluster({"cpu": 1}, slots=1, settings=settings) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Cluster, c: Coordinator, tmp_path: Path) -> Iterator[None]:
    """After each test the slot is free and there is no scratch folder."""
    yield
    for record in c.plans(states=list(UNFINISHED)):  # of a test that failed
        c.cancel_plan(record.plan_id)
    assert c.assign_python_job(saying(tmp_path, "next")).result(timeout=20).success
    assert ran(tmp_path)[-1] == "next"
    poll(lambda: not list(Path(cluster.settings.job_folder).iterdir()), timeout_s=5, what="no scratch folder")


def test_a_running_job_and_its_grandchildren(c: Coordinator, tmp_path: Path) -> None:
    handle = c.assign_python_job(holding(tmp_path))
    pids = held(tmp_path)
    assert len(pids) == 2
    handle.cancel("changed my mind")
    wait_gone_soon(pids)
    with pytest.raises(PlanCancelled, match="changed my mind"):
        handle.result(timeout=10)
    assert list(handle.progress())[-1].phase == "execute"
    assert list(handle.output_lines(follow=True)) == ["holding"]
    assert handle.record.cause == "changed my mind"
    assert handle.outputs() == {}


def test_a_job_whose_environment_is_being_built(c: Coordinator, tmp_path: Path) -> None:
    handle = c.assign_python_job(saying(tmp_path, "never", requirements=held_build(tmp_path, "cancelledbuild")))
    pids = held(tmp_path, "build")
    assert {one.phase for one in handle.progress(timeout=0)} == {"environment"}
    handle.cancel("too slow")
    wait_gone_soon(pids)
    with pytest.raises(PlanCancelled, match="too slow"):
        handle.result(timeout=10)
    assert ran(tmp_path) == []


def test_a_build_can_be_begun_again(c: Coordinator, tmp_path: Path) -> None:
    job: dict[str, Any] = {"requirements": held_build(tmp_path, "begunagain")}
    first = c.assign_python_job(python_job("", **job))
    held(tmp_path, "build")
    first.cancel()
    with pytest.raises(PlanCancelled):
        first.result(timeout=10)
    let_go(tmp_path)
    second = c.assign_python_job(python_job("import begunagain\nprint(begunagain.built)", **job))
    assert second.result(timeout=30).output == "True\n"


def test_a_queued_job_and_one_that_no_worker_has_seen(c: Coordinator, tmp_path: Path) -> None:
    blocker = c.assign_python_job(holding(tmp_path))
    held(tmp_path)
    queued = c.assign_python_job(saying(tmp_path, "queued"))
    queued.cancel("not needed")
    c.cancel_plan("chosen-before", "too early")
    unseen = c.assign_python_job(saying(tmp_path, "unseen", job_id="chosen-before"))
    for handle, reason in ((queued, "not needed"), (unseen, "too early")):
        with pytest.raises(PlanCancelled, match=reason):
            handle.result(timeout=10)
        assert list(handle.progress()) == []
    let_go(tmp_path)
    assert blocker.result(timeout=10).metrics == {"attempt": 1}
    blocker.cancel()
    assert c.job(blocker.job_id).result(timeout=10).success
    assert ran(tmp_path) == []


def test_the_deadline_of_a_running_job(c: Coordinator, tmp_path: Path) -> None:
    handle = c.assign_python_job(holding(tmp_path), timeout=1.0, retries=3)
    pids = held(tmp_path)
    result = handle.result(timeout=20)
    wait_gone_soon(pids)
    assert not result.success
    assert result.output == "holding\nthe job was not done after its 1 s (its timeout, or SOMA_JOB_TIMEOUT_S)"
    assert handle.ending()[1]["error_type"] == "builtins.TimeoutError"
    assert len(handle.record.history) == 1


def test_the_deadline_counts_the_environments_build(c: Coordinator, tmp_path: Path) -> None:
    job = saying(tmp_path, "never", requirements=held_build(tmp_path, "latebuild"))
    handle = c.assign_python_job(job, timeout=1.0)
    pids = held(tmp_path, "build")
    assert "after its 1 s" in handle.result(timeout=20).output
    wait_gone_soon(pids)
    assert ran(tmp_path) == []


FLAKY = """
import os
attempt = int(os.environ["SOMA_JOB_ATTEMPT"])
print("attempt", attempt)
if attempt == 1:
    os._exit(3)
if attempt == 2:
    raise FileNotFoundError("not yet")
"""


def test_retries_for_deaths_and_for_named_errors(c: Coordinator) -> None:
    policy: dict[str, Any] = {"retries": 2, "retry_delay": 0.05}
    handle = c.assign_python_job(python_job(FLAKY), retry_on=("builtins.OSError",), **policy)
    assert handle.result(timeout=30).output == "attempt 3\n"
    whys = [entry["why"] for entry in handle.record.history]
    assert "exited with code 3" in whys[0]
    assert whys[1] == "FileNotFoundError: not yet"
    assert [one.phase for one in handle.progress() if one.total == 4].count("execute") == 3
    other = c.assign_python_job(python_job(FLAKY), retry_on=("builtins.KeyError",), **policy)
    assert "FileNotFoundError: not yet" in other.result(timeout=30).output
    assert len(other.record.history) == 2
    once = c.assign_python_job(python_job(FLAKY))
    assert "exited with code 3" in once.result(timeout=30).output
    assert len(once.record.history) == 1
