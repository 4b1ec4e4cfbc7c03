"""The client goes away and comes back, as another process: handle, events from the start, result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from somatize_worker.errors import PlanNotFound
from tests.acceptance.conftest import MakeCluster
from tests.support.plans import counts
from tests.support.server import poll


def test_another_process_takes_the_plan_up(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster({"cpu": 1})
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    plan_id = python(
        f"""
        import os
        from pathlib import Path
        from somatize_worker import Coordinator, Filter, report
        from tests.support.plans import Waits

        class First(Filter):
            def forward(self, x, state=None):
                print("printed by the first node")
                report(metrics={{"loss": 0.25}}, step=1)
                return x + 1

        notes, gate = Path({str(notes)!r}), Path({str(gate)!r})
        c = Coordinator()
        run = c.forward(First().named("first") >> Waits(notes, gate).named("waits"), 20)
        print(run.plan_id, flush=True)
        for event in run.events():
            if event.event_type == "NodeCompleted":
                os.kill(os.getpid(), 9)  # goes away without a word
        """,
        cluster.environ(),
    )
    poll(lambda: counts(notes).get("waits"), timeout_s=20)
    c = cluster.coordinator()
    run = c.plan(plan_id)
    assert run.state == "leased"
    with pytest.raises(PlanNotFound):
        c.plan("another")
    messages = run.messages()
    seen = [next(messages).event.event_type for _ in range(4)]  # those from before this process knew of it
    assert seen == ["RunStarted", "NodeStarted", "TrialMetric", "NodeCompleted"]
    gate.touch()
    seen += [message.event.event_type for message in messages]
    assert seen[4:] == ["NodeStarted", "NodeCompleted", "RunCompleted"]
    assert run.result(timeout=20).output == 21
    said = python(
        f"""
        import json
        from somatize_worker import Coordinator
        with Coordinator() as c:
            run = c.plan({plan_id!r})
            result = run.result(timeout=10)
            events = [event.event_type for event in run.events()]
            late = [event.event_type for event in run.events(after=4)]
            print(json.dumps([result.output, result.plan_id, events, late, list(run.output_lines())]))
        """,
        cluster.environ(),
    )
    assert json.loads(said) == [21, plan_id, seen, seen[4:], ["printed by the first node"]]


def python(code: str, environ: dict[str, str]) -> str:
    """Run a program of its own; what it printed. It may end by a signal of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr
    return done.stdout.strip()
