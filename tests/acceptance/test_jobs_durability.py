"""Jobs through whatever dies: they start again elsewhere, resume from their checkpoints, and end once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from somatize_worker import Coordinator, protocol
from somatize_worker.coordinator import JobHandle
from somatize_worker.ledger import Wake
from tests.acceptance.conftest import MakeCluster
from tests.support.busy import held, let_go, ran
from tests.support.cluster import Cluster, short, wait_gone
from tests.support.jobs import holding, python_job, resuming, saying
from tests.support.server import poll

MakeJobCluster = Callable[..., Cluster]


@pytest.fixture
def make_job_cluster(make_cluster: MakeCluster, env_folder: str, tmp_path: Path) -> MakeJobCluster:
    """Starts clusters of single-slot workers whose jobs run in ``<tmp_path>/jobs``."""

    def make(number: int = 2, **settings: Any) -> Cluster:
        changed = short(env_folder=env_folder, job_folder=str(tmp_path / "jobs"), **settings)
        return make_cluster({"cpu": number}, slots=1, settings=changed)

    return make


def holder(cluster: Cluster, handle: JobHandle) -> Any:
    """The worker that runs a job."""
    worker_id = poll(lambda: handle.record.worker, timeout_s=10)
    return next(worker for worker in cluster.workers if worker.worker_id == worker_id)


def whys(handle: JobHandle) -> list[str]:
    return [entry["why"] for entry in handle.record.history]


def test_a_job_resumes_where_its_killed_worker_left_it(make_job_cluster: MakeJobCluster, tmp_path: Path) -> None:
    cluster = make_job_cluster()
    c = cluster.coordinator()
    handle = c.assign_python_job(resuming(tmp_path, requirements="six==1.16.0"))
    seen: list[protocol.JobProgress] = []
    watcher = threading.Thread(target=lambda: seen.extend(handle.progress()))
    watcher.start()
    pids = held(tmp_path, "attempt1")
    poll(lambda: [one.step for one in seen if one.total == 5] == [1, 2, 3], timeout_s=10)
    killed = holder(cluster, handle)
    cluster.kill(killed)
    wait_gone(*pids)
    result = handle.result(timeout=30)
    watcher.join(10)
    (survivor,) = {worker.worker_id for worker in cluster.workers} - {killed.worker_id}
    assert result.metrics == {"done": [1, 1, 1, 2, 2], "first": 4, "worker": survivor}
    own = [(one.worker_id, one.step, one.metrics["attempt"]) for one in seen if one.total == 5]
    assert own == [(killed.worker_id, step, 1) for step in (1, 2, 3)] + [(survivor, step, 2) for step in (4, 5)]
    assert [one.step for one in seen if one.total == 4 and one.phase != "environment"] == [2, 3, 2, 3, 4]
    record = handle.record
    assert (record.state, record.epoch, record.deaths) == ("succeeded", 2, 1)
    assert whys(handle)[0] == "its worker died"
    assert list((tmp_path / "jobs").iterdir()) == []  # the killed worker's folder, too
    assert not (cluster_store(cluster) / "checkpoints" / handle.job_id).exists()


def cluster_store(cluster: Cluster) -> Path:
    return Path(cluster.settings.store.removeprefix("file://"))


def test_every_worker_is_killed_and_a_new_one_comes_later(make_job_cluster: MakeJobCluster, tmp_path: Path) -> None:
    cluster = make_job_cluster(1)
    c = cluster.coordinator()
    running = c.assign_python_job(resuming(tmp_path))
    held(tmp_path, "attempt1")
    queued = c.assign_python_job(saying(tmp_path, "queued"))
    cluster.kill(cluster.workers[0])
    assert (running.state, queued.state) == ("leased", "queued")
    cluster.add_worker()
    assert running.result(timeout=30).metrics["done"] == [1, 1, 1, 2, 2]
    assert queued.result(timeout=20).success
    assert ran(tmp_path) == ["queued"]


def test_a_job_whose_worker_dies_each_time(make_job_cluster: MakeJobCluster, tmp_path: Path) -> None:
    cluster = make_job_cluster()
    handle = cluster.coordinator().assign_python_job(holding(tmp_path), max_attempts=1)
    held(tmp_path)
    poll(lambda: list(handle.output_lines()), timeout_s=10)
    cluster.kill(holder(cluster, handle))
    result = handle.result(timeout=20)
    assert not result.success
    assert "died, once (max_attempts is 1)" in result.output
    assert handle.ending()[1]["certificate"]["last_lines"] == ["holding"]


def test_a_worker_paused_beyond_its_lease_comes_too_late(make_job_cluster: MakeJobCluster, tmp_path: Path) -> None:
    cluster = make_job_cluster()
    handle = cluster.coordinator().assign_python_job(holding(tmp_path, "first"))
    late_pids = held(tmp_path, "first")
    late = holder(cluster, handle)
    cluster.pause(late)
    poll(lambda: handle.record.epoch == 2, timeout_s=20, what="another worker has taken over")
    cluster.resume(late)
    wait_gone(*late_pids)
    assert not handle.done()
    let_go(tmp_path)
    result = handle.result(timeout=20)
    assert result.metrics == {"attempt": 2}
    assert result.worker_id != late.worker_id
    assert handle.record.epoch == 2


def test_many_wake_ups_are_one_run(make_job_cluster: MakeJobCluster, tmp_path: Path) -> None:
    c = make_job_cluster().coordinator()
    blocker = [c.assign_python_job(holding(tmp_path, name)) for name in ("a", "b")]
    held(tmp_path, "a", "b")
    handle = c.assign_python_job(saying(tmp_path, "once"))
    record = handle.record
    for _ in range(10):
        c.session.wake_ups.send([Wake(record.plan_id, record.queue, record.priority, record.summary, record.kind)])
    let_go(tmp_path)
    assert all(one.result(timeout=20).success for one in (*blocker, handle))
    poll(lambda: not any(c.app.control.inspect(timeout=3, limit=2).active().values()), timeout_s=10)
    assert ran(tmp_path) == ["once"]
    assert handle.record.epoch == 1


def test_a_stopping_worker_hands_its_job_back(make_job_cluster: MakeJobCluster, tmp_path: Path) -> None:
    cluster = make_job_cluster(grace_s=0.3)
    handle = cluster.coordinator().assign_python_job(resuming(tmp_path))
    pids = held(tmp_path, "attempt1")
    stopped = holder(cluster, handle)
    stopped.terminate()
    result = handle.result(timeout=20)
    assert result.metrics["done"] == [1, 1, 1, 2, 2]
    assert result.worker_id != stopped.worker_id
    wait_gone(*pids)
    assert stopped.process.wait(10) == 0
    record = handle.record
    assert (record.epoch, record.attempts, record.deaths) == (2, 0, 0)
    assert whys(handle)[0] == "the worker is stopping"


def test_a_stopping_worker_lets_a_short_job_finish(make_job_cluster: MakeJobCluster, tmp_path: Path) -> None:
    cluster = make_job_cluster(1)
    handle = cluster.coordinator().assign_python_job(holding(tmp_path))
    held(tmp_path)
    cluster.workers[0].terminate()
    let_go(tmp_path)
    assert handle.result(timeout=20).metrics == {"attempt": 1}
    assert cluster.workers[0].process.wait(10) == 0


def test_a_worker_grants_no_job_more_than_its_own_limit(make_job_cluster: MakeJobCluster, tmp_path: Path) -> None:
    cluster = make_job_cluster(1, job_timeout_s=1.0)
    with Coordinator(settings=replace(cluster.settings, job_timeout_s=0.0)) as c:
        for timeout_s in (None, 60.0):
            handle = c.assign_python_job(holding(tmp_path), timeout=timeout_s)
            assert "after its 1 s" in handle.result(timeout=20).output


STEADY = """
import json, os, time
folder = json.load(open(os.environ["SOMA_JOB_PARAMS"]))["folder"]
number = 0
while not os.path.exists(folder + "/go"):
    number += 1
    print(json.dumps({"step": number}), flush=True)
    time.sleep(0.05)
