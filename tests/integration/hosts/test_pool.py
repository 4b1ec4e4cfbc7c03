"""Which host one gets, what is kept warm, and that nothing leaks."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from somatize_worker.errors import HostDied, HostNotReady
from somatize_worker.hosts import HostPool
from tests.support.hosts import DEADLINE_S, OBEDIENT, do, eventually, living, own_zombies


def ends(pid: int) -> None:
    eventually(lambda: not living(pid), f"the end of process {pid}")


def test_other_filters_or_another_environment_get_another_host(pool: HostPool) -> None:
    host = pool.acquire("a")
    pid = host.pid
    pool.release(host, reuse=True)
    for code, environ in (("b", {}), ("a", {"X": "1"})):
        other = pool.acquire(code, environ=environ)
        assert other.pid != pid
        pool.release(other, reuse=True)
    assert pool.acquire("a").pid == pid


def test_two_plans_with_the_same_filters_run_in_two_hosts(pool: HostPool) -> None:
    first, second = pool.acquire("a"), pool.acquire("a")
    assert first.pid != second.pid
    pool.release(first, reuse=True)
    pool.release(second, reuse=True)
    assert pool.counts()["idle"] == 2


def test_a_spare_is_ready_for_filters_never_seen(pool: HostPool) -> None:
    pool.prepare()
    assert pool.counts() == {"busy": 0, "idle": 0, "spare": 1}
    (spare,) = next(iter(pool._spares.values()))
    eventually(lambda: bool(spare._epoll.poll(0)), "the spare's word that it is ready")
    host = pool.acquire("a")
    assert host is spare
    assert pool.counts() == {"busy": 1, "idle": 0, "spare": 1}
    pool.release(host, reuse=True)


def test_a_spare_that_died_is_replaced_without_an_error(pool: HostPool) -> None:
    pool.prepare()
    (spare,) = next(iter(pool._spares.values()))
    os.kill(spare.pid, signal.SIGKILL)
    host = pool.acquire("a")
    assert host is not spare
    assert do(host, "output = 1") == 1
    pool.release(host, reuse=True)


def test_a_host_that_died_while_idle_is_reaped_and_never_handed_out(pool: HostPool) -> None:
    for notice_first in (True, False):
        host = pool.acquire("a")
        pid = host.pid
        pool.release(host, reuse=True)
        os.kill(pid, signal.SIGKILL)
        if notice_first:
            eventually(lambda: pool.counts()["idle"] == 0, "that the dead host is noticed")
            eventually(lambda: own_zombies() == [], "that the dead host is reaped")
        else:
            eventually(host.exited)
        again = pool.acquire("a")
        assert again.pid != pid
        assert do(again, "output = 1") == 1
        pool.release(again, reuse=False)


def test_the_least_recently_used_host_goes_first(make_pool: Callable[..., HostPool]) -> None:
    pool = make_pool(idle_hosts=2)
    hosts = {code: pool.acquire(code) for code in "abc"}
    pids = {code: host.pid for code, host in hosts.items()}
    for host in hosts.values():
        pool.release(host, reuse=True)
    assert pool.counts()["idle"] == 2
    eventually(lambda: not living(pids["a"]), "the end of the host that is too many")
    for code in "bc":
        assert pool.acquire(code).pid == pids[code]


def test_no_warm_hosts_and_no_spares_when_told_so(make_pool: Callable[..., HostPool]) -> None:
    pool = make_pool(idle_hosts=0, spare_hosts=0)
    host = pool.acquire("a")
    pid = host.pid
    pool.release(host, reuse=True)
    assert pool.counts() == {"busy": 0, "idle": 0, "spare": 0}
    ends(pid)


def test_a_host_that_left_something_behind_is_not_reused(pool: HostPool) -> None:
    for text in (
        "import subprocess; output = subprocess.Popen(['sleep', '1000']).pid",
        "import os\noutput = os.fork()\nif output == 0:\n    import time; time.sleep(1000)",
    ):
        host = pool.acquire("a")
        pid, left = host.pid, do(host, text)
        pool.release(host, reuse=True)
        assert pool.counts()["idle"] == 0
        ends(pid)
        ends(left)


def test_a_host_that_speaks_out_of_turn_is_not_reused(pool: HostPool) -> None:
    host = pool.acquire("a")
    pid = host.pid
    do(host, "import threading; threading.Timer(0.1, channel.send, [['events', []]]).start()")
    pool.release(host, reuse=True)
    eventually(lambda: pool.counts()["idle"] == 0, "that the host spoke")
    assert pool.acquire("a").pid != pid


def test_a_host_that_goes_may_run_its_exit_handlers(pool: HostPool, tmp_path: Path) -> None:
    host = pool.acquire("a")
    mark = tmp_path / "mark"
    do(host, f"import atexit, pathlib; atexit.register(pathlib.Path({str(mark)!r}).touch)")
    pool.release(host, reuse=False)
    eventually(mark.exists, "the exit handler")


def test_one_that_does_not_want_to_go_is_killed(pool: HostPool) -> None:
    host = pool.acquire("a")
    pid = host.pid
    host.send(["run", {"do": "import time; time.sleep(1000)"}])
    pool.release(host, reuse=False)
    ends(pid)


def test_spares_of_environments_long_unused_go(make_pool: Callable[..., HostPool]) -> None:
    pool = make_pool(spare_hosts=2)
    for number in range(6):
        pool.prepare(environ={"X": str(number)})
    assert pool.counts()["spare"] == 8
    assert len(pool.interpreters()) == 1
    assert pool.interpreters() == {Path(sys.executable)}


def test_eight_threads_at_once_get_eight_hosts(make_pool: Callable[..., HostPool]) -> None:
    pool = make_pool(idle_hosts=8)
    barrier = threading.Barrier(8)

    def work(number: int) -> list[int]:
        pids = []
        for _ in range(5):
            barrier.wait()
            host = pool.acquire("a")
            barrier.wait()
            assert do(host, f"output = {number}") == number
            pids.append(host.pid)
            pool.release(host, reuse=True)
        return pids

    with ThreadPoolExecutor(8) as threads:
        rounds = list(zip(*threads.map(work, range(8)), strict=True))
    assert all(len(set(pids)) == 8 for pids in rounds)
    assert pool.counts()["busy"] == 0
    assert pool.counts()["idle"] == 8


def counts() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.parametrize("reuse", [True, False])
def test_nothing_leaks(make_pool: Callable[..., HostPool], reuse: bool) -> None:
    pool = make_pool(idle_hosts=1)

    def cycle(number: int) -> None:
        host = pool.acquire(f"{number % 3}" if number % 20 == 0 else "a")
        assert do(host, "output = 1") == 1
        if number % 7 == 0 and not reuse:
            host.kill("cancelled")
        pool.release(host, reuse=reuse)

    def settled() -> bool:
        return not pool._leaving and pool.counts() == {"busy": 0, "idle": int(reuse), "spare": 1}

    cycle(1)
    eventually(settled)
    files, threads = counts()  # a host may still be starting or closing; over all cycles far more would leak
    for number in range(200 if reuse else 40):
        cycle(number)
    eventually(settled)
    eventually(lambda: counts()[0] <= files, f"no more than {files} open files")
    assert counts()[1] <= threads
    assert own_zombies() == []


def test_without_open_files_the_error_says_so_and_the_pool_goes_on(pool: HostPool) -> None:
    host = pool.acquire("a")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, before[1]))
    try:
        for _ in range(3):
            with pytest.raises(HostNotReady, match="open files"):
                pool.acquire("b", environ={"X": "1"})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert do(host, "output = 1") == 1
    pool.release(host, reuse=True)
    other = pool.acquire("b", environ={"X": "1"})
    assert do(other, "output = 1") == 1
    pool.release(other, reuse=False)


def test_a_closed_pool_has_killed_everything_and_starts_nothing(pool: HostPool) -> None:
    host = pool.acquire("a")
    idle = pool.acquire("b")
    pids = [host.pid, idle.pid]
    pool.release(idle, reuse=True)
    host.send(["run", {"do": "import time; time.sleep(1000)"}])
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(host.receive)
        pool.close()
        with pytest.raises(HostDied) as caught:
            waiting.result(DEADLINE_S)
    assert caught.value.details["reason"] == "worker stopped"
    assert not any(living(pid) for pid in pids)
    assert own_zombies() == []
    pool.release(host, reuse=True)
    with pytest.raises(HostNotReady, match="stopping"):
        pool.acquire("a")
    pool.prepare()
    pool.close()


def test_a_pool_that_is_closed_gives_everything_back(tmp_path: Path) -> None:
    from somatize_worker.settings import Settings

    before = counts()
    for _ in range(3):
        pool = HostPool(Settings(), tmp_path, "test", inside=OBEDIENT)
        pool.prepare()
        pool.release(pool.acquire("a"), reuse=True)
        pool.close()
    assert counts() == before
    assert own_zombies() == []
