"""How this worker treats a received Celery message: when it is acknowledged, and what revoking it means."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request

from somatize_worker.errors import PlanCancelled
from somatize_worker.transport import WAKE_HEADER
from somatize_worker.worker import lifecycle


class WakeRequest(Request):
    """A wake-up, or a whole protocol message.

    A message that carries a plan from another Celery program is acknowledged early, but not before the ledger holds
    the plan: it is the only copy until then. A wake-up costs nothing to hold (see ``transport``) and is acknowledged
    when its task is over, which also has the event loop look for the next message. Celery's own ``revoke`` and Flower's
    Terminate cancel the plan.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # The ledger writes the result, whatever the sender's message asks of Celery: two would overwrite each other.
        self._ignore_result = self._request_dict["ignore_result"] = True

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The pool took the task: keep the acknowledgement at hand for the moment when the plan is known."""
        if WAKE_HEADER not in self._message.headers:
            lifecycle.runtime().expect_acknowledgement(self.id, self.acknowledge)
        super().on_accepted(pid, time_accepted)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """The plan did not succeed. To monitors one that was cancelled is a revoked task, not a failed one."""
        error = exc_info.exception
        cancelled = isinstance(getattr(error, "exc", error), PlanCancelled)
        if cancelled and not self._already_revoked:
            self.send_event("task-revoked", terminated=True, signum=None, expired=False)
        return super().on_failure(exc_info, send_failed_event=send_failed_event and not cancelled, return_ok=return_ok)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """``revoke(terminate=True)``: the plan's own process is killed by its supervisor, not the worker's."""
        self._announce_revoked("terminated", bool(self.time_start), signal, False)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        # This runs on the event loop's thread, which must not wait for the server.
        lifecycle.runtime().revoke_soon(self.id, f"revoked ({reason})")
        super()._announce_revoked(reason, terminated, signum, expired)
