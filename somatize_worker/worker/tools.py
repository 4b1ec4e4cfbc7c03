"""What supervising a plan or job needs of its worker, as one object."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from somatize_worker.hosts import Environments, HostPool
from somatize_worker.jobs import JobRunner
from somatize_worker.ledger import Claim, Ledger, Wake
from somatize_worker.ports import DataStore
from somatize_worker.settings import Settings
from somatize_worker.worker.lending import GpuLender

_SOON_MS: Final = 10_000
_AFTERWARDS_S: Final = 0.02


@dataclass(frozen=True)
class Tools:
    """What supervising a plan needs, as one object."""

    ledger: Ledger
    store: DataStore
    hosts: HostPool
    environments: Environments
    jobs: JobRunner
    settings: Settings
    worker_id: str
    cores: int
    gpus: GpuLender
    send: Callable[[list[Wake]], None]

    def wake_after(self, claim: Claim, delay_ms: int) -> None:
        """Wake a plan when its pause is over. The sweeper does so too, and would be late for a short one, as it only
        looks now and then."""
        if 0 < delay_ms <= _SOON_MS:
            wake = Wake(claim.plan_id, claim.queue, claim.priority, claim.summary, claim.kind)
            timer = threading.Timer(delay_ms / 1000 + _AFTERWARDS_S, self.send, [[wake]])
            timer.daemon = True
            timer.start()
