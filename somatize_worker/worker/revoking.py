"""Celery's ``revoke(..., terminate=True)``, taken to mean the plan: wherever it is, not only where its message is.

Celery itself knows only messages that a worker has taken. A plan that is queued, waits for its children or runs
elsewhere has none here, so the order also goes to the ledger, which knows them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.utils.functional import maybe_list
from celery.worker.control import Panel

_installed: set[str] = set()


def install(cancel: Callable[[str, str], None]) -> None:
    """From now on this process's ``revoke`` and ``terminate`` also call ``cancel(task id, reason)``.

    It is called on the event loop's thread, which must not wait for the server.
    """
    for name in ("revoke", "terminate"):
        if name not in _installed:
            Panel.data[name] = _also(Panel.data[name], name, cancel)
            _installed.add(name)


def _also(original: Callable[..., Any], name: str, cancel: Callable[[str, str], None]) -> Callable[..., Any]:
    def control(state: Any, *args: Any, **options: Any) -> Any:
        if name == "terminate" or options.get("terminate"):
            for task_id in maybe_list(options.get("task_id")) or ():
                cancel(str(task_id), "revoked")
        return original(state, *args, **options)

    return control
