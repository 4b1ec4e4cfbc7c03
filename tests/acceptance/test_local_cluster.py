"""LocalCluster: starts real workers, runs code of any origin by value, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from somatize_worker import HostNotReady, LocalCluster, PlanCancelled, SomaError
from somatize_worker.errors import InvalidSettings
from somatize_worker.settings import Settings
from tests.support.commands import cluster_folders, gone, whole_tree
from tests.support.server import poll


def hold(x: object) -> object:
    """Sleeps, and so does a daemon that it starts."""
    import subprocess
    import time

    subprocess.Popen(["sleep", "600"], start_new_session=True)
    time.sleep(600)
    return x


def slowly(x: object) -> object:
    import time

    time.sleep(1.0)
    return x


def running(cluster: LocalCluster, plan_id: str) -> bool:
    return cluster.coordinator().plan(plan_id).state == "leased"


def test_it_runs_plans_and_leaves_nothing() -> None:
    with LocalCluster({"cpu": 1, "gpu,training": 1}, slots=2) as cluster:
        coordinator = cluster.coordinator()
        result = coordinator.forward((lambda x: x + 1), 41, on="training").result(timeout=60)
        assert (result.output, result.worker_id) == (42, "gpu-1")
        assert "gpu-1@" in cluster.workers[1].log
        before = cluster.workers[0].pid
        with cluster:  # the inner block does not end it
            cluster.start()
        assert cluster.workers[0].pid == before
        late = cluster.add_worker("late")
        assert coordinator.forward(len, [1, 2], on="late").result(timeout=60).worker_id == late.worker_id
        processes, folders = whole_tree(os.getpid())[1:], cluster_folders(os.getpid())
        assert len(folders) == 2
    assert gone(processes, folders)
    cluster.close()
    assert repr(cluster) == "LocalCluster(not running)"
    with cluster:  # and again
        assert cluster.coordinator().forward(len, [1, 2]).result(timeout=60).output == 2


def test_closing_cancels_what_nobody_will_ever_finish() -> None:
    """Without a folder: whoever waits is told, and no worker waits for its plans."""
    cluster = LocalCluster({"cpu": 1}, slots=1)
    cluster.start()
    coordinator = cluster.coordinator()
    handles = [coordinator.forward(hold, 1) for _ in range(2)]
    caught: list[BaseException] = []

    def wait(handle: object) -> None:
        try:
            handle.result(timeout=60)  # type: ignore[attr-defined]
        except BaseException as error:
            caught.append(error)

    waiting = [threading.Thread(target=wait, args=(handle,)) for handle in handles]
    for thread in waiting:
        thread.start()
    poll(lambda: any(handle.state == "leased" for handle in handles), what="one runs")
    processes = whole_tree(os.getpid())[1:]
    cluster.close()
    for thread in waiting:
        thread.join(10)
    assert [type(error) for error in caught] == [PlanCancelled, PlanCancelled]
    assert gone(processes, [])


def test_a_folder_keeps_plans_and_address(tmp_path: Path) -> None:
    settings = Settings(grace_s=0.0, lease_s=2.0)
    with LocalCluster({"cpu": 1}, slots=1, settings=settings, folder=tmp_path / "kept") as cluster:
        url = cluster.settings.redis_url
        cluster.coordinator().forward(slowly, 7, plan_id="slow")
        poll(lambda: running(cluster, "slow"), timeout_s=30)
        with pytest.raises(SomaError, match="another cluster runs in"):
            LocalCluster({"cpu": 1}, folder=tmp_path / "kept").start()
    assert (tmp_path / "kept" / "access.json").stat().st_mode & 0o077 == 0
    with LocalCluster({"cpu": 1}, settings=settings, folder=tmp_path / "kept") as cluster:
        assert cluster.settings.redis_url == url
        result = cluster.coordinator().plan("slow").result(timeout=60)
        assert (result.output, result.attempts) == (7, 1)


def test_a_worker_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kombu.py").write_text("raise RuntimeError('this machine is broken')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = set(whole_tree(os.getpid()))
    with pytest.raises(
        HostNotReady, match=r"(?s)worker cpu-1 ended with code 1 while it started.*this machine is broken"
    ):
        LocalCluster({"cpu": 1}).start()
    assert gone(list(set(whole_tree(os.getpid())) - before), cluster_folders(os.getpid()))


@pytest.mark.parametrize("workers", [{"": 1}, {"cpu,": 1}, {"cpu": -1}, {"cpu": 1.5}])
def test_wrong_numbers_of_workers_are_refused(workers: dict[str, int]) -> None:
    with pytest.raises(InvalidSettings, match="write"):
        LocalCluster(workers)


def test_variables_about_another_cluster_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = "redis://127.0.0.1:1/0"
    for name in ("SOMA_REDIS_URL", "CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.setenv(name, elsewhere)
    monkeypatch.setenv("SOMA_STORE", "redis")
    monkeypatch.setenv("SOMA_WORKER_ID", "somebody-else")
    monkeypatch.setenv("SOMA_LEASE_S", "3")
    with LocalCluster({"cpu": 1}) as cluster:
        assert cluster.settings.lease_s == 3.0
        assert cluster.settings.store.startswith("file://")
        assert "SOMA_WORKER_ID" not in cluster.environ()
        environ = psutil.Process(cluster.workers[0].pid).environ()
        assert (environ["SOMA_WORKER_ID"], environ["SOMA_LEASE_S"]) == ("cpu-1", "3.0")
        assert not any(name.startswith("CELERY_") for name in environ)
        assert cluster.coordinator().forward(len, "abc").result(timeout=60).worker_id == "cpu-1"


# ── a program of its own ─────────────────────────────────────────────────────────────────────────────────────────

OWNER = """
import sys, threading, time
from somatize_worker import LocalCluster

