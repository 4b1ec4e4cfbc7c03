"""Protocol messages from any Celery program: checked, then written to the ledger like everybody's."""

from __future__ import annotations

import json
from typing import Any

from somatize_worker import protocol
from somatize_worker.errors import InvalidMessage
from somatize_worker.ledger import Ledger, patiently
from somatize_worker.ports import DataStore
from somatize_worker.settings import Settings
from somatize_worker.stores import clear
from somatize_worker.submission import Policy, job_submission, message_submission, owned


class Admission:
    """Reads a message, refuses it with a clear error, or hands back the id under which the ledger now has it."""

    def __init__(self, ledger: Ledger, store: DataStore, settings: Settings, worker_id: str) -> None:
        self._ledger = ledger
        self._store = store
        self._settings = settings
        self._worker_id = worker_id

    def plan(self, message: Any, *, queue: str, alias: str) -> str:
        """Admit an ``AssignPlan`` message; returns the plan's id.

        Raises:
            InvalidMessage, InvalidPipeline: it cannot run as written.
            NoWorker: a part of it is for a tag that nobody serves, and its metadata does not say ``{"soma": {"wait":
                true}}``.
            PlanConflict: its id is taken by another plan.
        """
        parsed = protocol.from_json(protocol.CoordinatorToWorker, message)
        if not isinstance(parsed, protocol.AssignPlan):
            raise InvalidMessage(f"somatize.assign_plan takes an AssignPlan message, not {_type_of(message)}")
        targets = protocol.remote_targets(parsed.plan.plan)
        if targets and not _waits(parsed.plan.metadata):
            self._ledger.require_served([str(target) for target in targets])
        submission = message_submission(
            parsed.plan,
            queue=queue,
            store=self._store,
            settings=self._settings,
            policy=Policy(),
            options={"wire": True},
            aliases=(alias,),
        )
        created = False
        try:
            created = patiently(lambda: self._ledger.submit(submission)).created
        finally:
            if not created:  # it is known already, and has its data
                clear(self._store, owned(submission.spec))
        return submission.plan_id

    def job(self, message: Any, *, queue: str, alias: str) -> str:
        """Admit an ``AssignPythonJob`` message; returns the job's id.

        Raises:
            InvalidMessage, InvalidJob: it cannot run as written.
            PlanConflict: its id is taken.
        """
        parsed = protocol.from_json(protocol.CoordinatorToWorker, message)
        if not isinstance(parsed, protocol.AssignPythonJob):
            raise InvalidMessage(f"somatize.assign_python_job takes an AssignPythonJob, not {_type_of(message)}")
        submission = job_submission(
            parsed.job,
            queue=queue,
            store=self._store,
            settings=self._settings,
            policy=Policy(),
            aliases=(alias,),
        )
        patiently(lambda: self._ledger.submit(submission))
        return parsed.job.job_id


def _waits(metadata: Any) -> bool:
    options = metadata.get("soma") if isinstance(metadata, dict) else None
    return isinstance(options, dict) and bool(options.get("wait"))


def _type_of(message: Any) -> str:
    if isinstance(message, (str, bytes)):
        message = json.loads(message)
    return str(message.get("type"))
