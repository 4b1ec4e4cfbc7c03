"""Celery's consumer, with more patience for a server that is away, and less for waiting once it is back."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery.worker.consumer import Consumer

_FIRST_PAUSE_S = 0.25
_LONGER_BY_S = 0.25
_LONGEST_PAUSE_S = 2.0


class PatientConsumer(Consumer):
    """Tries again every two seconds at the latest: after an outage of a minute, Celery's own would pause for thirty."""

    def ensure_connected(self, conn: Any) -> Any:
        """A connection to the broker, however long that takes."""
        conn.ensure_connection = partial(
            conn.ensure_connection,
            interval_start=_FIRST_PAUSE_S,
            interval_step=_LONGER_BY_S,
            interval_max=_LONGEST_PAUSE_S,
        )
        return super().ensure_connected(conn)
