"""The clients of a soak: they submit, cancel, send again, collect, and look each result over."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import redis
from kombu.exceptions import OperationalError

from benchmarks.soaking.requests import Request
from somatize_worker import Coordinator, PlanCancelled, PlanFailed
from somatize_worker.coordinator import PlanHandle
from somatize_worker.errors import PlanNotFound, ResultTimeout
from somatize_worker.ledger import TERMINAL, Record
from somatize_worker.messaging import ASSIGN_PLAN, make_app

_T = TypeVar("_T")
_COLLECTORS: Final = 6
_LOST_AFTER_S: Final = 120.0
_OUTAGES: Final = (redis.RedisError, OSError, OperationalError)
_PROBLEMS_TOLD: Final = 50


class Client:
    """Sends requests on one thread, collects on several; :meth:`finish` waits for the last result.

    Args:
        backlog: most plans that are out at once.
    """

    def __init__(self, coordinator: Coordinator, requests: Iterator[Request], *, backlog: int) -> None:
        self.sent: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.attempts: Counter[int] = Counter()
        self.problems: list[str] = []
        self.ids: set[str] = set()
        self._c = coordinator
        self._app = make_app(coordinator.settings)
        self._requests = requests
        self._out: queue.Queue[tuple[Request, PlanHandle] | None] = queue.Queue(backlog)
        self._room = threading.Semaphore(backlog)
        self._lock = threading.Lock()
        self._collectors = [threading.Thread(target=self._collect, daemon=True) for _ in range(_COLLECTORS)]
        for thread in self._collectors:
            thread.start()

    def send(self) -> None:
        """Submit the next plan; waits while too many are out."""
        request = next(self._requests)
        self._room.acquire()
        handle = self._through_outages(lambda: self._submit(request))
        self.sent[request.kind] += 1
        self.ids.add(request.plan_id)
        self._out.put((request, handle))
        for _ in range(request.duplicates):
            self._send_again(request.plan_id)
        if request.duplicates:
            self._through_outages(lambda: self._submit(request))  # the same plan, submitted again
        if request.cancel_after_s is not None:
            timer = threading.Timer(request.cancel_after_s, self._cancel, args=(request.plan_id,))
            timer.daemon = True
            timer.start()

    def finish(self) -> None:
        """Wait until every plan has ended and was looked over."""
        for _ in self._collectors:
            self._out.put(None)
        for thread in self._collectors:
            thread.join()
        self._app.close()

    @property
    def collected(self) -> int:
        """How many results have been looked over."""
        return self.ended.total()

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _submit(self, request: Request) -> PlanHandle:
        return self._c.submit(
            request.pipeline, request.mode, request.x, plan_id=request.plan_id, wait=True, **request.options
        )

    def _send_again(self, plan_id: str) -> None:
        try:
            self._app.send_task(ASSIGN_PLAN, args=[plan_id], task_id=plan_id, queue="cpu")
            self.counts["messages sent again"] += 1
        except _OUTAGES:
            self.counts["outages met by clients"] += 1

    def _cancel(self, plan_id: str) -> None:
        self._through_outages(lambda: self._c.cancel_plan(plan_id, "cancelled by the soak"))
        self.counts["cancellations"] += 1

    def _through_outages(self, call: Callable[[], _T]) -> _T:
        deadline = time.monotonic() + _LOST_AFTER_S
        while True:
            try:
                return call()
            except _OUTAGES:
                self.counts["outages met by clients"] += 1
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    # ── collecting ───────────────────────────────────────────────────────────────────────────────────────────────

    def _collect(self) -> None:
        while (item := self._out.get()) is not None:
            request, handle = item
            try:
                how = self._outcome(request, handle)
                self._look_at_record(request, handle, how)
            except Exception as error:  # a harness that dies in silence proves nothing
                how = "lost"
                self._problem(f"{request.kind} {request.plan_id}: {type(error).__name__}: {error}")
            self._room.release()
            with self._lock:
                self.ended[how] += 1

    def _outcome(self, request: Request, handle: PlanHandle) -> str:
        try:
            result = handle.result(timeout=_LOST_AFTER_S)
        except PlanCancelled:
            if not request.may_be_cancelled:
                self._problem(f"{request.kind} {request.plan_id}: cancelled by nobody")
            return "cancelled"
        except PlanFailed as failure:
            if not request.error or request.error not in str(failure.details.get("error_type")):
                self._problem(f"{request.kind} {request.plan_id} failed: {failure.message[:300]}")
            return "failed"
        except ResultTimeout:
            state = self._through_outages(lambda: handle.state)
            self._problem(f"{request.kind} {request.plan_id}: no result after {_LOST_AFTER_S:g} s ({state})")
            return "lost"
        if request.error or not request.expected(result.output):
            self._problem(f"{request.kind} {request.plan_id}: wrong result {str(result.output)[:100]}")
        return "succeeded"

    def _look_at_record(self, request: Request, handle: PlanHandle, how: str) -> None:
        try:
            record: Record = self._through_outages(lambda: handle.record)
        except PlanNotFound:
            self.counts["records that had expired already"] += 1
            return
        with self._lock:
            self.attempts[record.epoch] += 1
        epochs = [entry["epoch"] for entry in record.history]
        about = f"{request.kind} {request.plan_id}"
        if record.state not in TERMINAL or record.state != how:
            self._problem(f"{about}: the client was told {how}, the record says {record.state}")
        if epochs != sorted(set(epochs)) or (epochs and epochs[-1] > record.epoch):
            self._problem(f"{about}: its attempts overlap: {epochs}, epoch {record.epoch}")

    def _problem(self, text: str) -> None:
        with self._lock:
            self.counts["problems"] += 1
            if len(self.problems) < _PROBLEMS_TOLD:
                self.problems.append(text)


class Ends:
    """Counts how often each plan's end was written, by listening to what the finishing script publishes.

    What is published while the connection is down is missed: a count is a lower bound, and must never be above 1.
    """

    def __init__(self, url: str) -> None:
        self.counts: Counter[str] = Counter()
        self._stop = threading.Event()
        self._url = url
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._stop.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                with redis.Redis.from_url(self._url) as client, client.pubsub() as pubsub:
                    pubsub.psubscribe("celery-task-meta-*")
                    while not self._stop.is_set():
                        self._take(pubsub.get_message(ignore_subscribe_messages=True, timeout=0.25))
            except _OUTAGES:
                self._stop.wait(0.1)

    def _take(self, message: Any) -> None:
        if message is not None:
            self.counts[message["channel"].decode().removeprefix("celery-task-meta-")] += 1