sys.path.insert(0, sys.argv[1])
from tests.acceptance.test_local_cluster import hold

cluster = LocalCluster({"cpu": 2}, slots=2)
starter = threading.Thread(target=cluster.start)        # a thread that does not last
starter.start()
starter.join()
coordinator = cluster.coordinator()
handles = [coordinator.forward(hold, 1) for _ in range(3)]
while any(handle.state != "leased" for handle in handles):
    time.sleep(0.02)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_killed_owner_leaves_nothing(end: str) -> None:
    root = Path(__file__).parents[2]
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(root)], stdout=subprocess.PIPE, text=True, cwd=root)
    assert owner.stdout is not None
    try:
        assert owner.stdout.readline() == "ready\n"
        poll(lambda: [one.name() for one in whole_tree(owner.pid)].count("sleep") == 3, timeout_s=60)
        processes, folders = whole_tree(owner.pid), cluster_folders(owner.pid)
        assert len(folders) == 2
        getattr(owner, end)()
        owner.wait(30)
        poll(lambda: gone(processes, folders), timeout_s=30, what=f"{processes} and {folders} gone")
    finally:
        owner.kill()
        owner.stdout.close()
        owner.wait()


USER = """
import numpy as np
from helpers import Scale, half                       # a module next to the script
from somatize_worker import Filter, LocalCluster

FACTOR = 10

class Times(Filter):                                  # defined in __main__, with a global and a helper of its own
    def fit(self, x, y=None):
        return {"factor": FACTOR}
    def forward(self, x, state):
        return times(x, state["factor"])

def times(x, factor):
    return x * factor

cell = {"__name__": "__main__"}                       # as a notebook does it
exec("offset = 5\\n"
     "class Add:\\n    def forward(self, x): return add(x)\\n"
     "def add(x): return x + offset\\n", cell)

if __name__ == "__main__":
    with LocalCluster({"cpu": 1}) as cluster:
        c = cluster.coordinator()
        fitted = c.fit(Times() >> Scale() >> cell["Add"]() >> half, np.arange(3.0)).result(timeout=60)
        print(c.forward(fitted.pipeline, np.arange(3.0)).result(timeout=60).output.tolist(), fitted.state("Times"))
"""

HELPERS = """
import numpy as np

class Scale:
    def forward(self, x):
        return scaled(x)

def scaled(x):
    return x / 5

def half(x):
    return np.asarray(x) / 2
"""


def test_code_of_any_origin_runs_by_value(tmp_path: Path) -> None:
    """Of a script, of a module beside it, of a notebook's cell; wherever the script is run."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    (project / "script.py").write_text(USER)
    (project / "helpers.py").write_text(HELPERS)
    for name in ("celery", "queue", "numpy"):  # not to be taken for the libraries of that name
        (elsewhere / f"{name}.py").write_text(f"raise RuntimeError('the wrong {name}')\n")
    done = subprocess.run(
        [sys.executable, str(project / "script.py")],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.stdout.strip() == "[2.5, 3.5, 4.5] {'factor': 10}", done.stderr
