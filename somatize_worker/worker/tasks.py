"""The Celery tasks, one for each coordinator message. Each decodes, calls the runtime, and says how it ended.

A wake-up from this package carries a plan id; a message from any other Celery program carries the whole protocol
message as its one argument. Both lead to the same ledger record, and the record decides what happens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore, Reject

from somatize_worker.errors import InvalidMessage, PlanCancelled, PlanFailed, ServerUnreachable, SomaError
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
    def assign_plan(self: Task, *message: Any, **named: Any) -> str:
        runtime = lifecycle.runtime()
        plan_id = _wake_of(self, message) or _admit(self, runtime, runtime.admission.plan, message, named)
        return _run(self, runtime, plan_id)

    @app.task(name=ASSIGN_JOB, **_OPTIONS)
    def assign_python_job(self: Task, *message: Any, **named: Any) -> str:
        runtime = lifecycle.runtime()
        job_id = _wake_of(self, message) or _admit(self, runtime, runtime.admission.job, message, named)
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


def _wake_of(task: Task, arguments: tuple[Any, ...]) -> str | None:
    """The plan of a wake-up: its one argument is the id under which the message itself goes."""
    plan_id: str = task.request.id
    return plan_id if arguments == (plan_id,) else None


def _admit(
    task: Task, runtime: Runtime, admit: Callable[..., str], arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> str:
    """The id under which the ledger has the message; a refusal is stored for whoever waits on ``AsyncResult``."""
    task_id = task.request.id
    try:
        if len(arguments) != 1 or named:
            raise InvalidMessage(
                f"{task.name} takes one argument, the protocol message; this had {_counted(arguments, named)}"
            )
        plan_id = admit(arguments[0], queue=task.request.delivery_info["routing_key"], alias=task_id)
    except ServerUnreachable:  # the message is still the only copy: it goes back to its queue
        runtime.forget_acknowledgement(task_id)
        raise Reject(requeue=True) from None
    except SomaError as refusal:
        _refuse(task, runtime, refusal)
        raise
    except Exception as error:  # a defect: whoever waits must not wait for ever
        _refuse(task, runtime, SomaError(f"this message could not be taken: {type(error).__name__}: {error}"))
        raise
    runtime.admitted(task_id, plan_id)
    return plan_id


def _refuse(task: Task, runtime: Runtime, refusal: SomaError) -> None:
    task.backend.mark_as_failure(task.request.id, refusal)
    runtime.acknowledge(task.request.id)


def _counted(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    names = f" and the named {', '.join(named)}" if named else ""
    return f"{len(arguments)} positional{names}"


def _run(task: Task, runtime: Runtime, plan_id: str) -> str:
    end: End | None = runtime.run(plan_id, on_known=lambda: runtime.acknowledge(task.request.id))
    if end is None:  # somebody else runs it, it waits for its children, or it was handed back: no end to tell yet
        raise Ignore()
    if end.state == "failed":
        raise PlanFailed(end.text)
    if end.state == "cancelled":
        raise PlanCancelled(end.text)
    return end.text
