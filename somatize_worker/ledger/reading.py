"""Questions to the ledger: records, events, printed lines. Nothing here changes a plan."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from redis.client import PubSub

from somatize_worker.errors import PlanNotFound
from somatize_worker.ledger import keys, scripts
from somatize_worker.ledger.records import LISTED, Record

_PAGE = 200
_SUBSCRIBED_WITHIN_S = 5.0


class Reader(scripts.Runner):
    """The reading half of the ledger."""

    def record(self, plan_id: str) -> Record:
        """A plan's record.

        Raises:
            PlanNotFound: no record of that id.
        """
        fields: dict[bytes, bytes] = self.command("HGETALL", keys.plan(plan_id))
        if not fields:
            raise not_found(plan_id)
        return Record.decode(plan_id, fields)

    def state(self, plan_id: str) -> str:
        """Where a plan stands.

        Raises:
            PlanNotFound: no record of that id.
        """
        state = self.command("HGET", keys.plan(plan_id), "state")
        if state is None:
            raise not_found(plan_id)
        return str(state.decode())

    def watch(self, plan_id: str, channel: str) -> Record | None:
        """Have the plan's end told on a reply channel; its record instead, if it has ended.

        Subscribe to the channel first. The message is packed: ``{"plan_id", "state", "result": {...}}``.

        Raises:
            PlanNotFound: no record of that id.
        """
        answer = self.run(scripts.load("watch"), [plan_id, channel])
        if answer == b"unknown":
            raise not_found(plan_id)
        return None if answer == b"watching" else Record.decode(plan_id, pairs(answer))

    def records(
        self, limit: int = 50, states: Collection[str] | None = None, *, children: bool = False
    ) -> list[Record]:
        """The newest plans, newest first; with ``children`` those that are parts of other plans too."""
        found: list[Record] = []
        for record in self._listed():
            if (states is None or record.state in states) and (children or not record.parent):
                found.append(record)
                if len(found) >= limit:
                    break
        return found

    def family(self, plan_id: str) -> list[Record]:
        """All plans below a root plan, of every generation, finished ones included, in order of creation.

        As in :meth:`records`, without ``spec`` and ``result``.
        """
        members = self.command("SMEMBERS", keys.family(plan_id))
        return sorted(self._listing(list(members)), key=lambda record: (record.created, record.plan_id))

    def events(self, plan_id: str, after: int = 0) -> list[tuple[int, str]]:
        """The logged events of the plan's root as (sequence number, JSON text), from ``after`` (exclusive) on.

        Numbers start at 1 and have no gap; the oldest events are gone once there were more than the log keeps. An
        unknown plan has no events. To follow a plan without gap or repeat: subscribe, read the log, then pass on from
        the channel what has a higher number.
        """
        first, texts = self.run(scripts.load("events"), [plan_id, after])
        events = enumerate((event.decode() for text in texts for event in text.split(b"\n")), int(first))
        return [(number, f'{{"seq":{number},{event[1:]}') for number, event in events if number > after]

    def output(self, plan_id: str) -> list[str]:
        """The lines that the plan's root and its parts printed (the newest, up to the limit in the settings)."""
        root = self.command("HGET", keys.plan(plan_id), "root")
        lines = self.command("LRANGE", keys.output(root.decode() if root else plan_id), 0, -1)
        return [line.decode(errors="replace") for line in lines]

    def output_since(self, plan_id: str, seen: int) -> tuple[int, list[str]]:
        """The lines printed after the first ``seen`` ones (as far as they are kept), and how many that makes."""
        total, lines = self.run(scripts.load("output"), [plan_id, seen])
        return int(total), [line.decode(errors="replace") for line in lines]

    def listen(self, channel: str) -> PubSub:
        """A subscription to a channel, in force when this returns. Close it, or use it as a context manager.

        Raises:
            redis.exceptions.RedisError, OSError: the server does not answer.
        """
        pubsub: PubSub = self.client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        pubsub.subscribe(channel)
        pubsub.get_message(ignore_subscribe_messages=False, timeout=_SUBSCRIBED_WITHIN_S)
        return pubsub

    def _listed(self) -> Iterator[Record]:
        start = 0
        while ids := self.command("ZREVRANGE", keys.PLANS, start, start + _PAGE - 1):
            yield from self._listing(ids)
            start += _PAGE

    def _listing(self, ids: list[bytes]) -> list[Record]:
        names = [plan_id.decode() for plan_id in ids]
        rows = self.commands([("HMGET", keys.plan(name), *LISTED) for name in names])
        decoded = []
        for name, row in zip(names, rows, strict=True):
            fields = {key.encode(): value for key, value in zip(LISTED, row, strict=True) if value is not None}
            if b"state" in fields:
                decoded.append(Record.decode(name, fields))
        return decoded


def pairs(values: list[Any]) -> dict[bytes, bytes]:
    """A dict of a flat list: key, value, key, value, ..."""
    return dict(zip(values[::2], values[1::2], strict=True))


def not_found(plan_id: str) -> PlanNotFound:
    """The error for an id that has no record."""
    return PlanNotFound(
        f"there is no plan {plan_id!r}: it was never submitted to this server, or its record has expired; "
        "check the id, and that server and database are the right ones",
        plan_id=plan_id,
    )
