"""One reply channel for a client's whole life: a finished plan's result arrives here, whichever worker ran it."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from redis.client import PubSub
from redis.exceptions import RedisError

from somatize_worker.errors import PlanNotFound
from somatize_worker.ledger import Ledger, reply_channel
from somatize_worker.packing import unpack

_CLOSE_WITHIN_S = 0.25
log = logging.getLogger("somatize.coordinator")


class Reply:
    """Where one plan's end will be put; ``then`` is called with the plan's id when it is there."""

    def __init__(self, then: Callable[[str], None] | None = None) -> None:
        self._set = threading.Event()
        self._then = then
        self.message: dict[str, Any] | None = None

    def put(self, message: dict[str, Any]) -> None:
        """Called by the listener, or by whoever read the record."""
        self.message = message
        self._set.set()
        if self._then is not None:
            self._then(message["plan_id"])

    def wait(self, timeout: float | None) -> dict[str, Any] | None:
        """The end, or None when it did not come in time."""
        self._set.wait(timeout)
        return self.message


class Replies:
    """Listens on this client's channel, from the first plan to :meth:`close`.

    What is published while the connection is down is lost. So when it is there again, the records of all plans that
    an end is expected of are looked at; and whoever waits reads the record now and then.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.channel = reply_channel(uuid.uuid4().hex)
        self._waiting: defaultdict[str, list[Reply]] = defaultdict(list)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._away = False
        self._may_have_missed = False

    def expect(self, plan_id: str, then: Callable[[str], None] | None = None) -> Reply:
        """A place for a plan's end; subscribed before this returns, so that nothing is missed."""
        reply = Reply(then)
        with self._lock:
            self._waiting[plan_id].append(reply)
            if self._thread is None:
                self._start()
        return reply

    def forget(self, plan_id: str, reply: Reply) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            replies = self._waiting.get(plan_id, [])
            if reply in replies:
                replies.remove(reply)
            if not replies:
                self._waiting.pop(plan_id, None)

    def outage(self, error: Exception | None) -> None:
        """The server did not answer somebody who waits (None: it did): said once for each outage."""
        with self._lock:
            before, self._away = self._away, error is not None
        if error is not None and not before:
            log.warning("the server does not answer; waiting goes on: %s", error)

    def close(self) -> None:
        """Stop listening."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        pubsub = self._ledger.listen(self.channel)
        connection: Any = pubsub.connection
        connection.register_connect_callback(self._connected_again)
        self._thread = threading.Thread(target=self._listen, args=(pubsub,), name="soma-replies", daemon=True)
        self._thread.start()

    def _listen(self, pubsub: PubSub) -> None:
        with pubsub:
            self._take_all(pubsub)

    def _take_all(self, pubsub: PubSub) -> None:
        while not self._closed.is_set():
            try:
                message = pubsub.get_message(timeout=_CLOSE_WITHIN_S)
            except (RedisError, OSError, ValueError) as error:
                if self._closed.wait(0.5):
                    return
                log.debug("reply channel: %s; connecting again", error)
                continue
            if message is not None:
                self._take(unpack(message["data"]))
            if self._may_have_missed:
                self._may_have_missed = False
                self._look_again()

    def _connected_again(self, _connection: Any) -> None:
        self._may_have_missed = True

    def _look_again(self) -> None:
        with self._lock:
            expected = list(self._waiting)
        for plan_id in expected:
            try:
                record = self._ledger.watch(plan_id, self.channel)
            except PlanNotFound:
                continue  # whoever waits for it is told so
            except (RedisError, OSError):
                self._may_have_missed = True
                return
            if record is not None:
                self._take({"plan_id": plan_id, "state": record.state, "result": record.result})

    def _take(self, message: dict[str, Any]) -> None:
        with self._lock:
            replies = self._waiting.pop(message["plan_id"], [])
        for reply in replies:
            reply.put(message)
