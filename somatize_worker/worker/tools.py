"""What supervising a plan or job needs of its worker, as one object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from somatize_worker.hosts import Environments, HostPool
from somatize_worker.jobs import JobRunner
from somatize_worker.ledger import Ledger, Wake
from somatize_worker.ports import DataStore
from somatize_worker.settings import Settings
from somatize_worker.worker.lending import GpuLender


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
