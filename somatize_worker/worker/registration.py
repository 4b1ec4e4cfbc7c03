"""What a worker tells about itself: its capabilities once, its load every heartbeat, as protocol messages."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

from somatize_worker import protocol
from somatize_worker.ledger import Ledger
from somatize_worker.settings import Settings
from somatize_worker.stores.agreement import check_same, identity
from somatize_worker.worker import machine
from somatize_worker.worker.running import Runs

_STARTED = time.time()


class Registration:
    """Registers this worker and keeps the entry alive; it vanishes by itself when heartbeats stop."""

    def __init__(
        self,
        ledger: Ledger,
        store: Any,
        settings: Settings,
        worker_id: str,
        tags: list[str],
        slots: int,
        runs: Runs,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._ttl_ms = int(settings.lease_s * 1000)
        self._worker_id = worker_id
        self._tags = tags
        self._slots = slots
        self._runs = runs
        self._meter = machine.Meter()
        self._announced = threading.Event()

    def check_store(self) -> None:
        """Prove that the store is the cluster's: the first worker's is.

        Raises:
            StoreMismatch: this worker's is another one.
        """
        check_same(self._store, self._ledger.agree_store(identity(self._store)))

    def capabilities(self) -> dict[str, Any]:
        """The protocol's ``Capabilities``."""
        return machine.capabilities(self._tags)

    def load(self) -> dict[str, Any]:
        """The protocol's ``LoadMetrics``."""
        return self._meter.load(active_plans=len(self._runs), queue_depth=self._ledger.queue_depth(self._tags))

    def register(self) -> None:
        """Appear among the live workers."""
        self._announced.set()
        message = protocol.Register(
            worker_id=self._worker_id, capabilities=protocol.Capabilities.model_validate(self.capabilities())
        )
        self._write(message)

    def heartbeat(self) -> None:
        """Stay among them."""
        if self._announced.is_set():
            self._write(
                protocol.Heartbeat(worker_id=self._worker_id, load=protocol.LoadMetrics.model_validate(self.load()))
            )

    def unregister(self) -> None:
        """Vanish at once, not when the last heartbeat expires."""
        if self._announced.is_set():
            self._announced.clear()
            self._ledger.unregister(self._worker_id)

    def _write(self, message: Any) -> None:
        entry = {
            "worker_id": self._worker_id,
            "capabilities": self.capabilities(),
            "load": self.load(),
            "queues": [*self._tags, self._worker_id],
            "slots": self._slots,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _STARTED,
        }
        self._ledger.heartbeat(self._worker_id, entry, self._ttl_ms, announce=protocol.to_json(message))
