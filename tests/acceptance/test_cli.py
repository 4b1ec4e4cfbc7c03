"""The command line against a cluster that `somatize up` started: what it prints, for people and for programs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from somatize_worker import Coordinator, PlanFailed, protocol
from somatize_worker.settings import Settings
from tests.support.commands import PseudoTerminal, cluster_folders, command, gone, somatize, whole_tree
from tests.support.server import poll

COMMANDS = [
    "demo",
    "up",
    "worker",
    "submit",
    "job",
    "job fetch",
    "cancel",
    "workers",
    "plans",
    "events",
    "logs",
    "doctor",
]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, Any]]:
    """What ``somatize up --json`` says."""
    argv = command("up", "-w", "cpu=1", "-w", "gpu,training=1", "--slots", "2", "--json")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        text = ""
        while "\n}\n" not in text:
            line = up.stdout.readline()
            assert line, text
            text += line
        yield json.loads(text)
        processes, folders = whole_tree(up.pid), cluster_folders(up.pid)
        up.send_signal(signal.SIGINT)
        assert up.wait(30) == 0
        assert up.stdout.read() == ""
        assert gone(processes, folders)


@pytest.fixture(scope="module")
def run(cluster: dict[str, Any]) -> Run:
    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return somatize(*arguments, environ=cluster["environ"], **options)

    return run


@pytest.fixture(scope="module")
def coordinator(cluster: dict[str, Any]) -> Iterator[Coordinator]:
    with Coordinator(settings=Settings.from_env(cluster["environ"])) as coordinator:
        yield coordinator


def plan_of(step: Any, plan_id: str, value: Any) -> protocol.SerializedPlan:
    return protocol.SerializedPlan(
        plan_id=plan_id,
        plan=protocol.Execute(node_id="step"),
        input=protocol.InlineInput(value=protocol.plain_to_value(value)),
        filters=(protocol.SerializedFilter(node_id="step", pickled_filter=cloudpickle.dumps(step)),),
    )


class Double:
    def forward(self, x: Any) -> Any:
        print("doubling")
        return x * 2


class Endless:
    def forward(self, x: Any) -> Any:
        return {"values": x * float("nan"), "most": float("inf")}


cloudpickle.register_pickle_by_value(sys.modules[__name__])


# ── help and mistakes ────────────────────────────────────────────────────────────────────────────────────────────


def test_help_is_quick_and_has_examples() -> None:
    """Nothing heavy is loaded for it, and every command shows how it is used."""
    code = f"""
import sys
from typer.testing import CliRunner
from somatize_worker.cli import app
for name in {COMMANDS!r}:
    shown = CliRunner().invoke(app, [*name.split(), "--help"], env={{"COLUMNS": "80"}})
    assert shown.exit_code == 0, (name, shown.output)
    assert "Example: somatize " + name in " ".join(shown.output.split()), (name, shown.output)
    assert ("--json" in shown.output) == (name != "worker"), name
    assert max(map(len, shown.output.splitlines())) <= 80, name
