"""From Celery's signals to the runtime: start before the consumer, drain on shutdown, close at the end."""

from __future__ import annotations

import os
import socket
from typing import Any, Final

from celery import Celery, signals

from somatize_worker.errors import SomaError
from somatize_worker.settings import Settings
from somatize_worker.worker import revoking
from somatize_worker.worker.runtime import Runtime

_CELERYS_OWN_NAME: Final = "celery"

_runtime: Runtime | None = None


def runtime() -> Runtime:
    """This worker process's runtime.

    Raises:
        RuntimeError: outside a running worker.
    """
    if _runtime is None:
        raise RuntimeError("no worker is running in this process: somatize tasks run only inside `celery worker`")
    return _runtime


def drain() -> None:
    """Told to stop: take nothing more, and finish what runs."""
    if _runtime is not None:
        _runtime.drain()


def revoke(task_id: str, reason: str) -> None:
    """Celery was told to revoke a task."""
    if _runtime is not None:
        _runtime.revoke_soon(task_id, reason)


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

    def name(instance: Any, **_: Any) -> None:
        nodename, _, host = instance.hostname.partition("@")
        if instance.app is app and nodename == _CELERYS_OWN_NAME:  # two of that name could not be told apart
            instance.hostname = f"{settings.worker_id or _process_name()}@{host}"

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

    def ready(sender: Any, **_: Any) -> None:
        if _runtime is not None and sender.app is app:
            _runtime.announce()

    def draining(**_: Any) -> None:
        drain()

    def stopped(**_: Any) -> None:
        close()

    signals.celeryd_init.connect(name, weak=False)
    signals.celeryd_after_setup.connect(start, weak=False)
    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(draining, weak=False)
    signals.worker_shutdown.connect(stopped, weak=False)


def _default_worker_id(nodename: str) -> str:
    """The Celery node name where somebody chose one (``-n gpu1@%h``), else host and process."""
    return _process_name() if nodename.startswith(f"{_process_name()}@") else nodename.replace("@", "-at-")


def _process_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"
