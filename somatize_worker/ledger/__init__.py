"""The truth about plans: records in Redis or Valkey, with a small state machine.

A plan is queued, leased by a worker (with an epoch, which fences off all earlier ones), waiting for child plans, or
ended. Every change is one Lua script, so a message that is lost, doubled or late does no harm.
"""

from __future__ import annotations

from somatize_worker.ledger.connection import connect, hide_password, patiently
from somatize_worker.ledger.keys import (
    celery_result,
    control_channel,
    events_channel,
    job_channel,
    output_channel,
    reply_channel,
)
from somatize_worker.ledger.ledger import Ledger, cancelled_result, failed_event
from somatize_worker.ledger.records import (
    Cancelled,
    Claim,
    Finished,
    Outcome,
    Record,
    Submission,
    Submitted,
    Suspended,
    Wake,
)
from somatize_worker.ledger.registry import queues_of
from somatize_worker.ledger.states import (
    TERMINAL,
    UNFINISHED,
    Fail,
    Retry,
    after_death,
    after_failure,
    renew_every_s,
)
from somatize_worker.ledger.sweeper import Sweeper

__all__ = [
    "TERMINAL",
    "UNFINISHED",
    "Cancelled",
    "Claim",
    "Fail",
    "Finished",
    "Ledger",
    "Outcome",
    "Record",
    "Retry",
    "Submission",
    "Submitted",
    "Suspended",
    "Sweeper",
    "Wake",
    "after_death",
    "after_failure",
    "cancelled_result",
    "celery_result",
    "connect",
    "control_channel",
    "events_channel",
    "failed_event",
    "hide_password",
    "job_channel",
    "output_channel",
    "patiently",
    "queues_of",
    "renew_every_s",
    "reply_channel",
]
