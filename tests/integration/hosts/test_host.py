"""One host and how it may end. Real processes, each of which does what a filter might do."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from somatize_worker.errors import HostDied, HostNotReady
from somatize_worker.hosts import WAKE, HostPool
from somatize_worker.hosts.host import Host
from tests.support.hosts import DEADLINE_S, do, eventually, living, run_script


def dies(host: Host, text: str) -> HostDied:
    host.send(["run", {"do": text}])
    with pytest.raises(HostDied) as caught:
        host.receive(DEADLINE_S)
    return caught.value


def test_it_runs_what_it_is_told_and_is_handed_out_again(pool: HostPool) -> None:
    host = pool.acquire("a")
    assert do(host, "output = 6 * 7") == 42
    pid = host.pid
    pool.release(host, reuse=True)
    again = pool.acquire("a")
    assert again.pid == pid
    assert do(again, "output = channel.fileno() > 2") is True
    pool.release(again, reuse=False)


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("import os; os._exit(3)", {"exit_code": 3, "reason": "exited"}),
        ("import os; os.abort()", {"signal": "SIGABRT", "reason": "crashed"}),
        ("import ctypes; ctypes.string_at(0)", {"signal": "SIGSEGV", "reason": "crashed"}),
        ("import os; os.kill(os.getpid(), 9)", {"signal": "SIGKILL", "reason": "killed from outside"}),
        ("raise SystemExit(5)", {"exit_code": 5, "reason": "exited"}),
    ],
)
def test_the_certificate_of_a_death(pool: HostPool, text: str, ending: dict[str, object]) -> None:
    host = pool.acquire("a")
    host.node = "train"
    death = dies(host, "print('the last words', flush=True)\n" + text)
    assert death.details.items() >= ending.items()
    assert death.details["node"] == "train"
    assert death.details["last_lines"][0] == "the last words"
    assert death.details["peak_bytes"] > 1 << 20
    assert "in node 'train'" in death.message
    assert "the last words" in death.message
    assert host.certificate() == death.details
    pool.release(host, reuse=True)
    another = pool.acquire("a")
    assert do(another, "output = 1") == 1
    pool.release(another, reuse=True)


def test_the_node_that_the_host_noted_is_in_the_certificate(pool: HostPool) -> None:
    host = pool.acquire("a")
    noting = "from somatize_worker.hosts.inside.note import Note\nnote = Note.at({!r})\nnote.write({!r})\n"
    host.node = "first"
    do(host, noting.format(host.note, "first"))
    death = dies(host, noting.format(host.note, "train…") + "import ctypes; ctypes.string_at(0)")
    assert death.details["node"] == "train…"
    pool.release(host, reuse=False)
    assert host.certificate()["node"] == "train…"


def test_the_node_of_the_plan_before_is_forgotten(pool: HostPool) -> None:
    host = pool.acquire("a")
    do(host, f"from somatize_worker.hosts.inside.note import Note\nNote.at({host.note!r}).write('one')")
    assert host.node == "one"
    pool.release(host, reuse=True)
    again = pool.acquire("a")
    assert again is host
    assert again.node is None
    pool.release(again, reuse=False)


def test_frames_that_were_sent_come_before_the_death(pool: HostPool) -> None:
    host = pool.acquire("a")
    host.send(["run", {"do": "import os\nfor i in range(500): channel.send(['events', [i] * 100])\nos._exit(0)"}])
    for i in range(500):
        assert host.receive(DEADLINE_S) == ["events", [i] * 100]
    with pytest.raises(HostDied):
        host.receive(DEADLINE_S)
    pool.release(host, reuse=False)


def test_the_death_is_seen_while_a_fork_holds_the_wire_and_the_fork_is_killed(pool: HostPool) -> None:
    host = pool.acquire("a")
    host.send(["run", {"do": FORK_AND.format(child="import time; time.sleep(1000)", parent="os._exit(1)")}])
    frame = host.receive(DEADLINE_S)
    assert isinstance(frame, list)
    assert living(frame[1])
    with pytest.raises(HostDied) as caught:
        host.receive(DEADLINE_S)
    assert caught.value.details["exit_code"] == 1
    eventually(lambda: not living(frame[1]))
    pool.release(host, reuse=False)


FORK_AND = """
import os
pid = os.fork()
if pid == 0:
    {child}
else:
    channel.send(["child", pid])
    {parent}
"""


DAEMON = """
import os, time
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(writing, str(os.getpid()).encode())
        time.sleep(1000)
    os._exit(0)
