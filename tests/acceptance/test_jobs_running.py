"""A Python job from submission to result: live progress and output, metrics, files, failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from somatize_worker import Coordinator, protocol
from somatize_worker.errors import InvalidJob, MissingData, NoWorker, PlanConflict, PlanNotFound, UnsafePath
from somatize_worker.ledger import job_channel
from somatize_worker.stores import open_store
from tests.support.busy import held, let_go, ran
from tests.support.cluster import Cluster, short
from tests.support.jobs import holding, python_job, saying
from tests.support.server import poll

PHASES = [("environment", 1, 4), ("write_files", 2, 4), ("execute", 3, 4), ("collect_results", 4, 4)]


@pytest.fixture(scope="module")
def cluster(env_folder: str) -> Iterator[Cluster]:
    """A worker of three slots, and one of a single slot."""
    with Cluster({"cpu": 1}, slots=3, settings=short(env_folder=env_folder)) as running:
        running.add_worker("one", slots=1)
        yield running


def steps(messages: list[protocol.JobProgress]) -> list[tuple[str, int, int]]:
    """Phase, step and total of each, without a builder's lines."""
    return [(one.phase, one.step, one.total) for one in messages if "message" not in one.metrics]


# ── progress ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_progress_is_live_complete_and_in_order(c: Coordinator, tmp_path: Path) -> None:
    source = f"""
import os, time, six
from somatize_worker import report
for step in range(1, 4):
    print('{{"step": %d, "total": 3, "metrics": {{"loss": %f}}}}' % (step, 1 / step))
report(progress=0.5, metrics={{"accuracy": 0.25}})
while not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.01)
report(progress=1.0)
print('{{"accuracy": 0.75, "version": "%s"}}' % six.__version__)
"""
    job = python_job(source, requirements="six==1.16.0")
    live: list[protocol.JobProgress] = []
    with c.ledger.listen(job_channel(job.job_id)) as published:
        handle = c.assign_python_job(job)
        watcher = threading.Thread(target=lambda: live.extend(handle.progress()))
        watcher.start()
        own = [("execute", 1, 3), ("execute", 2, 3), ("execute", 3, 3), ("execute", 50, 100)]
        poll(lambda: steps(live)[-4:] == own, timeout_s=30, what="the job's own steps, while it runs")
        assert handle.state == "leased"
        let_go(tmp_path)
        result = handle.result(timeout=20)
        watcher.join(10)
        heard = [protocol.from_json(protocol.WorkerToCoordinator, text) for text in _texts(published)]
    assert steps(live) == [*PHASES[:3], *own, ("execute", 100, 100), PHASES[3]]
    assert [one.metrics for one in live if one.total == 3] == [{"loss": 1.0}, {"loss": 0.5}, {"loss": 0.333333}]
    assert {one.worker_id for one in live} == {"cpu-1"}
    assert heard == live
    assert list(handle.progress()) == live
    assert list(c.job(job.job_id).progress()) == live
    assert isinstance(result, protocol.JobResult)
    assert (result.job_id, result.worker_id, result.success) == (job.job_id, "cpu-1", True)
    assert result.metrics == {"accuracy": 0.75, "version": "1.16.0"}
    assert result.duration_ms > 0


def _texts(pubsub: Any) -> list[bytes]:
    texts = []
    while (message := pubsub.get_message(timeout=0.2)) is not None:
        texts.append(message["data"])
    return texts


def test_what_no_message_can_carry_does_not_fail_a_job(c: Coordinator) -> None:
    source = r"""
from somatize_worker import report
report(step=2**40, metrics={"far": 1.0})
print('{"step": 4294967296}')
print('{"step": 1, "metrics": {"half": "\\ud800", "nan": NaN}}')
print('{"step": 2, "metrics": ' + '{"a":' * 300 + '1' + '}' * 300 + '}')
print('{"deep": ' + '[' * 300 + ']' * 300 + '}')
"""
    handle = c.assign_python_job(python_job(source))
    assert handle.result(timeout=20).success
    own = [(one.step, one.metrics) for one in handle.progress() if one.phase == "execute" and one.total != 4]
    assert sorted(own, key=str) == [(0, {"far": 1.0}), (1, {"half": "?", "nan": None})]


