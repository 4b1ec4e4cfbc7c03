"""Celery's consumer, with more patience for a server that is away, and less for waiting once it is back.

Monitoring events wait a moment for others to go with them: sending each at once would take as much of the loop's time
as everything else that it does for a plan, and hold up the thread that wants to start it.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from celery.worker.consumer import Consumer

_FIRST_PAUSE_S = 0.25
_LONGER_BY_S = 0.25
_LONGEST_PAUSE_S = 2.0
_EVENTS_WAIT_S = 0.05


class PatientConsumer(Consumer):
    """Tries again every two seconds at the latest: after an outage of a minute, Celery's own would pause for thirty."""

    _flush_due_s = 0.0

    def on_send_event_buffered(self) -> None:
        """An event for monitors waits to be sent. Called on any thread."""
        now = time.monotonic()
        if now > self._flush_due_s:
            self._flush_due_s = now + 2 * _EVENTS_WAIT_S
            self.hub.call_soon(self.hub.call_later, _EVENTS_WAIT_S, self._flush)

    def _flush(self) -> None:
        self._flush_due_s = 0.0
        self._flush_events()

    def ensure_connected(self, conn: Any) -> Any:
        """A connection to the broker, however long that takes."""
        conn.ensure_connection = partial(
            conn.ensure_connection,
            interval_start=_FIRST_PAUSE_S,
            interval_step=_LONGER_BY_S,
            interval_max=_LONGEST_PAUSE_S,
        )
        return super().ensure_connected(conn)
