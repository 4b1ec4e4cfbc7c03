"""What a plan or job tells, complete and in order, however late one comes: the log first, then the channel."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from redis.client import PubSub
from redis.exceptions import RedisError

from somatize_worker.ledger import TERMINAL, Ledger, celery_result

_LOOK_EVERY_S = 0.25
_PAUSE_S = 0.2


class LogStream:
    """Iterates over (number, JSON text), live; ends with the plan.

    Subscribes before it reads the log, and reads the log again whenever a number is missing or the connection broke,
    so there is neither a gap nor a repeat.

    Args:
        plan_id: whose end ends the stream.
        root: whose log it is: the plan itself, or the one that it is a part of.
        channel: where the same messages are published live.
        after: number of the last message that is known already.
        timeout: seconds after which to end in any case; None: never.
    """

    def __init__(
        self, ledger: Ledger, plan_id: str, *, root: str, channel: str, after: int = 0, timeout: float | None = None
    ) -> None:
        self._ledger = ledger
        self._plan_id = plan_id
        self._root = root
        self._channel = channel
        self._end_channel = celery_result(plan_id)
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self.number = after
        """Number of the last message given; pass it as ``after`` to go on from there."""

    def __iter__(self) -> Iterator[tuple[int, str]]:
        while True:
            try:
                with self._ledger.listen(self._channel) as pubsub:
                    pubsub.subscribe(self._end_channel)
                    yield from self._follow(pubsub)
                    return
            except (RedisError, OSError):
                time.sleep(_PAUSE_S)  # then subscribe again and read what was missed

    def _follow(self, pubsub: PubSub) -> Iterator[tuple[int, str]]:
        yield from self._from_log()
        while self._deadline is None or time.monotonic() < self._deadline:
            message = pubsub.get_message(timeout=_LOOK_EVERY_S)
            if message is not None and message["channel"] == self._channel.encode():
                yield from self._from_channel(message["data"].decode())
            elif self._ledger.state(self._plan_id) in TERMINAL:
                yield from self._from_log()
                return

    def _from_log(self) -> Iterator[tuple[int, str]]:
        for number, text in self._ledger.events(self._root, after=self.number):
            self.number = number
            yield number, text

    def _from_channel(self, text: str) -> Iterator[tuple[int, str]]:
        number = json.loads(text)["seq"]
        if number > self.number + 1:
            yield from self._from_log()
        if number > self.number:
            self.number = number
            yield number, text