# ── output ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_output_is_streamed_while_the_job_runs(c: Coordinator, tmp_path: Path) -> None:
    source = f"""
import os, sys, time
print("größe 日本 🙂")
print("to standard error", file=sys.stderr)
while not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.01)
sys.stdout.write("no newline at the end")
"""
    handle = c.assign_python_job(python_job(source))
    lines = handle.output_lines(follow=True)
    assert {next(lines), next(lines)} == {"größe 日本 🙂", "to standard error"}
    assert not handle.done()
    let_go(tmp_path)
    assert list(lines) == ["no newline at the end"]
    assert sorted(handle.result(timeout=10).output.splitlines()) == sorted(handle.output_lines())


def test_a_hundred_megabytes_of_output(cluster: Cluster, c: Coordinator) -> None:
    source = """
print("the first line")
line = "x" * 999
for number in range(100_000):
    print(line)
print("the last line")
"""
    handle = c.assign_python_job(python_job(source))
    shown = list(handle.output_lines(follow=True))
    output = handle.result(timeout=60).output
    assert shown[-1] == "the last line"
    assert sum(map(len, shown)) < 50 << 20
    assert any("left out" in line for line in shown)
    assert output.startswith("the first line\n")
    assert output.endswith("x\nthe last line\n")
    assert len(output) <= cluster.settings.job_output_limit_bytes + 100
    kept = list(handle.output_lines())
    assert sum(map(len, kept)) <= cluster.settings.log_limit_bytes + 100
    assert "lines left out" in kept[0]
    assert kept[-1] == "the last line"
    assert c.ledger.client.info("memory")["used_memory_peak"] < 64 << 20
    assert c.assign_python_job(python_job("")).result(timeout=20).success


# ── input, metrics, files ────────────────────────────────────────────────────────────────────────────────────────


def test_a_function_gets_params_and_input_and_returns_metrics(c: Coordinator) -> None:
    source = "def main(rows, lr, flag=False):\n    return {'n': len(rows), 'lr': lr, 'flag': flag, 'last': rows[-1]}"
    rows = [[number, "größe"] for number in range(50_000)]  # more than rides in a record
    job = python_job(source, entry_point="train:main", input_data=rows, params={"lr": 0.1})
    handle = c.assign_python_job(job)
    assert handle.result(timeout=20).metrics == {"n": 50_000, "lr": 0.1, "flag": False, "last": [49_999, "größe"]}
    assert len(handle.record.spec) < 1000


def test_files_under_outputs_are_listed_and_fetched(cluster: Cluster, c: Coordinator, tmp_path: Path) -> None:
    source = """
import os
os.makedirs("outputs/models")
open("outputs/models/best.bin", "wb").write(bytes(range(256)) * 4000)
open("outputs/bericht ü.txt", "w").write("größe")
"""
    job_id = c.assign_python_job(python_job(source)).job_id
    with Coordinator(settings=cluster.settings) as other:
        handle = other.job(job_id)
        assert sorted(handle.outputs(timeout=20)) == ["bericht ü.txt", "models/best.bin"]
        store = open_store(cluster.settings, other.ledger.client)
        assert store.get(handle.outputs()["models/best.bin"]) == bytes(range(256)) * 4000
        fetched = handle.fetch(tmp_path / "all")
        assert [path.relative_to(tmp_path / "all").as_posix() for path in fetched] == sorted(handle.outputs())
        assert (tmp_path / "all/bericht ü.txt").read_text() == "größe"
        (best,) = handle.fetch(tmp_path / "one", ["models/best.bin"])
        assert best.read_bytes() == bytes(range(256)) * 4000
        with pytest.raises(MissingData, match="left no 'other'"):
            handle.fetch(tmp_path / "one", ["other"])
        with pytest.raises(UnsafePath):
            handle.fetch(tmp_path / "one", ["../best.bin"])
        with pytest.raises(PlanNotFound):
            other.job("no-such-job")


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────

