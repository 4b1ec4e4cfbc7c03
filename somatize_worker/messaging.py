"""Celery as both sides configure it: the application's settings, and how a wake-up is sent.

A wake-up is a Celery task whose id is the plan's id and whose one argument is that id. It says only "this plan may
be run": the ledger decides whether it does, so a wake-up that is lost, doubled or late does no harm.
"""

from __future__ import annotations

import base64
import json
import logging
import uuid
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit, urlunsplit

from celery import Celery
from kombu.exceptions import OperationalError

from somatize_worker.errors import ServerUnreachable
from somatize_worker.ledger import Ledger, Wake
from somatize_worker.settings import Settings
from somatize_worker.transport import WAKE_HEADER, through_socket, transport_for

log = logging.getLogger("somatize.messaging")

ASSIGN_PLAN: Final = "somatize.assign_plan"
ASSIGN_JOB: Final = "somatize.assign_python_job"
_TASK_OF_KIND: Final = {"plan": ASSIGN_PLAN, "job": ASSIGN_JOB}
_NOTHING_EMBEDDED: Final = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

# A message is acknowledged as soon as the ledger knows its plan, so an unacknowledged one older than this was held by
# a worker that died before it got so far. The ledger makes an early redelivery harmless.
_VISIBILITY_TIMEOUT_S: Final = 30
_LOOK_FOR_UNACKNOWLEDGED_EVERY_S: Final = 5
_NO_ANSWER_S: Final = 10.0

# How long a worker's loop waits for a message before it looks around: told to stop, it notices within this time.
_LOOK_AROUND_EVERY_S: Final = 0.25


class _App(Celery):
    """An application that stays with its cluster's server.

    Celery puts ``CELERY_BROKER_URL`` and its like above what an application was configured with. Where those are set
    for another application, wake-ups would go to its server, and the ledger to ours.
    """

    def __init__(self, server_url: str) -> None:
        super().__init__("somatize_worker", set_as_current=False)
        self._server_url = through_socket(server_url)
        self.backend_cls = server_url

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        return super().connection_for_read(self._ours(url), **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        return super().connection_for_write(self._ours(url), **options)

    def _ours(self, url: str | None) -> str:
        return url if url and url not in (self.conf.broker_read_url, self.conf.broker_write_url) else self._server_url


def make_app(settings: Settings) -> Celery:
    """A Celery application for clients and workers of one cluster."""
    url = celery_url(settings.redis_url)
    app = _App(url)
    app.conf.update(
        configuration(settings),
        broker_transport=transport_for(url),
        worker_consumer="somatize_worker.worker.consumer:PatientConsumer",
    )
    return app


def celery_url(url: str) -> str:
    """The server's URL as Celery wants it.

    With TLS, it insists on being told that certificates are checked. A socket's path is an address of its own kind.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    if parts.scheme == "rediss" and "ssl_cert_reqs" not in query:
        return urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, "ssl_cert_reqs=required"]))))
    if parts.scheme == "unix":
        return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={query.get('db', ['0'])[0]}"
    return url


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings, as far as they name no class of this package."""
    return {
        "broker_url": celery_url(settings.redis_url),
        "result_backend": celery_url(settings.redis_url),
        "accept_content": ["json", "msgpack"],
        "task_serializer": "json",
        "task_ignore_result": True,
        "task_default_queue": "cpu",
        "task_create_missing_queues": True,
        "result_expires": settings.result_ttl_s,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_enable_remote_control": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        # Flower asks all workers at once, two connections for each question: with few it hangs
        "broker_pool_limit": 32,
        "broker_transport_options": {
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
        "redis_socket_keepalive": urlsplit(settings.redis_url).scheme != "unix",
        "redis_backend_health_check_interval": 10,
    }


class WakeUps:
    """Makes wake-ups' messages, and sends those that do not go along with a submission.

    Kombu makes the first message of each kind; in later ones what differs from plan to plan is filled in. That takes a
    fraction of the time, and lets the script that records a plan also put its message on the queue.
    """

    def __init__(self, app: Celery, ledger: Ledger) -> None:
        self._app = app
        self._ledger = ledger
        self._templates: dict[tuple[str, str, int], tuple[str, dict[str, Any]]] = {}

    def entry(self, wake: Wake) -> tuple[str, bytes]:
        """The Redis list on which a wake-up goes (on the left; the right end is taken next), and its message.

        Raises:
            ServerUnreachable: it does not answer (asked for the first of a kind only, which declares the queue).
        """
        kind = (wake.kind, wake.queue, wake.priority)
        if kind not in self._templates:
            self._templates[kind] = self._template(wake)
        key, template = self._templates[kind]
        plan_id = wake.plan_id
        message = {
            **template,
            "body": base64.b64encode(json.dumps([[plan_id], {}, _NOTHING_EMBEDDED]).encode()).decode(),
            "headers": {**template["headers"], "id": plan_id, "root_id": plan_id, "argsrepr": wake.summary or plan_id},
            "properties": {**template["properties"], "correlation_id": plan_id, "delivery_tag": str(uuid.uuid4())},
        }
        return key, json.dumps(message).encode()

    def send(self, wakes: Sequence[Wake]) -> bool:
        """Send several in one round trip; whether they went. If not, a sweeper sends them once the server is back.

        They are for plans that have been under way before, or parts of such: the first of them is taken next, before
        those that wait in the queue for their first time. A plan whose worker died need not queue up again.
        """
        if not wakes:
            return True
        try:
            lists: dict[str, list[bytes]] = {}
            for wake in reversed(wakes):
                key, message = self.entry(wake)
                lists.setdefault(key, []).append(message)
            # All at once: an idle worker would take the last, were that for a moment the only one.
            self._ledger.commands([("RPUSH", key, *messages) for key, messages in lists.items()])
        except ServerUnreachable as error:
            log.warning("%d wake-ups could not be sent (%s); they are sent once the server is back", len(wakes), error)
            return False
        return True

    def _template(self, wake: Wake) -> tuple[str, dict[str, Any]]:
        try:
            with self._app.producer_or_acquire() as producer, producer.channel.intercepting() as messages:
                self._app.send_task(
                    _TASK_OF_KIND[wake.kind],
                    args=[wake.plan_id],
                    task_id=wake.plan_id,
                    queue=wake.queue,
                    priority=wake.priority,
                    ignore_result=True,
                    kwargsrepr="",
                    headers={WAKE_HEADER: True},
                    producer=producer,
                )
            ((key, message),) = messages
        except (OperationalError, OSError, ValueError) as error:
            raise ServerUnreachable(f"the queue {wake.queue!r} could not be declared: {error}") from error
        for name in ("argsrepr", "kwargsrepr"):  # they are headers, and Celery makes them properties, too
            message["properties"].pop(name, None)
        return key, message