print(json.dumps({"last": number, "attempt": os.environ["SOMA_JOB_ATTEMPT"]}))
"""


@pytest.mark.parametrize("how", ["restarts", "is silent"])
def test_the_server_goes_away_during_a_job(how: str, make_job_cluster: MakeJobCluster, tmp_path: Path) -> None:
    cluster = make_job_cluster(1)
    c = cluster.coordinator()
    handle = c.assign_python_job(python_job(STEADY, params={"folder": str(tmp_path)}))
    told = Told(handle)
    poll(lambda: len(told.steps) > 2, timeout_s=20, what="the job reports")
    if how == "restarts":
        cluster.stop_server()
        cluster.start_server()
    else:
        cluster.freeze_server()
        threading.Event().wait(3.0)  # twice the lease
        cluster.thaw_server()
    before = len(told.steps)
    poll(lambda: len(told.steps) > before + 2, timeout_s=20, what="the job reports again")
    let_go(tmp_path)
    last = told.result()["last"]
    assert told.steps == list(range(1, last + 1))
    assert len(told.lines) == last + 1
    assert (handle.record.epoch, handle.record.attempts) == (1, 0)
    assert c.assign_python_job(python_job("")).result(timeout=20).success


class Told:
    """What a client hears that watches a job from the start."""

    def __init__(self, handle: JobHandle) -> None:
        self.steps: list[int] = []
        self.lines: list[str] = []
        self._metrics: list[Any] = []
        self._threads = [
            threading.Thread(target=lambda: self.steps.extend(s.step for s in handle.progress() if s.total != 4)),
            threading.Thread(target=lambda: self.lines.extend(handle.output_lines(follow=True))),
            threading.Thread(target=lambda: self._metrics.append(handle.result(timeout=60).metrics)),
        ]
        for thread in self._threads:
            thread.start()

    def result(self) -> Any:
        for thread in self._threads:
            thread.join(60)
        return self._metrics[0]
