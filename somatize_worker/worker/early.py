"""Plans claimed while Celery still prepares their tasks: a round trip to the server that nobody waits for."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from somatize_worker.errors import ServerUnreachable
from somatize_worker.ledger import Claim, Ledger, Wake

Pending = Callable[[], Claim | None]

_NOBODY_CAME: Final = "the worker stopped before it began"


class EarlyClaims:
    """Claims on their way, by plan. All methods may be called from any thread."""

    def __init__(self, ledger: Ledger, worker_id: str) -> None:
        self._ledger = ledger
        self._worker_id = worker_id
        self._pending: defaultdict[str, list[Pending]] = defaultdict(list)
        self._lock = threading.Lock()

    def begin(self, plan_id: str) -> None:
        """Claim a plan; whoever is going to run it calls :meth:`take`."""
        pending = self._ledger.claim_soon(plan_id, self._worker_id)
        with self._lock:
            self._pending[plan_id].append(pending)

    def take(self, plan_id: str) -> Pending | None:
        """What waits for a claim that was begun, for one caller; None if there is none (any more)."""
        with self._lock:
            waiting = self._pending.get(plan_id)
            pending = waiting.pop(0) if waiting else None
            if not waiting:
                self._pending.pop(plan_id, None)
            return pending

    def give_back(self) -> list[Wake]:
        """Let go of the plans that nobody came for; the wake-ups to be sent for them."""
        wakes: list[Wake] = []
        for plan_id in list(self._pending):
            while (pending := self.take(plan_id)) is not None:
                with suppress(ServerUnreachable):  # then the lease runs out
                    claim = pending()
                    if claim is not None:
                        wakes += self._ledger.release(plan_id, claim.epoch, why=_NOBODY_CAME, count_attempt=False)
        return wakes
