"""Everything one worker process holds: its ledger, store, hosts and running plans.

Threads: Celery's pool threads call :meth:`Runtime.run`, one for each slot, and supervise. The keeper renews leases
and sweeps, the listener takes cancellations. Nothing here runs user code.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, Final

from celery import Celery
from redis.exceptions import RedisError

from somatize_worker.errors import PlanNotFound, ServerUnreachable
from somatize_worker.hosts import Environments, HostPool
from somatize_worker.jobs import JobRunner
from somatize_worker.ledger import Claim, Ledger, Wake, connect, patiently
from somatize_worker.messaging import WakeUps
from somatize_worker.settings import Settings
from somatize_worker.stores import open_store
from somatize_worker.worker import machine
from somatize_worker.worker.admission import Admission
from somatize_worker.worker.early import EarlyClaims
from somatize_worker.worker.execution import PlanSupervision
from somatize_worker.worker.job_execution import JobSupervision
from somatize_worker.worker.keeper import Keeper
from somatize_worker.worker.lending import GpuLender, environment
from somatize_worker.worker.registration import Registration
from somatize_worker.worker.running import End, Interruption, Running, Runs
from somatize_worker.worker.tools import Tools

log = logging.getLogger("somatize.worker")

_TASKS_REMEMBERED: Final = 10_000
_LAST_WORDS_S: Final = 10.0  # how long a worker that has been told to stop tries to tell the server what is left

__all__ = ["End", "Runtime"]


class Runtime:
    """The worker process, between Celery's signals and the supervised plans."""

    def __init__(self, app: Celery, settings: Settings, *, worker_id: str, tags: list[str], slots: int) -> None:
        self.app = app
        self.settings = settings
        self.worker_id = worker_id
        client = connect(settings.redis_url)
        self.ledger = Ledger(client, settings)
        self.wake_ups = WakeUps(app, self.ledger)
        self.store = open_store(settings, client)
        self.runs = Runs()
        self._early = EarlyClaims(self.ledger, worker_id)
        self.hosts = HostPool(settings, self.store.workspace(), worker_id)
        environments = Environments(settings)
        self.tools = Tools(
            ledger=self.ledger,
            store=self.store,
            hosts=self.hosts,
            environments=environments,
            jobs=JobRunner(settings, self.store, worker_id, environments, self.hosts.nursery),
            settings=settings,
            worker_id=worker_id,
            cores=machine.capabilities(tags)["cpu_cores"],
            gpus=GpuLender(machine.gpu_indices(), slots),
            send=self._send,
        )
        self.admission = Admission(self.ledger, self.store, settings, worker_id)
        self.registration = Registration(self.ledger, self.store, settings, worker_id, tags, slots, self.runs)
        self.keeper = Keeper(self.tools, self.runs, self.registration)
        self._acknowledgements: dict[str, list[Callable[[], None]]] = defaultdict(list)
        self._plan_of_task: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()
        self._draining = threading.Event()
        self._closed = threading.Event()

    # ── life of the process ──────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Before the first message: prove that server and store are the cluster's, start a spare host.

        Raises:
            ServerUnreachable: no server at the URL.
            StoreMismatch: the store's folder is not the one that the cluster uses.
        """
        self.registration.check_store()
        with self.tools.gpus.lend() as gpus:
            self.hosts.prepare(environ=environment(gpus))
        self.keeper.start()

    def announce(self) -> None:
        """The consumer is up: register, so that coordinators route here."""
        gc.freeze()  # what is loaded now stays: collections need not look at it, ...
        gc.collect()  # ... nor wait until garbage has become a quarter of it
        self.registration.register()

    def drain(self) -> None:
        """Told to stop: vanish from routing, let plans finish within the grace period, then hand them back."""
        if self._draining.is_set():
            return
        self._draining.set()
        threading.Thread(target=self._hand_back_after_grace, name="soma-drain", daemon=True).start()

    def _hand_back_after_grace(self) -> None:
        deadline = time.monotonic() + self.settings.grace_s
        self._unregister()
        while self.runs and time.monotonic() < deadline:
            time.sleep(0.05)
        self.runs.interrupt_all(Interruption.HAND_BACK)
        while not self._closed.wait(_LAST_WORDS_S):
            if not self._server_answers():
                left = ", ".join(self.runs.ids()) or "nothing"
                log.error("the server does not answer, and this worker ends without it; left to their leases: %s", left)
                self.hosts.close()
                os._exit(1)

    def _server_answers(self) -> bool:
        try:
            self.ledger.command("PING")
        except ServerUnreachable:
            return False
        return True

    def _unregister(self) -> None:
        try:
            self.registration.unregister()
        except (RedisError, OSError) as error:
            log.warning("this worker's registration is left to expire: %s", error)

    def hand_back(self) -> None:
        """Told to stop at once: take nothing more, and give back what runs."""
        self._draining.set()
        self.runs.interrupt_all(Interruption.HAND_BACK)

    def close(self) -> None:
        """The last plan is done: stop threads and hosts."""
        self._send(self._early.give_back())
        self.keeper.stop()
        self.hosts.close()
        self._unregister()
        self._closed.set()

    def stop_gently(self, reason: str) -> None:
        """The protocol's ``Shutdown``: the same as SIGTERM."""
        log.info("shutdown requested: %s", reason)
        os.kill(os.getpid(), signal.SIGTERM)

    # ── plans ────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, plan_id: str, *, on_known: Callable[[], None]) -> End | None:
        """Claim and supervise a plan; None when there is no end to tell (not ours, waiting, handed back)."""
        on_known()
        nonce = os.urandom(8)
        claim = patiently(self._early.take(plan_id) or (lambda: self._claim(plan_id, nonce)))
        if claim is None:
            return None
        with self.runs.hold(Running(claim)) as running:
            work = JobSupervision if claim.kind == "job" else PlanSupervision
            return work(self.tools, running).run()

    def claim_soon(self, plan_id: str) -> None:
        """A thread is about to :meth:`run` this plan. Does not wait."""
        if not self._draining.is_set():
            self._early.begin(plan_id)

    def _claim(self, plan_id: str, nonce: bytes) -> Claim | None:
        if not self._draining.is_set():
            return self.ledger.claim(plan_id, self.worker_id, nonce=nonce)
        self._wake_another(plan_id)
        return None

    def _wake_another(self, plan_id: str) -> None:
        """This worker has the wake-up of a plan that it is not going to run."""
        record = self.ledger.record(plan_id)
        if record.state == "queued":
            self._send([Wake(plan_id, record.queue, record.priority, record.summary, record.kind)])

    def cancel(self, plan_id: str, reason: str) -> str:
        """Cancel anywhere; whoever runs it kills it. Returns the state it was in."""
        cancelled = self.ledger.cancel(plan_id, reason)
        for _, held in cancelled.holders:
            self.runs.interrupt(held, Interruption.CANCEL, reason)
        self._send(cancelled.wake)
        return str(cancelled.state_before)

    def revoke_soon(self, task_id: str, reason: str) -> None:
        """:meth:`cancel` the plan of a Celery task, from a thread that must not wait.

        A task that stands for no plan known here may belong to any other Celery program: it is left to Celery.
        """
        plan_id = self._plan_of_task.get(task_id, task_id)
        self.runs.interrupt(plan_id, Interruption.CANCEL, reason)
        self.keeper.defer(lambda: self._cancel_known(plan_id, reason))

    def _cancel_known(self, plan_id: str, reason: str) -> None:
        try:
            self.ledger.state(plan_id)
        except PlanNotFound:
            return
        self.cancel(plan_id, reason)

    def admitted(self, task_id: str, plan_id: str) -> None:
        """A message from another Celery program brought this plan: revoking its task is to cancel the plan."""
        self._plan_of_task[task_id] = plan_id
        if len(self._plan_of_task) > _TASKS_REMEMBERED:
            self._plan_of_task.popitem(last=False)

    def status(self) -> dict[str, Any]:
        """What this worker is doing, for the protocol's ``StatusRequest``."""
        return {
            "worker_id": self.worker_id,
            "capabilities": self.registration.capabilities(),
            "load": self.registration.load(),
            "running": sorted(self.runs.ids()),
        }

    # ── acknowledgement ──────────────────────────────────────────────────────────────────────────────────────────

    def expect_acknowledgement(self, task_id: str, acknowledge: Callable[[], None]) -> None:
        """Keep a message's acknowledgement until its plan is in the ledger."""
        with self._lock:
            self._acknowledgements[task_id].append(acknowledge)

    def acknowledge(self, task_id: str) -> None:
        """The ledger knows the plan of this message (or has refused it): acknowledge it."""
        acknowledge = self.forget_acknowledgement(task_id)
        if acknowledge is not None:
            acknowledge()

    def forget_acknowledgement(self, task_id: str) -> Callable[[], None] | None:
        """Let go of a message's acknowledgement; it is returned. Of several alike, any will do."""
        with self._lock:
            waiting = self._acknowledgements.get(task_id)
            acknowledge = waiting.pop(0) if waiting else None
            if not waiting:
                self._acknowledgements.pop(task_id, None)
            return acknowledge

    def _send(self, wakes: list[Wake]) -> None:
        self.wake_ups.send(wakes)
