"""Pool and supervision together with the real program that a host runs."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from somatize_worker.errors import HostDied
from somatize_worker.hosts import HostPool
from somatize_worker.hosts.host import INSIDE, Host
from somatize_worker.packing import pack
from tests.support.hosts import DEADLINE_S, eventually, living, run_script


@pytest.fixture
def store() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="soma-test-") as folder:
        yield Path(folder)


@pytest.fixture
def pool(make_pool: Callable[..., HostPool]) -> HostPool:
    return make_pool(inside=INSIDE)


def step(text: str) -> bytes:
    """A pickled filter whose ``forward(x, state)`` is this text; it assigns ``output``."""
    names: dict[str, Any] = {}
    body = "\n".join(f"        {line}" for line in text.splitlines())
    exec(
        f"class Step:\n    _kind = 'stateless'\n    def forward(self, x, state):\n{body}\n        return output", names
    )
    pickled: bytes = cloudpickle.dumps(names["Step"]())
    return pickled


def plan(*texts: str) -> bytes:
    """A spec that runs these steps one after the other, as nodes n0, n1, ..."""
    filters: list[dict[str, Any]] = [
        {"node_id": f"n{i}", "pickle": step(text), "state": None, "requirements": [], "trainable": False}
        for i, text in enumerate(texts)
    ]
    sequence = {"Sequence": [{"Execute": {"node_id": f"n{i}"}} for i in range(len(texts))]}
    return pack({"plan_id": "p", "plan": sequence, "mode": "Forward", "input": 1, "filters": filters, "metadata": {}})


def send(host: Host, spec: bytes, store: Path) -> None:
    request = {"plan_id": "p", "epoch": 1, "spec": spec, "journal": {}, "store": str(store), "inline_limit": 65536}
    host.send(["run", {**request, "worker_id": "w", "cores": 1, "keep": False, "note": host.note}])


def last(host: Host) -> list[Any]:
    while True:
        frame = host.receive(DEADLINE_S)
        assert isinstance(frame, list)
        if frame[0] in ("done", "failed"):
            return frame


def test_a_warm_host_runs_plan_after_plan(pool: HostPool, store: Path) -> None:
    pids = set()
    for _ in range(5):
        host = pool.acquire("a")
        pids.add(host.pid)
        send(host, plan("output = x + 1; print('printed')", "output = x * 10"), store)
        kind, said = last(host)
        assert kind == "done"
        assert said["output"] == 20
        assert said["clean"] is True
        assert host.take_output(final=True) == ["printed"]
        pool.release(host, reuse=said["clean"])
    assert len(pids) == 1


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("import os; os._exit(3)", {"exit_code": 3}),
        ("import os; os.abort()", {"signal": "SIGABRT"}),
        ("import ctypes; output = ctypes.string_at(0)", {"signal": "SIGSEGV"}),
        ("import os; os.kill(os.getpid(), 9)", {"signal": "SIGKILL"}),
    ],
)
def test_a_filter_that_ends_its_process(pool: HostPool, store: Path, text: str, ending: dict[str, Any]) -> None:
    host = pool.acquire("a")
    send(host, plan("output = x", f"print('now', flush=True)\n{text}"), store)
    with pytest.raises(HostDied) as caught:
        last(host)
    assert caught.value.details.items() >= ending.items()
    assert caught.value.details["node"] == "n1"
    assert caught.value.details["last_lines"][0] == "now"
    pool.release(host, reuse=False)


@pytest.mark.parametrize("fd", [1, 2])
def test_a_filter_that_prints_a_megabyte(pool: HostPool, store: Path, fd: int) -> None:
    host = pool.acquire("a")
    send(host, plan(f"import os\nfor _ in range(10_000): os.write({fd}, b'x' * 99 + b'\\n')\noutput = x"), store)
    assert last(host)[1]["output"] == 1
    assert sum(len(line) + 1 for line in host.take_output(final=True)) == 1_000_000
    pool.release(host, reuse=True)
    assert pool.counts()["idle"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\noutput = 0",
        "import os, time\noutput = os.fork()\nif output == 0: time.sleep(1000)",
        "import subprocess\noutput = subprocess.Popen(['sleep', '1000'], start_new_session=True, env={}).pid",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)\n    os._exit(0)"
        "\nos.wait()\noutput = 0",
    ],
)
def test_a_filter_that_leaves_something_behind(pool: HostPool, store: Path, text: str) -> None:
    host = pool.acquire("a")
    pid = host.pid
    send(host, plan(text), store)
    kind, said = last(host)
    assert kind == "done"
    assert said["clean"] is False
    pool.release(host, reuse=said["clean"])
    eventually(lambda: not living(pid))
    if said["output"]:
        eventually(lambda: not living(said["output"]))


def test_helper_processes_of_a_host_do_not_keep_it_from_being_used_again(pool: HostPool, store: Path) -> None:
    busy = (
        "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nimport os; output = os.getpid()"
    )
    filters: list[dict[str, Any]] = [
        {"node_id": node, "pickle": step(busy), "state": None, "requirements": [], "trainable": False}
        for node in "abcd"
    ]
    branches = {"Parallel": [{"Execute": {"node_id": node}} for node in "abcd"]}
    spec = {"plan_id": "p", "plan": branches, "mode": "Forward", "input": 1, "filters": filters, "metadata": {}}
    host = pool.acquire("a")
    request = {"plan_id": "p", "epoch": 1, "spec": pack(spec), "journal": {}, "store": str(store)}
    host.send(["run", {**request, "inline_limit": 65536, "worker_id": "w", "cores": 2, "keep": False}])
    kind, said = last(host)
    assert kind == "done", said
    assert len(set(said["output"].values())) == 2
    pool.release(host, reuse=said["clean"])
    assert pool.counts()["idle"] == 1
    pool.tidy()
    assert pool.counts()["idle"] == 1


def test_memory_over_the_limit(make_pool: Callable[..., HostPool], store: Path) -> None:
    pool = make_pool(inside=INSIDE, memory_limit_bytes=400 << 20)
    host = pool.acquire("a")
    send(host, plan("output = x", "import time\nheld = b'x' * (800 << 20)\ntime.sleep(1000)\noutput = 0"), store)
    with pytest.raises(HostDied) as caught:
        last(host)
    assert caught.value.details["reason"] == "memory limit"
    assert caught.value.details["node"] == "n1"
    pool.release(host, reuse=False)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_hosts_go_when_their_worker_goes(store: Path, how: signal.Signals) -> None:
    text = """
import sys, time
from pathlib import Path
from somatize_worker.hosts import HostPool
from somatize_worker.settings import Settings
from tests.integration.hosts.test_with_inside import plan, send
store = Path(sys.argv[1])
pool = HostPool(Settings(), store, "test")
host = pool.acquire("a")
send(host, plan('''
import os, subprocess, time
sleeper = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(os.getpid(), sleeper.pid, flush=True)
time.sleep(1000)
output = 0
'''), store)
while not (lines := host.take_output()):
    time.sleep(0.01)
spare = next(iter(pool._spares.values()))[0]
print(lines[0], spare.pid, flush=True)
time.sleep(1000)
"""
    worker = run_script(text, str(store))
    assert worker.stdout is not None
    left = [int(word) for word in worker.stdout.readline().split()]
    assert len(left) == 3
    assert all(living(pid) for pid in left)
    os.kill(worker.pid, how)
    worker.wait()
    worker.stdout.close()
    eventually(lambda: not any(living(pid) for pid in left), "the end of all processes")
