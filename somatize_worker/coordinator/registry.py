"""Who is there: live workers, and the check that a plan's targets are served."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from somatize_worker import protocol
from somatize_worker.ledger import Ledger

_TRUST_S = 1.0
_BACK_WITHIN_S = 1.0


@dataclass(frozen=True)
class WorkerInfo:
    """A live worker, as of its last heartbeat."""

    worker_id: str
    capabilities: protocol.Capabilities
    load: protocol.LoadMetrics
    queues: tuple[str, ...]
    slots: int
    host: str
    pid: int
    started: datetime

    @property
    def tags(self) -> list[str]:
        """The tags it serves."""
        return list(self.capabilities.tags)


class Registry:
    """Live workers, read from the ledger; what is served is remembered for a second."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._served: dict[str, float] = {}

    def workers(self) -> list[WorkerInfo]:
        """All live workers, by id."""
        found = [
            WorkerInfo(
                worker_id=entry["worker_id"],
                capabilities=protocol.from_json(protocol.Capabilities, entry["capabilities"]),
                load=protocol.from_json(protocol.LoadMetrics, entry["load"]),
                queues=tuple(entry["queues"]),
                slots=entry["slots"],
                host=entry["host"],
                pid=entry["pid"],
                started=datetime.fromtimestamp(entry["started"], UTC),
            )
            for entry in self._ledger.workers()
        ]
        return sorted(found, key=lambda worker: worker.worker_id)

    def slots(self, queue: str) -> int:
        """How many plans the live workers of a queue run at once."""
        return sum(worker["slots"] for worker in self._ledger.workers() if queue in worker["queues"])

    def require(self, targets: Iterable[str], *, wait: bool = False) -> None:
        """Make sure that live workers serve all targets (tags or worker ids), unless it is fine to ``wait`` for one.

        Raises:
            NoWorker: one is not served.
        """
        if wait:
            return
        now = time.monotonic()
        unsure = [target for target in targets if now - self._served.get(target, -_TRUST_S) >= _TRUST_S]
        if unsure:
            self._ledger.require_served(unsure)
            self._served.update(dict.fromkeys(unsure, now))
