"""Kombu's Redis transport, less what a wake-up does not need.

Kombu notes every message that a consumer takes in a hash on the server, and removes it when it is acknowledged, so
that the message is not lost with its consumer. A wake-up may be lost: the ledger has the plan, and the sweeper wakes
it again. Messages without :data:`WAKE_HEADER` (from other Celery programs) are noted as usual: until the ledger knows
their plan they are its only copy.

An application uses it whose ``broker_transport`` is :func:`transport_for` its broker's ordinary ``redis://`` URL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from kombu import connection as kombu_connection
from kombu import transport as kombu_transport
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

WAKE_HEADER: Final = "soma_wake"
_PREFIX: Final = "soma-"


class QoS(kombu_redis.QoS):
    """Keeps taken wake-ups in this process's memory alone."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """A message was taken."""
        if _is_wake(message):
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """It has been dealt with."""
        if self._holds_wake(delivery_tag):
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """It has not, and goes back to its queue if ``requeue``."""
        if requeue or not self._holds_wake(delivery_tag):
            super().reject(delivery_tag, requeue=requeue)
        else:
            virtual.QoS.ack(self, delivery_tag)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back to its queue, as at shutdown."""
        if self._holds_wake(tag):
            if tag not in self._dirty:  # those are acknowledged
                self.channel.put_back(self._delivered[tag], leftmost=leftmost)
        else:
            super().restore_by_tag(tag, client=client, leftmost=leftmost)

    def _holds_wake(self, delivery_tag: str) -> bool:
        return _is_wake(self._delivered.get(delivery_tag))


def _is_wake(message: Any) -> bool:
    return message is not None and WAKE_HEADER in message.headers


class Channel(kombu_redis.Channel):
    """A channel with one client for all that it sends: kombu makes a new one for each message."""

    QoS = QoS
    _sender: Any = None
    _intercepted: list[tuple[str, dict[str, Any]]] | None = None

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """The given client, or this channel's."""
        if client is None:
            client, pool = self._sender, self.pool
            if client is None or client.connection_pool is not pool:  # kombu makes a new pool after a fork
                client = self._sender = self._create_client()
        yield client

    @contextmanager
    def intercepting(self) -> Iterator[list[tuple[str, dict[str, Any]]]]:
        """What is put on queues meanwhile is not sent but listed, as (Redis list, message)."""
        self._intercepted = []
        try:
            yield self._intercepted
        finally:
            self._intercepted = None

    def put_back(self, message: Any, *, leftmost: bool) -> None:
        """Put a taken message back on its queue; ``leftmost`` makes it the last one to be taken, else the next."""
        info = message.delivery_info
        with self.conn_or_acquire() as client:
            self._do_restore_message(message._raw, info["exchange"], info["routing_key"], client, leftmost)

    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        if self._intercepted is None:
            super()._put(queue, message, **options)
        else:
            self._intercepted.append((self._key(queue, message), message))

    def _key(self, queue: str, message: dict[str, Any]) -> str:
        key: str = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        return key


class Transport(kombu_redis.Transport):
    """The transport of these channels."""

    Channel = Channel


def _register() -> None:
    """Give the transport names, which connections show as the URL's scheme that each stands for."""
    for scheme in ("redis", "rediss"):
        kombu_transport.TRANSPORT_ALIASES[_PREFIX + scheme] = f"{__name__}:Transport"
        kombu_connection.resolve_aliases[_PREFIX + scheme] = scheme


def transport_for(url: str) -> str:
    """This transport's name, for the ``broker_transport`` of an application whose broker has this URL."""
    return _PREFIX + urlsplit(url).scheme.partition("+")[0]


def through_socket(url: str) -> str:
    """A broker's ``redis+socket://`` URL with this transport's name in it: kombu looks for the name there first."""
    return _PREFIX + url if urlsplit(url).scheme == "redis+socket" else url


_register()
