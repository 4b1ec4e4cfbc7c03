"""Celery as both sides configure it: the application's settings, and how a wake-up is sent.

A wake-up is a Celery task whose id is the plan's id and whose one argument is that id. It says only "this plan may
be run": the ledger decides whether it does, so a wake-up that is lost, doubled or late does no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from celery import Celery
from kombu.exceptions import OperationalError

from somatize_worker.errors import ServerUnreachable
from somatize_worker.ledger import Wake
from somatize_worker.settings import Settings

log = logging.getLogger("somatize.messaging")

ASSIGN_PLAN: Final = "somatize.assign_plan"
ASSIGN_JOB: Final = "somatize.assign_python_job"
_TASK_OF_KIND: Final = {"plan": ASSIGN_PLAN, "job": ASSIGN_JOB}

# A message is acknowledged as soon as the ledger knows its plan, so an unacknowledged one older than this was held by
# a worker that died before it got so far. The ledger makes an early redelivery harmless.
_VISIBILITY_TIMEOUT_S: Final = 30
_LOOK_FOR_UNACKNOWLEDGED_EVERY_S: Final = 5
_NO_ANSWER_S: Final = 10.0

# How long a worker's loop waits for a message before it looks around: told to stop, it notices within this time.
_LOOK_AROUND_EVERY_S: Final = 0.25


def make_app(settings: Settings) -> Celery:
    """A Celery application for clients and workers of one cluster."""
    app = Celery("somatize_worker", broker=settings.redis_url, backend=settings.redis_url, set_as_current=False)
    app.conf.update(
        accept_content=["json", "msgpack"],
        task_serializer="json",
        task_ignore_result=True,
        task_default_queue="cpu",
        task_create_missing_queues=True,
        result_expires=settings.result_ttl_s,
        worker_consumer="somatize_worker.worker.consumer:PatientConsumer",
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        broker_pool_limit=32,  # Flower asks all workers at once, two connections for each question: with few it hangs
        broker_transport_options={
            "polling_interval": _LOOK_AROUND_EVERY_S,
            "visibility_timeout": _VISIBILITY_TIMEOUT_S,
            "unacked_restore_interval": _LOOK_FOR_UNACKNOWLEDGED_EVERY_S,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": _LOOK_FOR_UNACKNOWLEDGED_EVERY_S,  # who looks may die, too
            "queue_order_strategy": "priority",
            "socket_connect_timeout": 5,
            "socket_timeout": _NO_ANSWER_S,  # a server that accepts and says nothing must not hold a worker's loop
            "socket_keepalive": True,
            "health_check_interval": 10,
            "retry_policy": {"timeout": 5.0},
        },
        redis_socket_keepalive=True,
        redis_backend_health_check_interval=10,
    )
    return app


def send_wake(app: Celery, wake: Wake) -> None:
    """Put one wake-up on its queue.

    Raises:
        ServerUnreachable: it could not be sent. Nothing is lost by that: the plan is queued in the ledger, and a
            sweeper wakes it some seconds after the server is back.
    """
    try:
        app.send_task(
            _TASK_OF_KIND[wake.kind],
            args=[wake.plan_id],
            task_id=wake.plan_id,
            queue=wake.queue,
            priority=wake.priority,
            ignore_result=True,
            argsrepr=wake.summary or wake.plan_id,
            kwargsrepr="",
        )
    except (OperationalError, OSError) as error:
        raise ServerUnreachable(f"plan {wake.plan_id} is queued, but its wake-up could not be sent: {error}") from error


def send_wakes(app: Celery, wakes: Iterable[Wake]) -> bool:
    """Send several, as far as the server lets us; whether all went. A sweeper sends again what did not."""
    try:
        for wake in wakes:
            send_wake(app, wake)
    except ServerUnreachable as error:
        log.warning("%s; it is sent again once the server is back", error)
        return False
    return True
