"""The Celery tasks, one for each coordinator message. Each decodes, calls the runtime, and says how it ended.

A wake-up from this package carries a plan id; a message from any other Celery program carries the whole protocol
message as its one argument. Both lead to the same ledger record, and the record decides what happens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore

from somatize_worker.errors import PlanCancelled, PlanFailed, SomaError
from somatize_worker.messaging import ASSIGN_JOB, ASSIGN_PLAN
from somatize_worker.worker import lifecycle
from somatize_worker.worker.runtime import End, Runtime

_OPTIONS: dict[str, Any] = {
    "bind": True,
    "ignore_result": True,  # the ledger's finishing script writes the result that AsyncResult reads
    "acks_late": True,  # acknowledged by hand, as soon as the ledger knows the plan: see WakeRequest
    "throws": (SomaError,),  # logged as one line, without a traceback
    "Request": "somatize_worker.worker.request:WakeRequest",
}


def register(app: Celery) -> None:
    """Define the tasks on ``app``."""

    @app.task(name=ASSIGN_PLAN, **_OPTIONS)
    def assign_plan(self: Task, message: Any) -> str:
        runtime = lifecycle.runtime()
        plan_id = message if _is_wake(message) else _admit(self, runtime.admission.plan, message)
        return _run(self, runtime, plan_id)

    @app.task(name=ASSIGN_JOB, **_OPTIONS)
    def assign_python_job(self: Task, message: Any) -> str:
        runtime = lifecycle.runtime()
        job_id = message if _is_wake(message) else _admit(self, runtime.admission.job, message)
        return _run(self, runtime, job_id)

    @app.task(name="somatize.cancel_plan", ignore_result=True)
    def cancel_plan(message: Any) -> str:
        plan_id = message["plan_id"] if isinstance(message, Mapping) else str(message)
        return lifecycle.runtime().cancel(plan_id, "cancelled by message")

    @app.task(name="somatize.ping", ignore_result=False)
    def ping() -> str:
        return "pong"

    @app.task(name="somatize.status_request", ignore_result=False)
    def status_request() -> dict[str, Any]:
        return lifecycle.runtime().status()

    @app.task(name="somatize.shutdown", ignore_result=True)
    def shutdown(message: Any = None) -> str:
        reason = message.get("reason", "") if isinstance(message, Mapping) else str(message or "")
        lifecycle.runtime().stop_gently(reason)
        return f"stopping: {reason}"


def _is_wake(message: Any) -> bool:
    return isinstance(message, str) and not message.lstrip().startswith("{")


def _admit(task: Task, admit: Callable[..., str], message: Any) -> str:
    """The id under which the ledger has the message; a refusal is stored for whoever waits on ``AsyncResult``."""
    try:
        return admit(message, queue=task.request.delivery_info["routing_key"], alias=task.request.id)
    except SomaError as refusal:
        task.backend.mark_as_failure(task.request.id, refusal)
        raise


def _run(task: Task, runtime: Runtime, plan_id: str) -> str:
    end: End | None = runtime.run(plan_id, on_known=lambda: runtime.acknowledge(task.request.id))
    if end is None:  # somebody else runs it, it waits for its children, or it was handed back: no end to tell yet
        raise Ignore()
    if end.state == "failed":
        raise PlanFailed(end.text)
    if end.state == "cancelled":
        raise PlanCancelled(end.text)
    return end.text