heavy = {{"celery", "numpy", "redis", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["plans", "--url", "redis://127.0.0.1:1/0"], 1, "error: the Redis or Valkey server at redis://127.0.0.1:1/0"),
        (["plans", "--state", "sleeping"], 2, "is no state"),
        (["up", "-w", "cpu=some"], 2, "write TAG=NUMBER, as in gpu=2"),
        (["job", "nowhere", "--entry", "train.py"], 1, "error: nowhere is not a folder"),
        (["submit", "nowhere.json"], 1, "error: nowhere.json cannot be read: No such file"),
        (["fetch"], 2, "No such command"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_a_sentence(arguments: list[str], status: int, said: str) -> None:
    done = somatize(*arguments)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_mistake_as_json() -> None:
    done = somatize("workers", "--json", "--url", "http://127.0.0.1")
    error = json.loads(done.stdout)
    assert (done.returncode, done.stderr, error["error"]) == (1, "", "InvalidSettings")


# ── plans ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plan_from_a_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(protocol.to_json(plan_of(Double(), "from-file", np.arange(3.0))))
    shown = run("submit", str(file), "--on", "gpu")
    assert shown.returncode == 0
    assert "succeeded in" in shown.stdout
    assert "[0. 2. 4.]" in shown.stdout
    assert "✓  step  gpu-1" in shown.stderr

    again = json.loads(run("submit", str(file), "--on", "gpu", "--json").stdout)  # the same plan: its result is shared
    assert (again["plan_id"], again["worker_id"]) == ("from-file", "gpu-1")
    assert again["output"] == {"type": "Tensor", "data": {"values": [0.0, 2.0, 4.0], "shape": [3]}}

    events = [json.loads(line) for line in run("events", "from-f", "--json").stdout.splitlines()]
    kinds = [message["event"]["event_type"] for message in events]
    assert kinds == ["RunStarted", "NodeStarted", "NodeCompleted", "RunCompleted"]
    assert run("logs", "from-file").stdout == "doubling\n"
    assert [json.loads(line) for line in run("logs", "from-file", "--json", "-f").stdout.splitlines()] == ["doubling"]


def test_a_message_from_standard_input_with_a_result_that_json_lacks(run: Run) -> None:
    message = protocol.AssignPlan(plan=plan_of(Endless(), "endless", np.ones(2)))
    done = run("submit", "-", "--json", text=protocol.to_json(message).decode())

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    output = json.loads(done.stdout, parse_constant=refuse)["output"]
    assert output["data"]["most"] is None
    assert output["data"]["values"]["data"]["values"] == [None, None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ('{"type":"Ping"}', "is the message Ping"),
        ('{"plan_id":7}', "plan_id: expected text, found 7"),
    ],
)
def test_wrong_plans_name_the_field(run: Run, text: str, said: str) -> None:
    done = run("submit", "-", text=text)
    assert done.returncode == 1
    assert said in done.stderr


def test_attempts_places_and_reasons(run: Run, coordinator: Coordinator) -> None:
    def dies(x: Any) -> Any:
        import os

        print("last words")
        os._exit(3)

    with pytest.raises(PlanFailed):
        coordinator.forward(dies, 1, plan_id="dies", retries=1, retry_delay=0.05).result(timeout=60)
    row = next(line for line in run("plans", "--state", "failed").stdout.splitlines() if line.startswith("dies"))
    assert "failed ×2" in row
    assert "exited with code 3" in row  # in a pipe all of it is on one line
    record = next(one for one in json.loads(run("plans", "--json").stdout) if one["plan_id"] == "dies")
    assert [entry["worker"] for entry in record["history"]] == ["cpu-1", "cpu-1"]
    shown = run("events", "dies")
    assert shown.returncode == 0
    assert shown.stderr.count("exited with code 3") == 3  # the end, and each run
    assert run("logs", "dies").stdout.count("last words") == 2


def test_cancel(run: Run, coordinator: Coordinator) -> None:
    def sleeps(x: Any) -> Any:
        import time

        time.sleep(600)

    handle = coordinator.forward(sleeps, 1)
    poll(lambda: handle.state == "leased")
    assert run("cancel", handle.plan_id[:12]).stdout == f"cancelled {handle.plan_id}\n"
    assert json.loads(run("cancel", handle.plan_id, "--json").stdout) == {
        "plan_id": handle.plan_id,
        "state": "cancelled",
    }
    done = coordinator.forward(len, "abc", plan_id="done-already")
    done.result(timeout=60)
    late = run("cancel", "done-already")
    assert (late.returncode, late.stderr) == (1, "done-already is not cancelled: it succeeded\n")
    unknown = run("cancel", "never-heard-of")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no plan or job 'never-heard-of' is known" in unknown.stderr
    assert run("cancel", "never-heard-of", "--unseen").stdout == "cancelled never-heard-of\n"


def test_a_reader_who_has_enough(run: Run, cluster: dict[str, Any], coordinator: Coordinator) -> None:
    def prints(x: Any) -> Any:
        for number in range(20_000):
            print(number, "x" * 40)
        return x

    coordinator.forward(prints, 1, plan_id="prints").result(timeout=60)
    shell = f"{' '.join(command('logs', 'prints'))} | head -1"
    environ = {"PATH": "/usr/bin:/bin", **cluster["environ"]}
    done = subprocess.run(["sh", "-c", shell], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

TRAIN = """
import json, os, time
params = json.load(open(os.environ["SOMA_JOB_PARAMS"]))
for step in range(params["steps"]):
    print(json.dumps({"step": step + 1, "total": params["steps"], "metrics": {"loss": 1 / (step + 1)}}))
    time.sleep(params.get("pause", 0))
print("done", flush=True)
open("outputs/model.txt", "w").write("weights")
if params.get("fail"):
    raise ValueError("no luck")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / ".secret").write_text("not source")
    return tmp_path


def test_a_job_and_its_files(run: Run, project: Path) -> None:
    shown = run("job", str(project), "--entry", "train.py", "-p", "steps=3")
    assert shown.returncode == 0, shown.stderr
    assert "3/3" in shown.stdout
    assert "left model.txt" in shown.stdout
    assert '"step"' not in shown.stdout  # progress is drawn, not printed
    job_id = shown.stdout.split("somatize job fetch ")[1].strip()
    fetched = run("job", "fetch", job_id, "--to", str(project / "back"), "--json")
    (path,) = json.loads(fetched.stdout)
    assert Path(path).read_text() == "weights"
    missing = run("job", "fetch", job_id, "other.txt", folder=project)
    assert missing.returncode == 1
    assert "it left ['model.txt']" in missing.stderr
    assert "collect_results" in run("events", job_id).stdout


def test_a_job_that_fails(run: Run, project: Path) -> None:
    shown = run("job", str(project), "--entry", "train.py", "--param", "steps=1", "-p", "fail=true")
    assert shown.returncode == 1
    assert shown.stdout.count('File "train.py", line 10') == 1  # as the job printed it
    assert "failed: ValueError: no luck" in shown.stderr
    lines = run("job", str(project), "--entry", "train.py", "-p", "steps=1", "-p", "fail=true", "--json")
    result = [json.loads(line) for line in lines.stdout.splitlines()][-1]
    assert (lines.returncode, result["type"], result["success"]) == (1, "JobResult", False)


def test_a_job_in_a_terminal(cluster: dict[str, Any], project: Path, coordinator: Coordinator) -> None:
    """It is drawn while it runs, and Ctrl-C cancels it."""
    argv = command("job", str(project), "--entry", "train.py", "-p", "steps=600", "-p", "pause=0.1")
    terminal = PseudoTerminal(argv, environ=cluster["environ"])
    terminal.wait_for("4/600")
    assert "● run" in terminal.shown
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("cancelled job-")
    assert terminal.finish() == 130
    job_id = terminal.shown.rpartition("cancelled ")[2].split()[0]
    poll(lambda: coordinator.job(job_id).state == "cancelled")


# ── the cluster ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_workers_and_doctor(run: Run, cluster: dict[str, Any]) -> None:
    found = json.loads(run("workers", "--json").stdout)
    assert [(one["worker_id"], one["capabilities"]["tags"]) for one in found] == [
        ("cpu-1", ["cpu"]),
        ("gpu-1", ["gpu", "training"]),
    ]
    assert [one["pid"] for one in found] == [one["pid"] for one in cluster["workers"]]
    checks = json.loads(run("doctor", "--json").stdout)
    assert all(check["ok"] for check in checks), checks
    assert [check["check"] for check in checks if check["check"].startswith("plan")] == [
        "plan on cpu",
        "plan on gpu",
        "plan on training",
    ]
    password = cluster["environ"]["SOMA_REDIS_URL"].split(":")[2].split("@")[0]
    assert password not in json.dumps(checks)
    sick = somatize("doctor", "--url", "redis://127.0.0.1:1/0")
    assert sick.returncode == 1
    assert "✗ server" in sick.stdout


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(cluster: dict[str, Any], coordinator: Coordinator, columns: int) -> None:
    long = "a sentence that is rather long, and then goes on, as error messages do, " * 4

    def fails(x: Any) -> Any:
        raise RuntimeError(long)

    with pytest.raises(PlanFailed):
        coordinator.forward(fails, 1).result(timeout=60)
    for arguments in (["plans"], ["workers"]):
        terminal = PseudoTerminal(command(*arguments), columns=columns, environ=cluster["environ"])
        assert terminal.finish() == 0
        lines = terminal.shown.splitlines()
        assert max(map(len, lines)) <= columns
        assert all(line.startswith((" ", "\n")) or line.split()[0] for line in lines if line)
    plain = PseudoTerminal(command("workers"), columns=columns, environ={**cluster["environ"], "NO_COLOR": "1"})
    plain.finish()
    assert "\x1b[3" not in plain._raw.decode()


def test_up_in_a_terminal_tells_how_to_join(tmp_path: Path) -> None:
    terminal = PseudoTerminal(command("up", "-w", "cpu=1", "--folder", str(tmp_path / "kept")), columns=100)
    terminal.wait_for("Ctrl-C stops it.")
    processes = whole_tree(terminal.process.pid)
    exports = dict(line.split("export ")[1].split("=", 1) for line in terminal.shown.splitlines() if "export" in line)
    assert "cpu-1" in somatize("workers", environ=exports).stdout
    worker = next(one for one in processes if "somatize_worker.worker" in " ".join(one.cmdline()))
    worker.kill()
    terminal.wait_for("worker cpu-1 has ended (signal 9")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("stopping")
    assert terminal.finish() == 0
    assert gone(processes, [])


def test_a_taken_port_is_told() -> None:
    """By the cluster that has it: nothing else is disturbed."""
    with subprocess.Popen(command("up", "-w", "cpu=0", "--json"), stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        url = next(line for line in up.stdout if "SOMA_REDIS_URL" in line).split('"')[3]
        port = url.rpartition(":")[2].split("/")[0]
        second = somatize("up", "-w", "cpu=1", "--port", port)
        up.terminate()
        assert up.wait(30) == 0
    assert (second.returncode, second.stdout) == (1, "")
    assert f"port {port} is in use" in second.stderr
