"""Threads that keep this worker's word: leases renewed, the cluster swept, cancellations heard."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from somatize_worker.ledger import Sweeper, control_channel, renew_every_s
from somatize_worker.packing import unpack
from somatize_worker.worker.registration import Registration
from somatize_worker.worker.running import Interruption, Runs
from somatize_worker.worker.tools import Tools

log = logging.getLogger("somatize.worker")

_STORE_SWEEP_EVERY_S = 300.0
_LISTEN_S = 0.25
_PAUSE_S = 0.5
_SOONER = 8  # a worker that is back after an outage is to be known as alive at once


class Keeper:
    """Renews leases, sends heartbeats, sweeps, and listens for cancellations.

    Renewing has a thread of its own, so that nothing slow (a store with a million files, a GPU that does not answer)
    can cost a running plan its lease. It is done a little more often than a sweeper waits between its two looks at an
    expired lease, so that after an outage, or a suspended machine, every live worker is heard before it is given up.
    """

    def __init__(self, tools: Tools, runs: Runs, registration: Registration) -> None:
        self._tools = tools
        self._runs = runs
        self._registration = registration
        self._sweeper = Sweeper(tools.ledger, tools.settings)
        self._stop = threading.Event()
        self._deferred: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        every_s = renew_every_s(tools.settings.lease_s)
        self._threads = [
            self._repeating("soma-keeper", every_s * 3 / 4, self._renew),
            self._repeating("soma-sweeper", every_s, self._look_around),
            self._repeating("soma-store-sweeper", _STORE_SWEEP_EVERY_S, self._tidy),
            threading.Thread(target=self._listen, name="soma-listener", daemon=True),
            threading.Thread(target=self._do_deferred, name="soma-deferred", daemon=True),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop them; they are daemons, so one that waits for a dead server holds nobody up."""
        self._stop.set()
        self._deferred.put(lambda: None)
        deadline = time.monotonic() + 2.0
        for thread in filter(threading.Thread.is_alive, self._threads):
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def defer(self, call: Callable[[], object]) -> None:
        """Do something that talks to the server, soon, on a thread that may wait."""
        self._deferred.put(call)

    def _repeating(self, name: str, every_s: float, call: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            reachable = True
            while not self._stop.wait(every_s if reachable else every_s / _SOONER):
                try:
                    call()
                except (RedisError, OSError) as error:
                    if reachable:
                        log.warning("%s: no answer; running plans go on, trying again: %s", name, error)
                    reachable = False
                except Exception:  # a worker without this thread would lose its plans one by one
                    log.exception("%s failed; trying again", name)
                else:
                    if not reachable:
                        log.info("%s: there is an answer again", name)
                    reachable = True

        return threading.Thread(target=run, name=name, daemon=True)

    # ── leases, heartbeats, sweeping ─────────────────────────────────────────────────────────────────────────────

    def _renew(self) -> None:
        runs = self._runs
        holds = runs.holds()
        epochs = dict(holds)
        for plan_id, state in self._tools.ledger.renew(self._tools.worker_id, holds).items():
            if state == "lost":
                runs.interrupt(plan_id, Interruption.LOST, epoch=epochs[plan_id])
            elif state == "cancel":
                runs.interrupt(plan_id, Interruption.CANCEL, epoch=epochs[plan_id])

    def _look_around(self) -> None:
        try:
            self._registration.heartbeat()
        except (RedisError, OSError):
            self._sweeper.forget()  # leases that expired while nobody could renew them are not dead workers
            raise
        self._tools.send(self._sweeper.tick(time.monotonic()))

    def _tidy(self) -> None:
        self._tools.store.sweep()
        self._tools.environments.keep_only(self._tools.hosts.interpreters())

    # ── cancellations ────────────────────────────────────────────────────────────────────────────────────────────

    def _listen(self) -> None:
        channel = control_channel(self._tools.worker_id)
        while not self._stop.is_set():
            try:
                with self._tools.ledger.listen(channel) as pubsub:
                    while not self._stop.is_set():
                        message = pubsub.get_message(timeout=_LISTEN_S)
                        if message is not None:
                            self._take(unpack(message["data"]))
            except (RedisError, OSError):
                # A cancellation published meanwhile is not lost: renewing the lease tells of it.
                self._stop.wait(_PAUSE_S)
            except Exception:
                log.exception("an order that this worker does not understand was left out")
                self._stop.wait(_PAUSE_S)

    def _take(self, order: dict[str, str]) -> None:
        if "cancel" in order:
            self._runs.interrupt(order["cancel"], Interruption.CANCEL)

    def _do_deferred(self) -> None:
        while not self._stop.is_set():
            call = self._deferred.get()
            try:
                call()
            except (RedisError, OSError) as error:
                log.warning("trying again in a second: %s", error)
                self._stop.wait(1.0)
                self._deferred.put(call)
            except Exception:
                log.exception("a revocation could not be carried out")