os.wait()
output = int(os.read(reading, 20))
"""


def test_a_daemon_that_left_group_and_session_is_killed_too(pool: HostPool) -> None:
    host = pool.acquire("a")
    daemon = do(host, DAEMON)
    assert os.getsid(daemon) != host.pid
    assert living(daemon)
    host.kill("cancelled")
    eventually(lambda: not living(daemon))
    pool.release(host, reuse=False)


def test_a_daemon_of_a_host_that_crashed_is_killed_too(pool: HostPool) -> None:
    host = pool.acquire("a")
    daemon = do(host, DAEMON)
    dies(host, "import os; os.abort()")
    eventually(lambda: not living(daemon))
    pool.release(host, reuse=False)


def test_a_child_without_our_mark_is_killed_as_a_descendant(pool: HostPool) -> None:
    host = pool.acquire("a")
    text = "import subprocess\np = subprocess.Popen(['sleep', '1000'], env={}, start_new_session=True)\noutput = p.pid"
    stray = do(host, text)
    host.kill("cancelled")
    eventually(lambda: not living(stray))
    pool.release(host, reuse=False)


def test_one_that_ignores_sigterm_is_killed_after_the_grace(pool: HostPool) -> None:
    host = pool.acquire("a")
    do(host, "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    certificate = host.child.terminate(0.1, "stopped")
    assert certificate["signal"] == "SIGKILL"
    assert certificate["reason"] == "stopped"
    pool.release(host, reuse=False)


def test_one_that_obeys_sigterm_ends_by_it(pool: HostPool) -> None:
    host = pool.acquire("a")
    certificate = host.child.terminate(DEADLINE_S, "stopped")
    assert certificate["signal"] == "SIGTERM"
    assert certificate["reason"] == "stopped"
    pool.release(host, reuse=False)


def test_a_wake_from_another_thread_interrupts_waiting(pool: HostPool) -> None:
    host = pool.acquire("a")
    host.send(["run", {"do": "import time; time.sleep(1000)"}])
    threading.Timer(0.05, host.wake).start()
    assert host.receive() is WAKE
    host.wake()
    host.wake()
    assert host.receive() is WAKE
    assert host.receive(0.01) is None
    threading.Timer(0.05, host.kill, ["cancelled"]).start()
    with pytest.raises(HostDied) as caught:
        host.receive(DEADLINE_S)
    assert caught.value.details["reason"] == "cancelled"
    pool.release(host, reuse=False)
    host.wake()  # too late, and harmless


def test_a_wake_for_the_plan_before_does_not_reach_the_next(pool: HostPool) -> None:
    host = pool.acquire("a")
    host.wake()
    pool.release(host, reuse=True)
    again = pool.acquire("a")
    assert again is host
    assert again.receive(0.0) is None
    pool.release(again, reuse=False)


def test_sending_to_a_dead_host_tells_how_it_died(pool: HostPool) -> None:
    host = pool.acquire("a")
    os.kill(host.pid, signal.SIGSEGV)
    assert host.child.wait(DEADLINE_S)
    with pytest.raises(HostDied) as caught:
        host.send(["run", {"do": "output = 1"}])
    assert caught.value.details["signal"] == "SIGSEGV"
    pool.release(host, reuse=False)


def test_one_that_stops_reading_is_given_up(pool: HostPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("somatize_worker.hosts.host.STALL_S", 0.1)
    host = pool.acquire("a")
    os.kill(host.pid, signal.SIGSTOP)
    with pytest.raises(HostDied) as caught:
        host.send(["run", {"do": "#" * 10_000_000}])
    assert caught.value.details["reason"] == "stuck"
    pool.release(host, reuse=False)


def test_noise_on_the_wire_is_not_taken_for_a_frame(pool: HostPool) -> None:
    host = pool.acquire("a")
    death = dies(host, "import os; os.write(channel.fileno(), b'hello, wire'); import time; time.sleep(1000)")
    assert death.details["reason"] == "broke the wire"
    pool.release(host, reuse=False)


def test_one_that_closes_its_wire_is_killed(pool: HostPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("somatize_worker.hosts.host._EXIT_AFTER_EOF_S", 0.1)
    host = pool.acquire("a")
    death = dies(host, "import os, time; os.closerange(3, 5000); time.sleep(1000)")
    assert death.details["reason"] == "closed its wire"
    pool.release(host, reuse=False)


def test_without_pidfd_the_end_is_still_seen(
    make_pool: Callable[..., HostPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError("not in this kernel")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    pool = make_pool(spare_hosts=0)
    host = pool.acquire("a")
    assert host.child.exit_fd() is None
    host.send(["run", {"do": FORK_AND.format(child="import time; time.sleep(1000)", parent="os._exit(1)")}])
    frame = host.receive(DEADLINE_S)
    assert isinstance(frame, list)
    with pytest.raises(HostDied):
        host.receive(DEADLINE_S)
    eventually(lambda: not living(frame[1]))
    pool.release(host, reuse=False)


def test_the_peak_is_the_hosts_own_and_not_the_workers(pool: HostPool) -> None:
    ballast = bytearray(400 << 20)
    ballast[:: 4 << 10] = b"x" * len(ballast[:: 4 << 10])
    host = pool.acquire("a")
    assert dies(host, "import os; os._exit(0)").details["peak_bytes"] < 300 << 20
    pool.release(host, reuse=False)
    # The kernel hands the peak of whoever started a process down to it: what is below is not told apart by it alone.
    size = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) + (300 << 20)
    host = pool.acquire("a")
    death = dies(host, f"import os; x = b'x' * {size}; os._exit(0)")
    assert death.details["peak_bytes"] > 0.9 * size
    pool.release(host, reuse=False)
    del ballast


def test_what_fails_before_it_is_ready_says_what_it_printed(make_pool: Callable[..., HostPool], tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import a_module_that_is_not_there\n")
    pool = make_pool(inside=broken)
    with pytest.raises(HostNotReady, match="No module named 'a_module_that_is_not_there'") as caught:
        pool.acquire("a")
    assert caught.value.details["certificate"]["exit_code"] == 1
    assert str(sys.executable) in caught.value.message


SAYS_SOMETHING_ELSE = r"import os, sys; os.write(int(sys.argv[1]), b'\0\0\0\4\x91\xa2no')"


@pytest.mark.parametrize(("text", "said"), [("", "said nothing"), (SAYS_SOMETHING_ELSE, r"said \['no'\]")])
def test_one_that_never_gets_ready_is_killed(
    make_pool: Callable[..., HostPool], tmp_path: Path, text: str, said: str
) -> None:
    silent = tmp_path / "silent.py"
    silent.write_text(f"print('still loading', flush=True)\n{text}\nimport time; time.sleep(1000)\n")
    pool = make_pool(inside=silent, host_ready_timeout_s=1.0, spare_hosts=0)
    with pytest.raises(HostNotReady, match=said) as caught:
        pool.acquire("a")
    assert "still loading" in caught.value.message
    assert caught.value.details["certificate"]["reason"] == "not ready"


def test_an_interpreter_that_is_not_there(pool: HostPool, tmp_path: Path) -> None:
    with pytest.raises(HostNotReady, match="cannot be started"):
        pool.acquire("a", tmp_path / "bin" / "python")
    with pytest.raises(HostNotReady, match="cannot be started"):  # the spare could not be started either
        pool.acquire("a", tmp_path / "bin" / "python")


def test_the_environment_holds_what_it_should_and_no_secret(
    make_pool: Callable[..., HostPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMA_TOKEN", "secret")
    monkeypatch.setenv("SOMA_REDIS_URL", "redis://:secret@server")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://:secret@server")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MY_FLAG", "yes")
    pool = make_pool(host_env=("MY_*",))
    host = pool.acquire("a", environ={"CUDA_VISIBLE_DEVICES": "1"})
    seen = do(host, "import os; output = dict(os.environ)")
    assert "secret" not in str(seen)
    assert seen["OMP_NUM_THREADS"] == "3"
    assert seen["CUDA_VISIBLE_DEVICES"] == "1"
    assert seen["MY_FLAG"] == "yes"
    assert seen["SOMA_HOST"] == host.child.mark
    assert do(host, "import sys; output = sys.stdin.read()") == ""
    pool.release(host, reuse=False)


def test_nothing_but_the_wire_is_inherited(pool: HostPool) -> None:
    with open(os.devnull) as keep:
        os.set_inheritable(keep.fileno(), True)
        host = pool.acquire("a")
        # standard streams, the wire, and the one that lists them
        assert len(do(host, "import os; output = os.listdir('/proc/self/fd')")) == 5
    pool.release(host, reuse=False)


def test_when_the_worker_is_killed_its_hosts_and_their_children_go(tmp_path: Path) -> None:
    text = f"""
import sys, time
from pathlib import Path
from somatize_worker.hosts import HostPool
from somatize_worker.settings import Settings
from tests.support.hosts import do, OBEDIENT
from tests.integration.hosts.test_host import DAEMON
pool = HostPool(Settings(), Path({str(tmp_path)!r}), "test", inside=OBEDIENT)
host = pool.acquire("a")
daemon = do(host, DAEMON)
sleeper = do(host, "import subprocess; output = subprocess.Popen(['sleep', '1000']).pid")
host.send(["run", {{"do": "import time; time.sleep(1000)"}}])
print(host.pid, daemon, sleeper, flush=True)
time.sleep(1000)
"""
    worker = run_script(text)
    assert worker.stdout is not None
    left = [int(word) for word in worker.stdout.readline().split()]
    assert len(left) == 3
    assert all(living(pid) for pid in left)
    worker.kill()
    worker.wait()
    worker.stdout.close()
    eventually(lambda: not any(living(pid) for pid in left), "the end of all processes")
