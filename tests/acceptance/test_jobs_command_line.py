"""``somatize job`` in a real terminal and for programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from somatize_worker import Coordinator
from tests.support.busy import held, let_go, wait_gone_soon
from tests.support.cluster import Cluster, short
from tests.support.jobs import HOLDS
from tests.support.server import poll
from tests.support.terminal import Terminal

EXAMPLE = Path(__file__).parents[2] / "examples" / "jobs"
SPIRALS = ("spirals", "--entry", "train.py", "--requirements", "spirals/requirements.txt", "--on", "gpu")


@pytest.fixture(scope="module")
def cluster(env_folder: str) -> Iterator[Cluster]:
    """Two workers of one slot."""
    with Cluster({"gpu": 2}, slots=1, settings=short(env_folder=env_folder)) as running:
        yield running


@pytest.fixture(scope="module")
def environ(cluster: Cluster) -> dict[str, str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **cluster.environ(), "PATH": programs, "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def terminal(environ: dict[str, str]) -> Iterator[Terminal]:
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux")
    with Terminal(EXAMPLE, environ) as running:
        yield running


def somatize(environ: dict[str, str], *arguments: str, status: int = 0) -> str:
    """What the command says on standard output."""
    command = [sys.executable, "-m", "somatize_worker", *arguments]
    done = subprocess.run(command, cwd=EXAMPLE, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout


def folder_with(tmp_path: Path, source: str) -> str:
    """A folder whose ``train.py`` is this source."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "train.py").write_text(source)
    return str(folder)


# ── for people ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_example_in_a_terminal(terminal: Terminal) -> None:
    terminal.type(f"somatize job {' '.join(SPIRALS)} --param lr=0.1 --input data.json; echo status $?")
    text = terminal.wait_for("status 0")
    assert "✓ environment  ✓ files  ✓ run  ✓ results" in text
    assert "40/40" in text
    assert "succeeded in " in text
    assert '"epochs": 40' in text
    assert "history.csv, model.npz" in text
    assert "somatize job fetch job-" in text


def test_output_stands_above_the_live_picture(terminal: Terminal, tmp_path: Path) -> None:
    source = f"""
import os, time
print("größe 日本 🙂 [bold]no markup[/]")
for step in (1, 2):
    print(f"line {{step}}")
    print('{{"step": %d, "total": 4, "metrics": {{"loss": 0.125}}}}' % step)
while not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.01)
raise ValueError("bad [rate]")
"""
    terminal.type(f"somatize job {folder_with(tmp_path, source)} --entry train.py --on gpu; echo status $?")
    live = terminal.wait_for("line 2", "● run", "2/4")
    order = [
        "größe 日本 🙂 [bold]no markup[/]",
        "line 1",
        "line 2",
        "train.py of sources",
        "● run",
        "2/4",
        "loss 0.125",
    ]
    assert sorted(order, key=live.index) == order
    assert '"step"' not in live
    let_go(tmp_path)
    ended = terminal.wait_for("status 1")
    assert "✗ run" in ended
    assert ended.count("Traceback (most recent call last):") == 1
    assert "failed: ValueError: bad [rate]" in ended


def test_ctrl_c_cancels_the_job_and_its_processes(terminal: Terminal, c: Coordinator, tmp_path: Path) -> None:
    job = f"somatize job {folder_with(tmp_path, HOLDS)} --entry train.py --on gpu --param folder={tmp_path}"
    terminal.type(f"{job}; echo status $?")
    pids = held(tmp_path)
    terminal.wait_for("holding")
    terminal.press("C-c")
    wait_gone_soon(pids)
    text = terminal.wait_for("status 130")
    assert "cancelled job-" in text
    assert "Traceback" not in text
    (record,) = c.plans(limit=1)
    poll(lambda: c.plan(record.plan_id).state == "cancelled", timeout_s=5)
    assert c.plan(record.plan_id).record.cause == "Ctrl-C"


# ── for programs ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_json_is_one_protocol_message_a_line(environ: dict[str, str], tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "print('größe')\nprint('{\"step\": 1, \"total\": 2}')\nprint('{\"loss\": 0.5}')")
    said = somatize(environ, "job", folder, "--entry", "train.py", "--on", "gpu", "--json")
    messages = [json.loads(line) for line in said.splitlines()]
    assert [one["type"] for one in messages] == ["JobProgress"] * 5 + ["JobResult"]
    assert [one["step"] for one in messages[:-1]] == [1, 2, 3, 1, 4]
    assert messages[-1]["metrics"] == {"loss": 0.5}
    assert messages[-1]["output"].startswith("größe\n")
    failed = somatize(environ, "job", folder, "--entry", "train:main", "--on", "gpu", "--json", status=1)
    assert json.loads(failed.splitlines()[-1])["success"] is False


def test_detached_then_watched_killed_resumed_and_fetched(
    environ: dict[str, str], cluster: Cluster, c: Coordinator, tmp_path: Path
) -> None:
    job_id = somatize(
        environ, "job", *SPIRALS, "--input", "data.json", "-p", "pause=0.1", "-p", "epochs=12", "-d"
    ).strip()
    handle = c.job(job_id)
    poll(lambda: any(one.step >= 4 and one.total == 12 for one in handle.progress(timeout=0)), timeout_s=30)
    killed = next(worker for worker in cluster.workers if worker.worker_id == handle.record.worker)
    cluster.kill(killed)
    events = somatize(environ, "events", job_id, "--json").splitlines()
    steps = [(one["worker_id"], one["step"]) for one in map(json.loads, events) if one["total"] == 12]
    before = [step for worker, step in steps if worker == killed.worker_id]
    after = [step for worker, step in steps if worker != killed.worker_id]
    first = after[0]
    assert before == list(range(1, len(before) + 1))
    assert after == list(range(first, 13))
    assert before[-1] < first <= before[-1] + 2  # what it did last may not have been told any more
    assert f"attempt 2 goes on after epoch {first - 1}" in somatize(environ, "logs", job_id)
    assert json.loads(somatize(environ, "plans", "--json", "-n", "1"))[0]["summary"] == "job train.py of spirals"
    paths = somatize(environ, "job", "fetch", job_id, "--to", str(tmp_path / "got")).splitlines()
    assert [Path(path).name for path in paths] == ["history.csv", "model.npz"]
    assert len((tmp_path / "got/history.csv").read_text().splitlines()) == 13


def test_what_cannot_run_says_so_at_once(environ: dict[str, str]) -> None:
    for arguments, said in {
        ("spirals", "--entry", "other.py", "--on", "gpu"): "other.py",
        ("spirals", "--entry", "train.py", "--on", "nobody"): "no live worker serves 'nobody'",
        ("no-such-folder", "--entry", "train.py", "--on", "gpu"): "is not a folder",
    }.items():
        error = json.loads(somatize(environ, "job", *arguments, "--json", status=1))
        assert said in error["message"]
