"""From how the ledger says that a plan or job ended to the message that says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from somatize_worker.errors import Unrepresentable
from somatize_worker.packing import Reference
from somatize_worker.protocol.assignments import Failed, PlanResult, Success
from somatize_worker.protocol.convert import plain_to_output, plain_to_value
from somatize_worker.protocol.messages import JobResult, PlanResultMessage

_SUCCEEDED: Final = "succeeded"


def plan_result_message(plan_id: str, state: str, result: Mapping[str, Any]) -> PlanResultMessage:
    """The message about a plan's end.

    Args:
        plan_id: whose end it is.
        state: ``succeeded``, ``failed`` or ``cancelled``.
        result: an outcome's result: ``output``, ``states``, ``duration_ms`` and ``worker_id``, or ``error``. The
            output may be a reference; states may not, as the protocol has no place for them: load them first.

    Raises:
        Unrepresentable: a state that is a reference, or data that no value can carry.
    """
    ended = _success(result) if state == _SUCCEEDED else _failure(state, result)
    return PlanResultMessage(worker_id=str(result.get("worker_id") or ""), plan_id=plan_id, result=ended)


def _success(result: Mapping[str, Any]) -> PlanResult:
    states = dict(result.get("states") or {})
    for node_id, plain in states.items():
        if isinstance(plain, Reference):
            raise Unrepresentable(
                f"the state of {node_id!r} is a reference, which PlanResult has no place for: load it first"
            )
    return Success(
        output=plain_to_output(result.get("output")),
        duration_ms=int(result.get("duration_ms") or 0),
        states={node_id: plain_to_value(plain) for node_id, plain in states.items()},
    )


def _failure(state: str, result: Mapping[str, Any]) -> PlanResult:
    return Failed(error=_text(result.get("error") or state), duration_ms=int(result.get("duration_ms") or 0))


def job_result_message(job_id: str, state: str, result: Mapping[str, Any]) -> JobResult:
    """The message about a Python job's end.

    Args:
        job_id: whose end it is.
        state: ``succeeded``, ``failed`` or ``cancelled``.
        result: ``metrics``, ``output`` or ``printed`` (text), ``duration_ms``, ``worker_id``, and ``error`` unless
            the job succeeded; as the message has no place for an error, it is the last line of its output.
    """
    output = _text(result.get("output") or result.get("printed") or "")
    if state != _SUCCEEDED:
        error = _text(result.get("error") or state)
        printed = output.rstrip("\n")
        if printed != error and not printed.endswith(f"\n{error}"):  # a traceback ends with it
            output = f"{printed}\n{error}" if printed else error
    return JobResult(
        worker_id=str(result.get("worker_id") or ""),
        job_id=job_id,
        success=state == _SUCCEEDED,
        metrics=result.get("metrics"),
        output=output,
        duration_ms=int(result.get("duration_ms") or 0),
    )


def _text(value: Any) -> str:
    """Text that every form can carry: errors and output may quote file names that are no valid Unicode."""
    return str(value).encode(errors="backslashreplace").decode()
