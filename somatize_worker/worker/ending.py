"""The last step of a run: what the ledger, Celery's result and the log say about how it ended."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any

from somatize_worker.errors import SomaError
from somatize_worker.ledger import Claim, Ledger, Outcome, Wake, cancelled_result, celery_results, patiently
from somatize_worker.packing import pack
from somatize_worker.values import summary
from somatize_worker.worker.publisher import Publisher
from somatize_worker.worker.running import End, Running

log = logging.getLogger("somatize.worker")

_DELIVER_FOR_S = 3600.0


def succeeded(result: Mapping[str, Any]) -> Outcome:
    """A plan's success; ``result`` has output, states, duration_ms, worker_id."""
    return Outcome(state="succeeded", result=pack(dict(result)))


def failed(error: str, **details: Any) -> Outcome:
    """A plan's failure; details as in :class:`~somatize_worker.errors.PlanFailed`."""
    return Outcome(state="failed", result=pack({"error": error, **details}))


def failed_by(error: SomaError, **details: Any) -> Outcome:
    """A failure that one of this package's errors describes."""
    return failed(error.message, error_type=qualified(error), **{**error.to_dict()["details"], **details})


def qualified(error: BaseException) -> str:
    """The full name of an error's class."""
    return f"{type(error).__module__}.{type(error).__qualname__}"


def failed_by_worker(error: Exception, **details: Any) -> Outcome:
    """A failure on this side, not in the plan: an error of the store's, say, or a defect."""
    if isinstance(error, SomaError):
        return failed_by(error, **details)
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    text = f"the worker could not run the plan to its end: {type(error).__name__}: {error}; its log has more"
    return failed(text, error_type=kind, traceback="".join(traceback.format_exception(error)), **details)


def cancelled(ledger: Ledger, running: Running) -> Outcome:
    """A cancelled plan, with the reason that was given for it."""
    claim = running.claim
    reason = running.reason or patiently(lambda: ledger.record(claim.plan_id).cancel, deadline_s=_DELIVER_FOR_S)
    return Outcome(state="cancelled", result=cancelled_result(reason or "cancelled while running"))


def deliver(
    ledger: Ledger, claim: Claim, publisher: Publisher, outcome: Outcome, *, text: str, celery_result: str
) -> tuple[End | None, list[Wake]]:
    """Write the end, through a server outage if need be.

    ``text`` is the end in one line; ``celery_result`` (JSON) is what ``AsyncResult.get()`` returns of a success. The
    end is None when a newer run of the plan made this one void.
    """
    events, output = publisher.take()
    finished = patiently(
        lambda: ledger.finish(
            claim.plan_id,
            claim.epoch,
            outcome,
            events=events,
            output=output,
            cause=text,
            celery_meta=_celery_meta(outcome.state, text, celery_result),
        ),
        deadline_s=_DELIVER_FOR_S,
    )
    if not finished.accepted:
        log.warning("plan %s: the result of epoch %d came too late and was refused", claim.plan_id, claim.epoch)
        return None, []
    return End(outcome.state, text), finished.wake


def _celery_meta(state: str, text: str, celery_result: str) -> str:
    if state == "succeeded":
        return celery_results.success(celery_result)
    return celery_results.failure(text) if state == "failed" else celery_results.revoked(text)


def success_text(output: Any, duration_ms: int, worker_id: str) -> str:
    """One line for Celery's log and Flower."""
    return f"{summary(output)} in {duration_ms} ms on {worker_id}"
