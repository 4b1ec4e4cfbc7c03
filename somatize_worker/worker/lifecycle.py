"""From Celery's signals to the runtime: start before the consumer, drain on shutdown, close at the end."""

from __future__ import annotations

import os
import socket
from typing import Any

from celery import Celery, signals

from somatize_worker.errors import SomaError
from somatize_worker.settings import Settings
from somatize_worker.worker import revoking
from somatize_worker.worker.runtime import Runtime

_runtime: Runtime | None = None


def runtime() -> Runtime:
    """This worker process's runtime.

    Raises:
        RuntimeError: outside a running worker.
    """
    if _runtime is None:
        raise RuntimeError("no worker is running in this process: somatize tasks run only inside `celery worker`")
    return _runtime


def hand_back() -> None:
    """Told to stop at once: what runs goes back to the other workers."""
    if _runtime is not None:
        _runtime.hand_back()


def close() -> None:
    """The last plan has left: stop what is still there of this process's runtime."""
    global _runtime
    if _runtime is not None:
        closing, _runtime = _runtime, None
        closing.close()


def connect(app: Celery, settings: Settings) -> None:
    """Hook this application's workers; other Celery applications in the process are left alone."""

    def start(sender: str, instance: Any, **_: Any) -> None:
        global _runtime
        if instance.app is not app:
            return
        worker_id = settings.worker_id or _default_worker_id(sender)
        queues = instance.app.amqp.queues
        tags = [name for name in queues.consume_from if name != worker_id]
        queues.select_add(worker_id)
        try:
            _runtime = Runtime(app, settings, worker_id=worker_id, tags=tags, slots=instance.concurrency)
            _runtime.start()
        except SomaError as error:
            raise SystemExit(f"somatize worker cannot start: {error}") from error
        revoking.install(revoke)

    def revoke(task_id: str, reason: str) -> None:
        if _runtime is not None:
            _runtime.revoke_soon(task_id, reason)

    def ready(sender: Any, **_: Any) -> None:
        if _runtime is not None and sender.app is app:
            _runtime.announce()

    def draining(**_: Any) -> None:
        if _runtime is not None:
            _runtime.drain()

    def stopped(**_: Any) -> None:
        close()

    signals.celeryd_after_setup.connect(start, weak=False)
    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(draining, weak=False)
    signals.worker_shutdown.connect(stopped, weak=False)


def _default_worker_id(nodename: str) -> str:
    """The Celery node name where somebody chose one (``-n gpu1@%h``), else host and process."""
    name, _, _ = nodename.partition("@")
    return nodename.replace("@", "-at-") if name != "celery" else f"{socket.gethostname()}-{os.getpid()}"
