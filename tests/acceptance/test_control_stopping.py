"""Workers that are told to stop: nothing new, a while to finish, the rest handed back, and no plan fails."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from somatize_worker.local import WorkerProcess
from tests.acceptance.conftest import MakeCluster
from tests.support.busy import Holds, Says, held, let_go, ran, wait_gone_soon
from tests.support.cluster import Cluster, short
from tests.support.server import poll

_EXIT_WITHIN_S = 20.0


def test_what_runs_is_finished_and_nothing_new_is_taken(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 1}, slots=1, settings=short(grace_s=30.0))
    c = cluster.coordinator()
    running = c.forward(Holds(tmp_path), 1)
    held(tmp_path)
    queued = [c.forward(Says(tmp_path, "queued"), number) for number in range(3)]
    (worker,) = cluster.workers
    worker.process.send_signal(signal.SIGTERM)
    poll(lambda: c.workers() == [], timeout_s=10, what="nothing is routed to it any more")
    let_go(tmp_path)
    assert worker.process.wait(_EXIT_WITHIN_S) == 0
    assert running.result(timeout=10).output == 1
    assert [run.state for run in queued] == ["queued"] * 3
    assert ran(tmp_path) == []
    cluster.add_worker()
    assert [run.result(timeout=20).output for run in queued] == [1, 2, 3]


def test_what_cannot_be_finished_is_handed_back(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 1}, slots=1, settings=short(grace_s=0.5))
    c = cluster.coordinator()
    run = c.forward(Says(tmp_path, "first", 0.3) >> Holds(tmp_path, children=True) >> Says(tmp_path, "last"), 1)
    pids = held(tmp_path)
    (worker,) = cluster.workers
    cluster.add_worker()
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(_EXIT_WITHIN_S) == 0
    wait_gone_soon(pids)
    let_go(tmp_path)
    result = run.result(timeout=20)
    assert (result.output, result.attempts) == (3, 1)
    assert result.worker_id == cluster.workers[-1].worker_id
    assert ran(tmp_path) == ["first", "last"]  # what was finished before is not run again
    assert run.record.history[0]["why"] == "the worker is stopping"
    assert (run.record.attempts, run.record.deaths) == (0, 0)
    kinds = [event.event_type for event in run.events()]
    assert kinds.count("RunStarted") == kinds.count("RunCompleted") == 1
    assert "RunFailed" not in kinds


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGTERM, signal.SIGQUIT), (signal.SIGINT, signal.SIGINT), (signal.SIGQUIT,)],
    ids=lambda signals: "-".join(one.name for one in signals),
)
def test_told_twice_it_stops_at_once(
    make_cluster: MakeCluster, tmp_path: Path, signals: tuple[signal.Signals, ...]
) -> None:
    cluster = make_cluster({"cpu": 1}, slots=1, settings=short(grace_s=300.0))
    c = cluster.coordinator()
    running = c.forward(Holds(tmp_path, children=True), 1)
    pids = held(tmp_path)
    queued = c.forward(Says(tmp_path, "queued"), 1)
    (worker,) = cluster.workers
    _send(cluster, worker, signals)
    worker.process.wait(_EXIT_WITHIN_S)
    wait_gone_soon(pids)
    assert "Traceback" not in worker.log
    assert c.workers() == []
    assert [running.state, queued.state] == ["queued", "queued"]
    assert running.record.attempts == 0
    let_go(tmp_path)
    cluster.add_worker()
    assert running.result(timeout=20).output == 1
    assert queued.result(timeout=20).output == 2


def test_a_second_sigterm_changes_nothing(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 1}, slots=1, settings=short(grace_s=30.0))
    c = cluster.coordinator()
    run = c.forward(Holds(tmp_path), 1)
    held(tmp_path)
    (worker,) = cluster.workers
    _send(cluster, worker, (signal.SIGTERM, signal.SIGTERM))
    poll(lambda: worker.log.count("Warm shutdown") == 2, timeout_s=10)
    assert run.state == "leased"
    let_go(tmp_path)
    assert worker.process.wait(_EXIT_WITHIN_S) == 0
    assert run.result(timeout=10).output == 1
    assert "Traceback" not in worker.log


def _send(cluster: Cluster, worker: WorkerProcess, signals: tuple[signal.Signals, ...]) -> None:
    for number, one in enumerate(signals):
        if number:
            poll(lambda: "shutdown" in worker.log, timeout_s=10, what="the first signal is noticed")
        worker.process.send_signal(one)
