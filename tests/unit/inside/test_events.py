"""Events: their form, their batches, and what user code reports."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from somatize_worker import protocol
from somatize_worker.hosts.inside.calls import Step
from somatize_worker.hosts.inside.failures import NodeFailed
from somatize_worker.hosts.inside.note import Note, read
from somatize_worker.hosts.inside.reporting import Events, shown
from tests.unit.inside.world import Scaler, World, sequence


def nowhere(frame: list[Any]) -> None:
    """Frames that no test looks at."""


def all_events() -> list[str]:
    events = Events(nowhere, 'run "1" é', trial=("study", None))
    events.run_started({"total_nodes": 3, "cached_nodes": 1, "parallel_branches": 0})
    step = Step('n"\u2028\n', lambda x: x)
    started = events.started(step)
    events.report(0.25, {"loss": 0.5, "nan": float("nan")}, None)
    events.report(None, {"loss": 0.25}, 7)
    events.node_progress(step.node_id, 0.5)
    events.completed(step.node_id, started, np.ones((2, 3)))
    events.failed("n", 'ValueError: "x"\n')
    events.cache_hit("n", bytes(range(32)), "Local", 3)
    events.run_completed(12)
    events.run_failed("it failed")
    return events.take()


def test_every_event_is_one_of_the_protocols():
    texts = all_events()
    read_back = [protocol.from_json(protocol.Event, text.encode()) for text in texts]
    assert [type(event).__name__ for event in read_back] == [json.loads(text)["event_type"] for text in texts]
    kinds = {json.loads(text)["event_type"] for text in texts}
    assert kinds == {
        "RunStarted", "NodeStarted", "NodeProgress", "TrialMetric", "NodeCompleted", "NodeFailed", "NodeCacheHit",
        "RunCompleted", "RunFailed",
    }  # fmt: skip


def test_metrics_are_numbered_where_the_user_does_not():
    metrics = [json.loads(text) for text in all_events() if "TrialMetric" in text]
    assert [(m["metric"]["name"], m["metric"]["value"], m["metric"]["step"]) for m in metrics] == [
        ("loss", 0.5, 0),
        ("nan", None, 0),
        ("loss", 0.25, 7),
    ]
    assert {(m["study_id"], m["trial_id"]) for m in metrics} == {("study", 'n"\u2028\n')}


def test_progress_that_was_held_back_comes_before_the_node_is_done():
    events = Events(nowhere, "run")
    started = events.started(Step("n", abs))
    for number in range(100):
        events.report(number / 100, {}, None)
    events.completed("n", started, 1)
    kinds = [(e["event_type"], e.get("progress")) for e in map(json.loads, events.take())]
    assert kinds == [("NodeStarted", None), ("NodeProgress", 0.0), ("NodeProgress", 0.99), ("NodeCompleted", None)]


def test_a_plan_tells_what_happens_in_order():
    world = World(sequence("a", "s", "x"), {"a": lambda x: x + 1, "s": Scaler(), "x": lambda x: 1 / 0}, fit=True)
    with pytest.raises(NodeFailed):
        world.run(np.array([1.0, 2.0]))
    events = world.happened()
    assert [(e["event_type"], e["node_id"], e.get("kind")) for e in events] == [
        ("NodeStarted", "a", "Stateless"),
        ("NodeCompleted", "a", None),
        ("NodeStarted", "s", "Trainable"),
        ("NodeCompleted", "s", None),
        ("NodeStarted", "x", "Stateless"),
        ("NodeFailed", "x", None),
    ]
    assert events[1]["output_summary"] == "Tensor(shape=[2], len=2)"
    assert events[-1]["error"] == "ZeroDivisionError: division by zero"


def test_events_can_be_off():
    world = World(sequence("a"), {"a": lambda x: x}, events=False)
    world.run(1)
    assert world.happened() == []


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (np.zeros((2, 3)), "Tensor(shape=[2, 3], len=6)"),
        (np.float32(1), "Tensor(shape=[], len=1)"),
        ({"a": 1}, "Json(object, len=1)"),
        (None, "Empty"),
        ((1, 2), "builtins.tuple"),
        (Scaler(), "tests.unit.inside.world.Scaler"),
    ],
)
def test_outputs_in_a_few_words(output: Any, text: str):
    assert shown(output) == text


def test_events_go_at_once_when_the_last_batch_is_old_and_together_otherwise():
    frames: list[Any] = []
    events = Events(frames.append, "run")
    events.run_completed(1)
    assert frames == []
    events.tick()
    assert [len(texts) for _, texts in frames] == [1]
    deadline = time.monotonic() + 10
    while len(frames) < 2 and time.monotonic() < deadline:
        events.run_completed(2)
    assert len(frames[1][1]) > 1


def test_a_node_that_takes_long_is_told_once():
    frames: list[Any] = []
    events = Events(frames.append, "run")
    events.started(Step("slow", abs))
    deadline = time.monotonic() + 10
    while ["node", "slow"] not in frames and time.monotonic() < deadline:
        events.tick()
    for _ in range(3):
        events.tick()
    assert frames.count(["node", "slow"]) == 1


def test_the_note_has_the_node_that_runs(tmp_path: Path):
    path = tmp_path / "note"
    note = Note.at(str(path))
    events = Events(nowhere, "run", note=note)
    assert read(path) is None
    started = events.started(Step("a node é", abs))
    assert read(path) == note.read() == "a node é"
    events.completed("a node é", started, 1)
    assert read(path) is None
    note.write("x" * 1000)
    assert read(path) == "x" * 256
    note.close()


# ── report() ─────────────────────────────────────────────────────────────────────────────────────────────────────

report_module = importlib.import_module("somatize_worker.report")


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(report_module, "_sink", lambda *report: seen.append(report))
    return seen


def test_report_checks_and_passes_on(reports: list[Any]):
    report_module.report(progress=0.5, metrics={"loss": np.float32(2)}, step=np.int64(3))
    report_module.report(7)
    report_module.report(progress=float("nan"))
    assert reports == [(0.5, {"loss": 2.0}, 3), (1.0, {}, None), (0.0, {}, None)]
    with pytest.raises(TypeError, match="metrics\\['a'\\] must be a number, not 'x'"):
        report_module.report(metrics={"a": "x"})


def test_report_does_nothing_outside_of_a_host():
    report_module.report(progress=0.5, metrics={"loss": 1.0})


def test_report_is_found_as_a_name_of_the_package_however_it_was_imported_before():
    code = (
        "import somatize_worker.report; from somatize_worker import report; report(0.5);"
        "from somatize_worker.report import report; report(0.5)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_in_a_job_reports_are_lines_of_json(tmp_path: Path):
    out = tmp_path / "reports"
    code = (
        "from somatize_worker import report\n"
        "for i in range(1000): report(progress=i / 999)\n"
        "for i in range(3): report(metrics={'loss': 1 / (i + 1), 'bad': float('nan')}, step=i)\n"
        "report(progress=0.125)\n"
    )
    with out.open("wb") as file:
        environ = {**os.environ, "SOMA_REPORT_FD": str(file.fileno())}
        subprocess.run([sys.executable, "-c", code], check=True, pass_fds=[file.fileno()], env=environ)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["metrics"] for line in lines if "metrics" in line] == [
        {"loss": 1 / (i + 1), "bad": None} for i in range(3)
    ]
    progress = [line["progress"] for line in lines if "progress" in line]
    assert progress[0] == 0.0
    assert 1.0 in progress
    assert progress[-1] == 0.125
    assert len(progress) < 500
    assert all(a <= b for a, b in pairwise(progress[:-1]))
