"""The entries that Celery's Redis result backend reads, written by the ledger itself.

A worker's Celery task leaves its own result write out; the script that ends a plan writes the entry instead, so that
``AsyncResult(plan_id)`` and Flower see the end of the plan, wherever it ended. The form is that of
``celery.backends.base``: JSON with ``status, result, traceback, children, date_done, task_id``. The texts made here
lack ``task_id``, which the script adds for the plan's id and for each alias.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any


def success(result_json: str | bytes) -> str:
    """A finished plan: ``AsyncResult.get()`` returns what ``result_json`` (JSON text) says."""
    text = result_json.decode() if isinstance(result_json, bytes) else result_json
    return f'{{"status":"SUCCESS","result":{text},"traceback":null,"children":[],"date_done":"{_now()}"}}'


def failure(message: str, *, error: str = "PlanFailed", traceback: str | None = None) -> str:
    """A failed plan: ``AsyncResult.get()`` raises the error of that name in ``somatize_worker.errors``."""
    return _entry("FAILURE", _exception(error, "somatize_worker.errors", message), traceback)


def revoked(reason: str) -> str:
    """A cancelled plan: ``AsyncResult.get()`` raises Celery's TaskRevokedError."""
    return _entry("REVOKED", _exception("TaskRevokedError", "celery.exceptions", reason), None)


def _exception(kind: str, module: str, message: str) -> dict[str, Any]:
    return {"exc_type": kind, "exc_message": [message], "exc_module": module}


def _entry(status: str, result: Any, traceback: str | None) -> str:
    entry = {"status": status, "result": result, "traceback": traceback, "children": [], "date_done": _now()}
    return json.dumps(entry, separators=(",", ":"))


def _now() -> str:
    return datetime.now(UTC).isoformat()