CALLS = "from pkg import steps\n\nsteps.fit()\n"
FAILURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "exception": (
        {"source": CALLS, "files": {"pkg/steps.py": "def fit():\n    raise ValueError('bad rate')\n"}},
        "ValueError: bad rate",
        '  File "train.py", line 3, in <module>\n    steps.fit()\n  File "pkg/steps.py", line 2, in fit\n',
    ),
    "syntax": (
        {"source": "x = 1\nif x\n    pass\n"},
        "SyntaxError: expected ':' (train.py, line 2)",
        '  File "train.py", line 2\n    if x\n        ^\n',
    ),
    "no function": (
        {"source": "def fit(): pass", "entry_point": "train:main"},
        "the entry point train:main does not exist: train has no 'main', but fit",
        "",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_shows_the_users_own_lines(name: str, c: Coordinator) -> None:
    fields, error, traceback = FAILURES[name]
    handle = c.assign_python_job(python_job(**fields))
    result = handle.result(timeout=20)
    assert not result.success
    assert traceback in result.output
    assert result.output.count(error) == 1
    state, said = handle.ending()
    assert (state, said["error"]) == ("failed", error)
    assert traceback in (said["traceback"] or "")
    assert "somatize_worker" not in result.output
    assert handle.record.cause == error


def test_a_process_that_dies_has_a_death_certificate(c: Coordinator) -> None:
    source = "import os, signal\nprint('my last words', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)"
    handle = c.assign_python_job(python_job(source))
    result = handle.result(timeout=20)
    assert not result.success
    assert "killed by SIGSEGV" in result.output
    assert "my last words" in handle.ending()[1]["certificate"]["last_lines"]


def test_what_is_not_a_valid_job_is_refused_before_anything_is_queued(cluster: Cluster, c: Coordinator) -> None:
    wrong = [
        ({"job_id": "../evil"}, "../evil"),
        ({"files": {"../evil.py": ""}}, "'../evil.py'"),
        ({"files": {"/etc/evil.py": ""}}, "'/etc/evil.py'"),
        ({"files": {"TRAIN.py": ""}}, "TRAIN.py"),
        ({"entry_point": "other.py"}, "other.py"),
        ({"requirements": "--index-url https://example.org/simple six"}, "options are not accepted"),
        ({"requirements": "six=1"}, "does not parse"),
        ({"params": [1]}, "params"),
    ]
    before = {record.plan_id for record in c.plans(limit=1000)}
    for fields, said in wrong:
        with pytest.raises(InvalidJob) as refused:
            c.assign_python_job(python_job("", **fields))  # type: ignore[arg-type]
        assert said in refused.value.message
    with pytest.raises(NoWorker, match="'nobody'"):
        c.assign_python_job(python_job(""), "nobody")
    assert {record.plan_id for record in c.plans(limit=1000)} == before


def test_the_same_id_is_the_same_job(c: Coordinator, tmp_path: Path) -> None:
    job = saying(tmp_path, "once", job_id="chosen")
    handles = [c.assign_python_job(job) for _ in range(3)]
    assert [handle.result(timeout=20).success for handle in handles] == [True] * 3
    assert c.assign_python_job(job).result(timeout=20) == handles[0].result()
    assert ran(tmp_path) == ["once"]
    with pytest.raises(PlanConflict, match="chosen"):
        c.assign_python_job(saying(tmp_path, "other", job_id="chosen"))


# ── the queue ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_priorities_and_what_the_table_of_plans_says(c: Coordinator, tmp_path: Path) -> None:
    blocker = c.assign_python_job(holding(tmp_path), "one")
    held(tmp_path)
    names = {"last": 9, "usual": 5, "first": 0}
    handles = [c.assign_python_job(saying(tmp_path, name), "one", priority=at) for name, at in names.items()]
    let_go(tmp_path)
    assert all(handle.result(timeout=30).success for handle in (blocker, *handles))
    assert ran(tmp_path) == ["first", "usual", "last"]
    failed = c.assign_python_job(python_job("1 / 0"), "one")
    failed.result(timeout=20)
    newest, *_ = c.plans(limit=1)
    assert (newest.plan_id, newest.kind, newest.state) == (failed.job_id, "job", "failed")
    assert newest.summary == "job train.py of pipeline-7"
    assert newest.cause == "ZeroDivisionError: division by zero"
    assert (newest.queue, newest.history[-1]["worker"]) == ("one", "one-1")
    assert "ms on one-1" in blocker.record.cause
