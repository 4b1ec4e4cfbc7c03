"""A job cannot outlive its time, its worker or its limits, and does not see what is not its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.integration.jobs.conftest import Workshop
from tests.support.server import poll

FAMILY = """
import os, subprocess, sys, time
sleeper = "import time; time.sleep(600)"
subprocess.Popen([sys.executable, "-c", sleeper, {token!r}])
subprocess.Popen([sys.executable, "-c", sleeper, {token!r}], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:  # a daemon: no parent, no group, no session in common
        os.execv(sys.executable, [sys.executable, "-c", sleeper, {token!r}])
    os._exit(0)
os.wait()
print("family complete", flush=True)
"""


def alive(token: str) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if token in (process.info["cmdline"] or ()) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture
def token() -> str:
    return f"soma-test-{os.getpid()}-{time.monotonic_ns()}"


def family(token: str, then: str) -> str:
    return FAMILY.format(token=token) + then


def wait_for_line(workshop: Workshop, line: str) -> None:
    poll(lambda: line in workshop.heard.lines, timeout_s=30, what=line)


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["event", "function"])
def test_cancelling_kills_the_whole_family_within_two_seconds(workshop: Workshop, token: str, how: str) -> None:
    stop = threading.Event()
    cancelled: threading.Event | Callable[[], bool] = stop if how == "event" else stop.is_set
    outcome = workshop.start(family(token, "time.sleep(600)"), options={"cancelled": cancelled})
    wait_for_line(workshop, "family complete")
    poll(lambda: len(alive(token)) == 3, what="the daemon is there too")
    stop.set()
    poll(lambda: not alive(token), timeout_s=2, what="the family is gone")
    ended = outcome()
    assert (ended.success, ended.cancelled, ended.error) == (False, True, "the job was cancelled")
    assert ended.output == "family complete\n"


def test_a_job_that_ignores_signals_is_cancelled_too(workshop: Workshop) -> None:
    source = (
        "import signal, time\nfor n in (2, 15, 1): signal.signal(n, signal.SIG_IGN)\nprint('deaf')\ntime.sleep(600)"
    )
    stop = threading.Event()
    outcome = workshop.start(source, options={"cancelled": stop})
    wait_for_line(workshop, "deaf")
    stop.set()
    started = time.monotonic()
    assert outcome().cancelled
    assert time.monotonic() - started < 2


def test_the_deadline_kills_the_whole_family(workshop: Workshop, token: str) -> None:
    outcome = workshop.start(
        family(token, "open('outputs/x', 'w').write('kept')\ntime.sleep(600)"), options={"deadline_s": 3.0}
    )
    ended = outcome()
    assert alive(token) == []
    assert not ended.success
    assert not ended.cancelled
    assert ended.error_type == "builtins.TimeoutError"
    assert "not done after its 3 s" in ended.error
    assert ended.certificate is not None
    assert ended.certificate["reason"] == "deadline"
    assert workshop.store.get(ended.outputs["x"]) == b"kept"


def test_what_a_job_leaves_running_ends_with_it(workshop: Workshop, token: str) -> None:
    ended = workshop.run(family(token, "print('bye')"))
    assert ended.success
    assert alive(token) == []
    assert ended.output == "family complete\nbye\n"


def test_cancelled_before_it_starts(workshop: Workshop) -> None:
    ended = workshop.run("print('never')", options={"cancelled": lambda: True}, requirements="six==1.11.0")
    assert ended.cancelled
    assert ended.output == ""
    workshop.run("")


def test_a_deadline_in_the_middle_of_the_build(workshop: Workshop) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        workshop.limit(env_index_url=f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        ended = workshop.run("print('never')", requirements="six==1.12.0", options={"deadline_s": 0.5})
    assert (ended.error_type, ended.certificate) == ("builtins.TimeoutError", None)
    workshop.run("")


WORKER = """
import sys
from pathlib import Path
from somatize_worker.hosts.environments import Environments
from somatize_worker.jobs import JobRunner
from somatize_worker.settings import Settings
from somatize_worker.stores.files import FileStore

settings = Settings(env_folder=sys.argv[1], job_folder=sys.argv[2])
runner = JobRunner(settings, FileStore(Path(sys.argv[3]), settings), "doomed", Environments(settings))
job = {"job_id": "orphan", "files": [{"path": "a.py", "content": sys.argv[4]}], "entry_point": "a.py"}
runner.run(job, on_output=lambda lines: print(*lines, sep="\\n", flush=True))
"""


def test_a_killed_worker_takes_its_jobs_with_it_and_the_next_one_clears_up(
    workshop: Workshop, token: str, env_folder: Path, tmp_path: Path
) -> None:
    folders = [str(env_folder), workshop.settings.job_folder, str(tmp_path / "store")]
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, *folders, family(token, "time.sleep(600)")], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "family complete\n"
    assert len(workshop.leftovers()) == 2
    poll(lambda: len(alive(token)) == 3, what="the daemon is there too")
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    poll(lambda: not alive(token), timeout_s=5, what="the job died with its worker")
    assert len(workshop.leftovers()) == 2
    assert workshop.run("print('next')").success
    assert workshop.leftovers() == []


def test_closing_the_runner_ends_what_runs(workshop: Workshop, token: str) -> None:
    outcome = workshop.start(family(token, "time.sleep(600)"))
    wait_for_line(workshop, "family complete")
    workshop.close()
    assert alive(token) == []
    assert not outcome().success


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────


def living() -> int:
    """Processes on this machine, without the dead ones that nobody has reaped yet."""
    return sum(process.info["status"] != psutil.STATUS_ZOMBIE for process in psutil.process_iter(["status"]))


def test_a_fork_bomb_is_bounded(workshop: Workshop) -> None:
    workshop.limit(job_processes_limit=40)
    before = living()
    source = """
import os, time
deadline = time.monotonic() + 20  # whatever happens, the machine that runs this test is to survive it
while time.monotonic() < deadline:
    os.fork()
    time.sleep(0.02)
"""
    ended = workshop.run(source)
    assert not ended.success
    assert ended.certificate is not None
    assert ended.certificate["reason"] == "process limit"
    assert "40 allowed" in ended.certificate["detail"]
    assert "process limit" in ended.error
    poll(lambda: living() < before + 40, what="all of them are gone")
    assert workshop.run("print('the next job')").output == "the next job\n"


def test_the_memory_limit_counts_the_whole_family(workshop: Workshop) -> None:
    workshop.limit(memory_limit_bytes=200 << 20)
    source = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        block = bytearray(os.urandom(1)) * (80 << 20)
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""
    ended = workshop.run(source, options={"deadline_s": 30.0})
    assert ended.certificate is not None
    assert ended.certificate["reason"] == "memory limit"
    assert "SOMA_MEMORY_LIMIT_BYTES" in ended.error


def test_cores_are_bound(workshop: Workshop) -> None:
    workshop.limit(job_cores=1)
    source = "import os\nprint(len(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        pytest.skip("one core cannot be shared out")
    assert workshop.run(source).output == "1 1\n"


def test_the_kernel_bounds_processes_where_we_are_not_root() -> None:
    from somatize_worker.jobs.launch import _process_ceiling

    if os.getuid() == 0:
        assert _process_ceiling(10) == 0
    else:
        assert _process_ceiling(10) > 1_000


# ── what a job sees ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_workers_secrets_are_not_in_its_environment(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = "SOMA_REDIS_URL SOMA_TOKEN CELERY_BROKER_URL AWS_SECRET_ACCESS_KEY PIP_INDEX_URL UV_INDEX_URL"
    for name in secrets.split():
        monkeypatch.setenv(name, "http://user:very-secret@127.0.0.1:1/simple")
    monkeypatch.setenv("PYTHONPATH", "/very-secret")
    outcome = workshop.run("import json, os\nprint(json.dumps(dict(os.environ)))")
    assert outcome.success, outcome.output
    assert "very-secret" not in outcome.output
    environ = json.loads(outcome.output)
    assert environ["PATH"].split(":")[0] == f"{environ['VIRTUAL_ENV']}/bin"
    assert not environ.keys() & set(secrets.split())


def test_more_variables_where_the_operator_says_so(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    workshop.limit(host_env=("WANDB_*",))
    assert workshop.run("import os\nprint(os.environ['WANDB_MODE'])").output == "offline\n"


@pytest.mark.parametrize("gpus, visible", [((), ""), ((1,), "1"), ((0, 3), "0,3")])
def test_it_sees_the_gpus_that_it_was_given(workshop: Workshop, gpus: tuple[int, ...], visible: str) -> None:
    source = "import os\nprint(repr(os.environ['CUDA_VISIBLE_DEVICES']), os.environ['CUDA_DEVICE_ORDER'])"
    assert workshop.run(source, options={"gpus": gpus}).output == f"{visible!r} PCI_BUS_ID\n"


def test_without_gpus_given_it_sees_what_the_worker_sees(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert workshop.run("import os\nprint(os.environ['CUDA_VISIBLE_DEVICES'])").output == "2\n"


def test_standard_input_is_empty(workshop: Workshop) -> None:
    assert workshop.run("import sys\nprint(repr(sys.stdin.read()))").output == "''\n"


def test_jobs_share_neither_folder_nor_files(workshop: Workshop) -> None:
    source = "import os\nopen('mine', 'w').write('x')\nprint(os.path.dirname(os.getcwd()), sorted(os.listdir('.')))"
    one, other = workshop.run(source), workshop.run(source)
    assert one.output != other.output
    assert "['mine', 'outputs', 'train.py']" in other.output


def test_a_job_folder_that_cannot_be_used_fails_the_job(workshop: Workshop, tmp_path: Path) -> None:
    folder = workshop.settings.job_folder
    (tmp_path / "file").write_text("")
    workshop.limit(job_folder=str(tmp_path / "file"))
    ended = workshop.run("print('never')")
    assert not ended.success
    assert "SOMA_JOB_FOLDER" in ended.error
    workshop.limit(job_folder=folder)
    assert workshop.run("print('again')").success


def test_a_full_disk_fails_the_job_and_leaves_nothing(workshop: Workshop, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        workshop.limit(job_folder=str(small))
        ended = workshop.run("print('never')", files={"big.txt": "x" * 200_000})
        assert not ended.success
        assert "No space left" in ended.error
        assert workshop.run("print('again')").success
        assert workshop.leftovers() == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
