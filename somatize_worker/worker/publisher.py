"""Events, journal entries and printed lines of one run, on their way to the ledger."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from somatize_worker.ledger import Claim, Ledger

_RETRY_EVERY_S = 1.0
_BACKLOG_EVENTS = 50_000


@dataclass(frozen=True)
class _Batch:
    """What one report carries; sent again as it is when the server did not answer."""

    events: list[str]
    journal: dict[str, bytes]
    output: list[str]
    node: str
    nonce: bytes = field(default_factory=lambda: os.urandom(8))


class Publisher:
    """Passes on what a host reports, in order; keeps it while the server is away.

    A refused report means that the run's epoch is over: somebody else holds the plan now.
    """

    def __init__(self, ledger: Ledger, claim: Claim, worker_id: str) -> None:
        self._ledger = ledger
        self._claim = claim
        self._head = f'{{"type":"Event","worker_id":{json.dumps(worker_id)},"plan_id":{json.dumps(claim.root)},"event":'
        self._between = f"}}\n{self._head}"
        self._events: list[str] = []  # texts of one or more, one a line
        self._waiting = 0  # events in them
        self._journal: dict[str, bytes] = {}
        self._output: list[str] = []
        self._not_before = 0.0
        self._sending: _Batch | None = None
        self.node = ""
        """The node that runs now, as far as it is known: kept in the record for a death certificate."""
        self._told_node = ""
        self._lock = threading.Lock()  # a job's output and its flusher are different threads

    def add(
        self, *, events: Sequence[str] = (), journal: Mapping[str, bytes] | None = None, output: Sequence[str] = ()
    ) -> None:
        """Queue for the next :meth:`flush`."""
        with self._lock:
            if events:  # a protocol ``Event`` message around each, all as one text: the ledger's script is quicker so
                self._queue(f"{self._head}{self._between.join(events)}}}")
            self._output += output
            if journal:
                self._journal.update(journal)

    def add_message(self, text: str) -> None:
        """Queue a protocol message as it is."""
        with self._lock:
            self._queue(text)

    def _queue(self, text: str) -> None:
        self._events.append(text)
        self._waiting += text.count("\n") + 1
        while self._waiting > _BACKLOG_EVENTS and len(self._events) > 1:
            self._waiting -= self._events.pop(0).count("\n") + 1

    def flush(self) -> bool:
        """Send what is queued; False when this run's epoch is over. Never raises for a server that is away."""
        if not self._has_news() or time.monotonic() < self._not_before:
            return True
        if self._sending is None:
            with self._lock:
                self._sending = _Batch(self._events, self._journal, self._output, self.node)
                self._events, self._journal, self._output, self._waiting = [], {}, [], 0
        batch = self._sending
        try:
            current = self._ledger.report(
                self._claim.plan_id,
                self._claim.root,
                self._claim.epoch,
                events=batch.events,
                journal=batch.journal,
                output=batch.output,
                node=batch.node,
                nonce=batch.nonce,
            )
        except (RedisError, OSError):
            self._not_before = time.monotonic() + _RETRY_EVERY_S
            return True
        self._sending, self._told_node = None, batch.node
        return current

    def _has_news(self) -> bool:
        queued = self._events or self._journal or self._output or self._sending
        return bool(queued) or self._told_node != self.node

    def settle(self) -> None:
        """Send all that is queued, through an outage if need be; nothing more once the epoch is over."""
        while self._has_news():
            time.sleep(max(0.0, self._not_before - time.monotonic()))
            if not self.flush():
                return

    def take(self) -> tuple[list[str], list[str]]:
        """What is still queued (events, printed lines), for the finishing script to write along with the result.

        A batch whose sending failed may have arrived all the same: it is sent again first, under its own nonce.
        """
        while self._sending is not None:
            time.sleep(max(0.0, self._not_before - time.monotonic()))
            if not self.flush():
                break
        with self._lock:
            events, output = self._events, self._output
            self._events, self._output, self._journal, self._waiting = [], [], {}, 0
        return events, output
