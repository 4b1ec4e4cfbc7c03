"""Two threads that keep this worker's word: leases renewed and the cluster swept, cancellations heard."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from somatize_worker.ledger import Sweeper, control_channel
from somatize_worker.packing import unpack
from somatize_worker.worker.running import Interruption

if TYPE_CHECKING:
    from somatize_worker.worker.runtime import Runtime

log = logging.getLogger("somatize.worker")

_STORE_SWEEP_EVERY_S = 300.0


class Keeper:
    """Renews leases three times in a lease's life, sends heartbeats, sweeps, and listens for cancellations."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._sweeper = Sweeper(runtime.ledger, runtime.settings)
        self._stop = threading.Event()
        self._deferred: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._keep, name="soma-keeper", daemon=True),
            threading.Thread(target=self._listen, name="soma-listener", daemon=True),
            threading.Thread(target=self._do_deferred, name="soma-deferred", daemon=True),
        ]
        self._interval_s = runtime.settings.lease_s / 3
        self._next_store_sweep = time.monotonic() + _STORE_SWEEP_EVERY_S

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop them; they are daemons, so one that waits for a dead server holds nobody up."""
        self._stop.set()
        self._deferred.put(lambda: None)
        for thread in self._threads:
            thread.join(timeout=2.0)

    def defer(self, call: Callable[[], object]) -> None:
        """Do something that talks to the server, soon, on a thread that may wait."""
        self._deferred.put(call)

    # ── leases, heartbeats, sweeping ─────────────────────────────────────────────────────────────────────────────

    def _keep(self) -> None:
        reachable = True
        while not self._stop.wait(self._interval_s):
            try:
                self._renew()
                self._runtime.registration.heartbeat()
                self._runtime.tools.send(self._sweeper.tick(time.monotonic()))
                self._sweep_store()
                if not reachable:
                    log.info("the server is back")
                reachable = True
            except (RedisError, OSError) as error:
                self._sweeper.forget()  # leases that expired while nobody could renew them are not dead workers
                if reachable:
                    log.warning("the server does not answer; running plans go on: %s", error)
                reachable = False

    def _renew(self) -> None:
        runs = self._runtime.runs
        holds = runs.holds()
        if not holds:
            return
        epochs = dict(holds)
        for plan_id, state in self._runtime.ledger.renew(self._runtime.worker_id, holds).items():
            if state == "lost":
                runs.interrupt(plan_id, Interruption.LOST, epoch=epochs[plan_id])
            elif state == "cancel":
                runs.interrupt(plan_id, Interruption.CANCEL, epoch=epochs[plan_id])

    def _sweep_store(self) -> None:
        if time.monotonic() >= self._next_store_sweep:
            self._next_store_sweep = time.monotonic() + _STORE_SWEEP_EVERY_S
            self._runtime.store.sweep()

    # ── cancellations ────────────────────────────────────────────────────────────────────────────────────────────

    def _listen(self) -> None:
        channel = control_channel(self._runtime.worker_id)
        while not self._stop.is_set():
            try:
                with self._runtime.ledger.listen(channel) as pubsub:
                    while not self._stop.is_set():
                        message = pubsub.get_message(timeout=1.0)
                        if message is not None:
                            self._take(unpack(message["data"]))
            except (RedisError, OSError):
                # A cancellation published meanwhile is not lost: renewing the lease tells of it.
                self._stop.wait(0.5)

    def _take(self, order: dict[str, str]) -> None:
        if "cancel" in order:
            self._runtime.runs.interrupt(order["cancel"], Interruption.CANCEL)

    def _do_deferred(self) -> None:
        while not self._stop.is_set():
            call = self._deferred.get()
            try:
                call()
            except (RedisError, OSError) as error:
                log.warning("trying again in a second: %s", error)
                self._stop.wait(1.0)
                self._deferred.put(call)
