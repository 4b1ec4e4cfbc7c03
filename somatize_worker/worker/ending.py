"""The last step of a run: what the ledger, Celery's result and the log say about how it ended."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any

from somatize_worker.errors import SomaError
from somatize_worker.ledger import Claim, Ledger, Outcome, Wake, cancelled_result, celery_results, patiently
from somatize_worker.packing import pack, unpack
from somatize_worker.values import summary
from somatize_worker.worker.publisher import Publisher
from somatize_worker.worker.running import End, Running

log = logging.getLogger("somatize.worker")

_DELIVER_FOR_S = 3600.0
_LINE_CHARS = 500


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

    ``text`` says how it ended; ``celery_result`` (JSON) is what ``AsyncResult.get()`` returns of a success. The
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
            cause=_line(text),
            celery_meta=_celery_meta(outcome, text, celery_result),
        ),
        deadline_s=_DELIVER_FOR_S,
    )
    if not finished.accepted:
        log.warning("plan %s: the result of epoch %d came too late and was refused", claim.plan_id, claim.epoch)
        return None, []
    return End(outcome.state, text), finished.wake


def _celery_meta(outcome: Outcome, text: str, celery_result: str) -> str:
    if outcome.state == "succeeded":
        return celery_results.success(celery_result)
    if outcome.state == "failed":
        return celery_results.failure(text, traceback=unpack(outcome.result).get("traceback") or None)
    return celery_results.revoked(text)


def _line(text: str) -> str:
    """A text in one line, for tables."""
    line = " ".join(text.split())
    return line if len(line) <= _LINE_CHARS else f"{line[: _LINE_CHARS - 2]} …"


def success_text(output: Any, duration_ms: int, worker_id: str) -> str:
    """One line for Celery's log and Flower."""
    return f"{summary(output)} in {duration_ms} ms on {worker_id}"
