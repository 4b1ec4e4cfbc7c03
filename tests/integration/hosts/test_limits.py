"""Limits on real processes."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from somatize_worker.errors import HostDied
from somatize_worker.hosts import HostPool, Launch, Limits, Nursery
from somatize_worker.hosts.limits import own_memory
from tests.support.hosts import DEADLINE_S, do, eventually, living, python

MB = 1 << 20


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A store's folder in shared memory, as by default."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="soma-test-") as folder:
        yield Path(folder)


def test_a_host_that_takes_too_much_memory_is_killed_and_the_reason_says_so(make_pool: Callable[..., HostPool]) -> None:
    pool = make_pool(memory_limit_bytes=300 * MB)
    host = pool.acquire("a")
    host.node = "big"
    host.send(["run", {"do": "x = b'x' * (600 << 20); import time; time.sleep(1000)"}])
    with pytest.raises(HostDied) as caught:
        host.receive(DEADLINE_S)
    assert caught.value.details["reason"] == "memory limit"
    assert "300 MiB allowed" in caught.value.message
    assert "SOMA_MEMORY_LIMIT_BYTES" in caught.value.message
    assert caught.value.details["peak_bytes"] > 300 * MB
    pool.release(host, reuse=False)


def test_memory_of_everything_it_started_counts(make_pool: Callable[..., HostPool]) -> None:
    pool = make_pool(memory_limit_bytes=400 * MB)
    host = pool.acquire("a")
    text = """
import subprocess, sys
more = "x = b'x' * (250 << 20); print(1, flush=True); import time; time.sleep(1000)"
for _ in range(2):
    subprocess.Popen([sys.executable, "-c", more], start_new_session=True)
import time; time.sleep(1000)
"""
    host.send(["run", {"do": text}])
    with pytest.raises(HostDied) as caught:
        host.receive(DEADLINE_S)
    assert caught.value.details["reason"] == "memory limit"
    pool.release(host, reuse=False)


def test_mapped_store_files_do_not_count_and_forked_pages_count_once(
    make_pool: Callable[..., HostPool], shared_folder: Path
) -> None:
    stored = shared_folder / "tensor.npy"
    stored.write_bytes(b"x" * (300 * MB))
    pool = make_pool(store_folder=shared_folder, memory_limit_bytes=350 * MB)
    host = pool.acquire("a")
    text = f"""
import mmap, os, time
file = open({str(stored)!r}, "rb")
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
total = sum(mapped[i] for i in range(0, len(mapped), 4096))
private = b"x" * (200 << 20)
forks = [os.fork() for _ in range(1)]
if forks[0] == 0:
    time.sleep(1000)
output = os.getpid()
"""
    do(host, text)
    looked = pool.nursery.watch.looks
    eventually(lambda: pool.nursery.watch.looks > looked + 2, "a look at the memory")
    assert do(host, "output = len(mapped)") == 300 * MB
    assert own_memory([host.pid], shared_folder) < 300 * MB
    pool.release(host, reuse=False)


def test_shared_memory_that_it_made_counts() -> None:
    before = own_memory([os.getpid()])
    with mmap.mmap(-1, 100 * MB) as shared:
        shared[:: 4 << 10] = b"x" * len(shared[:: 4 << 10])
        assert own_memory([os.getpid()]) - before > 90 * MB


def test_a_fork_bomb_is_stopped(nursery: Nursery) -> None:
    bomb = "import os, time\nfor _ in range(300):\n    if os.fork() == 0: time.sleep(1000)\ntime.sleep(1000)"
    child = nursery.start(Launch(argv=python(bomb), environ={}, limits=Limits(processes=50)))
    assert child.wait(DEADLINE_S)
    certificate = child.kill()
    assert certificate["reason"] == "process limit"
    assert "50 allowed" in certificate["detail"]
    assert not living(child.pid)
    child.close()
