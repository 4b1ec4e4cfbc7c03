"""The server goes away and comes back: running plans go on, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from somatize_worker.coordinator import PlanHandle
from somatize_worker.errors import ServerUnreachable
from somatize_worker.settings import Settings
from tests.acceptance.conftest import MakeCluster
from tests.support.cluster import Cluster, short
from tests.support.plans import Note, Prints, Waits, counts, runs
from tests.support.server import free_port, poll


class Busy:
    """A cluster in the middle of everything: two plans run, others wait in the queue, clients wait and watch."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.c = cluster.coordinator()
        self.notes = folder / "notes"
        self.gate = folder / "gate"
        self.c.forward(lambda x: x, 0).result(timeout=20)
        self.remote = self.c.forward(
            Note(self.notes, "parent") >> Waits(self.notes, self.gate, "child").on("gpu") >> Note(self.notes, "last"),
            10,
        )
        self.running = [
            self.c.forward(Waits(self.notes, self.gate, f"waits{n}") >> Note(self.notes, f"after{n}"), n)
            for n in range(3)
        ]
        self.printing = self.c.forward(Prints(40, 0.05).named("prints"), 1, on="gpu")
        poll(self._under_way, timeout_s=30, what="plans run and print")
        self.queued = [self.c.forward(Note(self.notes, f"queued{n}"), 20 + n) for n in range(5)]
        self.events: list[Any] = []
        self.lines: list[str] = []
        self.results: dict[str, Any] = {}
        self.handles = [*self.running, self.remote, self.printing, *self.queued]
        self._threads = [
            threading.Thread(target=self._collect_events),
            threading.Thread(target=self._collect_lines),
            *(threading.Thread(target=self._wait_for, args=(handle,)) for handle in self.handles),
        ]
        for thread in self._threads:
            thread.start()

    def _under_way(self) -> bool:
        seen = counts(self.notes)
        return {"waits0", "waits1", "waits2", "child"} <= seen.keys() and bool(
            self.c.ledger.output(self.printing.plan_id)
        )

    def _collect_events(self) -> None:
        self.events += self.printing.messages()

    def _collect_lines(self) -> None:
        self.lines += self.printing.output_lines(follow=True)

    def _wait_for(self, handle: PlanHandle) -> None:
        self.results[handle.plan_id] = handle.result(timeout=90).output

    def check(self) -> None:
        """Let everything end; each plan has its result and each node has run once."""
        self.gate.touch()
        for thread in self._threads:
            thread.join(60)
        assert [self.results.get(handle.plan_id) for handle in self.handles] == [
            *(1, 2, 3, 12, 1),
            *range(21, 26),
        ]
        assert set(counts(self.notes).values()) == {1}
        # Parent and child of the remote plan: a wait for a child is no failure, and none is counted.
        for handle in self.handles:
            record = handle.record
            assert (record.attempts, record.deaths) == (0, 0)
            assert record.epoch == (2 if handle is self.remote else 1)
        kinds = [message.event.event_type for message in self.events]
        assert kinds[0] == "RunStarted"
        assert kinds[-1] == "RunCompleted"
        metrics = [message.event.metric.value for message in self.events if message.event.event_type == "TrialMetric"]
        assert metrics == list(range(40))
        assert self.lines == [f"line {number}" for number in range(40)]
        again = self.cluster.coordinator()
        assert [again.forward(lambda x: x + 1, n).result(timeout=20).output for n in range(5)] == [1, 2, 3, 4, 5]


@pytest.fixture
def busy(make_cluster: MakeCluster, tmp_path: Path) -> Busy:
    cluster = make_cluster({"cpu": 1, "gpu": 1}, slots=3)
    return Busy(cluster, tmp_path)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_the_server_restarts(kill: bool, busy: Busy) -> None:
    if kill:
        time.sleep(1.1)  # the append-only file is written once a second: a crash may take a second with it
    busy.cluster.stop_server(kill=kill)
    busy.cluster.start_server()
    busy.check()


@pytest.mark.slow
def test_the_server_is_gone_for_a_while(busy: Busy) -> None:
    busy.cluster.stop_server()
    busy.gate.touch()  # plans end while nobody can be told
    poll(lambda: counts(busy.notes).get("after2"), timeout_s=10)
    with pytest.raises(ServerUnreachable, match="does not answer"):
        busy.c.forward(lambda x: x, 1)
    time.sleep(8)
    assert all(worker.process.poll() is None for worker in busy.cluster.workers)
    busy.cluster.start_server()
    busy.check()


@pytest.mark.slow
def test_the_server_does_not_answer_for_a_while(busy: Busy) -> None:
    busy.cluster.freeze_server()
    busy.gate.touch()
    poll(lambda: counts(busy.notes).get("after2"), timeout_s=10)
    time.sleep(14)
    assert all(worker.process.poll() is None for worker in busy.cluster.workers)
    busy.cluster.thaw_server()
    busy.check()


@pytest.mark.long
@pytest.mark.parametrize("frozen", [True, False], ids=["silent", "refusing"])
def test_the_server_is_unreachable_for_a_minute(frozen: bool, make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 1, "gpu": 1}, slots=3, settings=Settings())
    busy = Busy(cluster, tmp_path)
    cluster.freeze_server() if frozen else cluster.stop_server()
    busy.gate.touch()
    time.sleep(60)
    cluster.thaw_server() if frozen else cluster.start_server()
    started = time.monotonic()
    busy.check()
    print(f"all done {time.monotonic() - started:.1f} s after the server was back")


@pytest.mark.slow
def test_a_worker_told_to_stop_while_the_server_is_gone(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 1}, settings=short(grace_s=0.5))
    c = cluster.coordinator()
    notes = tmp_path / "notes"
    run = c.forward(Waits(notes, tmp_path / "gate"), 1)
    poll(lambda: runs(notes), timeout_s=30)
    worker = cluster.workers[0]
    cluster.stop_server()
    worker.terminate()
    assert worker.process.wait(30) == 1  # what ran could not be handed back
    assert run.plan_id in worker.log
    (tmp_path / "gate").touch()
    cluster.start_server()
    cluster.add_worker()
    assert run.result(timeout=40).output == 1
    assert counts(notes) == {"waits": 2}


def test_a_worker_without_a_server_says_so_and_ends() -> None:
    environ = {**os.environ, "SOMA_REDIS_URL": f"redis://:secret@127.0.0.1:{free_port()}/0"}
    command = [sys.executable, "-m", "celery", "-A", "somatize_worker", "worker", "-Q", "cpu"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "somatize worker cannot start" in done.stderr
    assert "does not answer" in done.stderr
    assert "SOMA_REDIS_URL" in done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
