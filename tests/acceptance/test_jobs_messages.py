"""Jobs from Celery programs that know nothing of this package: protocol messages in, protocol messages out."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from somatize_worker import Coordinator, PlanFailed, protocol
from somatize_worker.errors import InvalidJob, InvalidMessage, PlanCancelled, PlanConflict
from tests.support.busy import held, ran, wait_gone_soon
from tests.support.cluster import Cluster, short
from tests.support.jobs import holding, python_job, saying
from tests.support.server import poll

FOREIGN = """
import json, sys
from celery import Celery
from celery.result import AsyncResult

url, queue = sys.argv[1:]
app = Celery(broker=url, backend=url)
message = json.load(sys.stdin)
sent = app.send_task("somatize.assign_python_job", [message], queue=queue)
result = sent.get(timeout=30)
assert AsyncResult(message["job"]["job_id"], app=app).get(timeout=5) == result
assert not any(name.startswith("somatize") for name in sys.modules)
print(json.dumps({"result": result, "state": sent.state}))
"""


@pytest.fixture(scope="module")
def cluster(env_folder: str) -> Iterator[Cluster]:
    """Two workers of the same tag."""
    with Cluster({"cpu": 2}, slots=2, settings=short(env_folder=env_folder)) as running:
        yield running


def assign(job: protocol.PythonPipelineJob) -> dict[str, Any]:
    """The ``AssignPythonJob`` message as JSON data."""
    message: dict[str, Any] = json.loads(protocol.to_json(protocol.AssignPythonJob(job=job)))
    return message


def send(c: Coordinator, *arguments: Any) -> AsyncResult:
    return c.app.send_task("somatize.assign_python_job", list(arguments), queue="cpu", ignore_result=False)


def test_a_program_of_its_own_sends_a_job_and_reads_its_result(cluster: Cluster, c: Coordinator) -> None:
    job = python_job(
        "import six\ndef main(rows, lr): return {'n': len(rows), 'lr': lr, 'six': six.__version__}",
        entry_point="train:main",
        requirements="six==1.16.0",
        input_data=["größe", None],
        params={"lr": 0.5},
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", FOREIGN, cluster.settings.redis_url, "cpu"],
        input=json.dumps(assign(job)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["state"] == "SUCCESS"
    result = protocol.from_data(protocol.WorkerToCoordinator, said["result"])
    assert isinstance(result, protocol.JobResult)
    assert (result.job_id, result.success) == (job.job_id, True)
    assert result.metrics == {"n": 2, "lr": 0.5, "six": "1.16.0"}
    handle = c.job(job.job_id)
    assert handle.result(timeout=5) == result
    assert [one.phase for one in handle.progress()][-1] == "collect_results"


def test_a_failure_carries_its_text_and_traceback(c: Coordinator) -> None:
    sent = send(c, assign(python_job("def fit():\n    raise ValueError('bad rate')\nfit()")))
    with pytest.raises(PlanFailed, match="ValueError: bad rate"):
        sent.get(timeout=20)
    assert sent.state == "FAILURE"
    assert 'File "train.py", line 2, in fit' in sent.traceback


def test_malformed_messages_fail_with_a_clear_text(c: Coordinator) -> None:
    good = assign(python_job("", job_id="never-queued"))
    job = good["job"]
    wrong: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((), InvalidMessage, "takes one argument, the protocol message; this had 0"),
        ((good, 1), InvalidMessage, "takes one argument"),
        ((["no", "message"],), InvalidMessage, "CoordinatorToWorker"),
        (({"type": "Ping"},), InvalidMessage, "takes an AssignPythonJob, not Ping"),
        (({"type": "AssignPythonJob"},), InvalidMessage, "job"),
        (({**good, "job": {**job, "files": "train.py"}},), InvalidMessage, "job.files"),
        (({**good, "job": {**job, "files": [{"path": "../x.py", "content": ""}]}},), InvalidJob, "'../x.py'"),
        (({**good, "job": {**job, "requirements": "-e ."}},), InvalidJob, "options are not accepted"),
        (({**good, "job": {**job, "entry_point": ""}},), InvalidJob, "entry_point"),
    ]
    sent = [(send(c, *arguments), kind, said) for arguments, kind, said in wrong]
    for result, kind, said in sent:
        with pytest.raises(kind) as refused:
            result.get(timeout=20)
        assert said in str(refused.value)
        assert result.state == "FAILURE"
    assert "never-queued" not in {record.plan_id for record in c.plans()}


def test_the_same_message_again_and_again_is_one_run(c: Coordinator, tmp_path: Path) -> None:
    message = assign(saying(tmp_path, "once"))
    results = [send(c, message) for _ in range(10)]
    assert len({json.dumps(sent.get(timeout=20), sort_keys=True) for sent in results}) == 1
    assert ran(tmp_path) == ["once"]
    other = assign(saying(tmp_path, "other", job_id=message["job"]["job_id"]))
    with pytest.raises(PlanConflict):
        send(c, other).get(timeout=20)
    assert ran(tmp_path) == ["once"]


def test_cancelling_by_message_and_by_celerys_own_revoke(c: Coordinator, tmp_path: Path) -> None:
    job = holding(tmp_path, "message")
    sent = send(c, assign(job))
    pids = held(tmp_path, "message")
    c.app.send_task("somatize.cancel_plan", [{"type": "CancelPlan", "plan_id": job.job_id}], queue="cpu")
    wait_gone_soon(pids)
    with pytest.raises((TaskRevokedError, PlanCancelled)):
        sent.get(timeout=10)
    other = send(c, assign(holding(tmp_path, "revoke")))
    pids = held(tmp_path, "revoke")
    other.revoke(terminate=True)
    wait_gone_soon(pids)
    poll(lambda: not any(c.app.control.inspect(timeout=3, limit=2).active().values()), timeout_s=10)
    for task in (sent, other):  # and so it stays, when Celery is through with them
        assert AsyncResult(task.id, app=c.app).state == "REVOKED"


def test_a_message_for_one_worker_alone(c: Coordinator) -> None:
    for worker_id in ("cpu-1", "cpu-2"):
        message = assign(python_job("", job_id=uuid.uuid4().hex))
        sent = c.app.send_task("somatize.assign_python_job", [message], queue=worker_id, ignore_result=False)
        assert sent.get(timeout=20)["worker_id"] == worker_id
