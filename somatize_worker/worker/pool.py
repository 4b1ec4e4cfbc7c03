"""Celery's pool of threads, for threads that only supervise plans."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import Future
from typing import Any

from celery.concurrency.thread import ApplyResult, TaskPool
from celery.worker import state

from somatize_worker.transport import WAKE_HEADER
from somatize_worker.worker import lifecycle


class PlanPool(TaskPool):
    """The pool behind a worker's slots. Two things are different from Celery's own.

    A slot that becomes free wakes the event loop, so that it asks the broker for the next message at once: with all
    slots taken it does not ask, and would notice only when it looks again by itself, up to a second later.

    A warm shutdown (SIGTERM, a first Ctrl-C) waits here until the plans have ended, or were handed back after the grace
    period. A cold one (SIGQUIT, a second Ctrl-C) would wait, too, as no thread can be killed: it hands them back now.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def register_with_event_loop(self, loop: Any) -> None:
        """Called whenever the event loop starts, also after a lost connection."""
        loop.add_reader(self._bell, self._heard)

    def on_apply(self, target: Any, args: Any = None, *others: Any, **options: Any) -> ApplyResult:
        """Run a task on the next free thread. Meanwhile the ledger is asked for the plan of a wake-up.

        ``args`` are those of Celery's tracing function: the task's name, its id, its request as a dict, ...
        """
        if WAKE_HEADER in args[2]:
            lifecycle.runtime().claim_soon(args[1])
        result: ApplyResult = super().on_apply(target, args, *others, **options)
        result.f.add_done_callback(self._ring)
        return result

    def _ring(self, _: Future[Any]) -> None:
        os.eventfd_write(self._bell, 1)

    def _heard(self) -> None:
        with contextlib.suppress(BlockingIOError):  # somebody has read it already
            os.eventfd_read(self._bell)

    def on_stop(self) -> None:
        """Wait for the threads."""
        if state.should_terminate not in (None, False):
            lifecycle.hand_back()
        super().on_stop()

    def on_terminate(self) -> None:
        """Celery gave up its event loop: as in a cold shutdown."""
        lifecycle.hand_back()
        super().on_stop()
        lifecycle.close()

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Nothing: a plan's processes are killed by who supervises it (see ``WakeRequest.terminate``)."""
