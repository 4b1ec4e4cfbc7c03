"""The plans that this worker runs now, and how another thread interrupts one of them."""

from __future__ import annotations

import enum
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from somatize_worker.ledger import Claim

_EARLY_REMEMBERED: Final = 1000


class Interruption(enum.Enum):
    """Why a running plan is to be stopped from outside."""

    CANCEL = "cancelled"
    LOST = "the lease went to another worker"
    HAND_BACK = "the worker is stopping"


@dataclass(frozen=True)
class End:
    """How a plan ended, for Celery's result line and for Flower."""

    state: str
    text: str


class Running:
    """One claimed plan or job. ``interrupt`` may be called from any thread, at any time, more than once."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self._lock = threading.Lock()
        self._why: Interruption | None = None
        self._stop: Callable[[], None] | None = None
        self.reason = ""
        """What whoever interrupted it said, as far as that is known here."""

    @property
    def interruption(self) -> Interruption | None:
        """Why it was stopped, if it was."""
        return self._why

    def interrupt(self, why: Interruption, reason: str = "") -> None:
        """Stop the work; the first interruption stands."""
        with self._lock:
            if self._why is None:
                self._why, self.reason = why, reason
            stop = self._stop
        if stop is not None:
            stop()

    @contextmanager
    def stopping_with(self, stop: Callable[[], None]) -> Iterator[None]:
        """While inside, an interruption calls ``stop``; one that came before calls it at once."""
        with self._lock:
            self._stop = stop
            interrupted = self._why is not None
        if interrupted:
            stop()
        try:
            yield
        finally:
            with self._lock:
                self._stop = None


class Runs:
    """The running plans by id.

    A cancellation may arrive between a claim and the moment when its run is known here: it is remembered. (A plan that
    was ever cancelled never runs again, so one that is remembered for nothing does no harm.)
    """

    def __init__(self) -> None:
        self._runs: dict[str, Running] = {}
        self._early: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._runs)

    def ids(self) -> list[str]:
        """Ids of what runs now."""
        with self._lock:
            return list(self._runs)

    def holds(self) -> list[tuple[str, int]]:
        """(plan id, epoch) of each lease held, for renewal."""
        with self._lock:
            return [(plan_id, run.claim.epoch) for plan_id, run in self._runs.items()]

    @contextmanager
    def hold(self, running: Running) -> Iterator[Running]:
        """Count a plan as running while inside. An earlier run of the same plan here has lost its lease."""
        plan_id = running.claim.plan_id
        with self._lock:
            earlier, self._runs[plan_id] = self._runs.get(plan_id), running
            reason = self._early.pop(plan_id, None)
        if earlier is not None:
            earlier.interrupt(Interruption.LOST)
        if reason is not None:
            running.interrupt(Interruption.CANCEL, reason)
        try:
            yield running
        finally:
            with self._lock:
                if self._runs.get(plan_id) is running:
                    del self._runs[plan_id]

    def interrupt(self, plan_id: str, why: Interruption, reason: str = "", *, epoch: int | None = None) -> None:
        """Interrupt one plan, if it runs here (and, with ``epoch``, if it is still that run of it)."""
        with self._lock:
            run = self._runs.get(plan_id)
            if run is None and why is Interruption.CANCEL:
                self._early[plan_id] = reason
                if len(self._early) > _EARLY_REMEMBERED:
                    self._early.popitem(last=False)
        if run is not None and (epoch is None or run.claim.epoch == epoch):
            run.interrupt(why, reason)

    def interrupt_all(self, why: Interruption) -> None:
        """Interrupt every plan."""
        with self._lock:
            runs = list(self._runs.values())
        for run in runs:
            run.interrupt(why)
