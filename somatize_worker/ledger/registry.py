"""Who works: the workers' registrations, which expire unless they are repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from somatize_worker.errors import NoWorker
from somatize_worker.ledger import keys, scripts
from somatize_worker.packing import pack, unpack

_STORE_AGREED_MS: Final = 60_000


class Registry(scripts.Runner):
    """The live workers.

    A registration is plain data with at least ``worker_id``, and ``queues`` (names) or the protocol's
    ``capabilities.tags``; what else it holds comes back unchanged.
    """

    def register(
        self, worker_id: str, registration: Mapping[str, Any], ttl_ms: int, *, announce: str | bytes = b""
    ) -> None:
        """Make a worker known for ``ttl_ms`` milliseconds from now; publish ``announce`` to who watches the workers."""
        packed = pack({**registration, "worker_id": worker_id})
        commands: list[tuple[Any, ...]] = [
            ("SET", keys.worker(worker_id), packed, "PX", ttl_ms),
            ("SADD", keys.WORKERS, worker_id),
            ("PEXPIRE", keys.STORE, max(ttl_ms, _STORE_AGREED_MS)),
        ]
        if announce:
            commands.append(("PUBLISH", keys.WORKER_EVENTS, announce))
        self.commands(commands)

    def heartbeat(
        self, worker_id: str, registration: Mapping[str, Any], ttl_ms: int, *, announce: str | bytes = b""
    ) -> None:
        """Register again, with what has changed; also brings back a registration that had expired meanwhile."""
        self.register(worker_id, registration, ttl_ms, announce=announce)

    def unregister(self, worker_id: str) -> None:
        """Forget a worker at once."""
        self.commands([("DEL", keys.worker(worker_id)), ("SREM", keys.WORKERS, worker_id)])

    def workers(self) -> list[dict[str, Any]]:
        """The registrations of the live workers, by worker id."""
        found = [unpack(packed) for packed in self.run(scripts.load("workers"), [])]
        return sorted(found, key=lambda registration: str(registration["worker_id"]))

    def serving(self, queue: str) -> list[str]:
        """Ids of the live workers that read a queue: one of their tags, or a worker's own id."""
        return [str(worker["worker_id"]) for worker in self.workers() if queue in queues_of(worker)]

    def served_tags(self) -> dict[str, int]:
        """Each tag that is served, with the number of live workers that do."""
        counts: Counter[str] = Counter()
        for worker in self.workers():
            counts.update(queues_of(worker) - {worker["worker_id"]})
        return dict(sorted(counts.items()))

    def require_served(self, queues: Iterable[str]) -> None:
        """Make sure that live workers read all these queues.

        Raises:
            NoWorker: nobody reads one of them; ``details["served"]`` lists the tags that are served.
        """
        workers = self.workers()
        served = {queue for worker in workers for queue in queues_of(worker)}
        missing = [queue for queue in dict.fromkeys(queues) if queue not in served]
        if not missing:
            return
        ids = {str(worker["worker_id"]) for worker in workers}
        tags = sorted(served - ids)
        there = f"served now: {', '.join(tags)} (by {', '.join(sorted(ids))})" if workers else "no worker is running"
        raise NoWorker(
            f"no live worker serves {' or '.join(map(repr, missing))}; {there}. Start one with "
            f"`celery -A somatize_worker worker -Q {missing[0]}`, or pass wait=True to queue the plan until one comes",
            missing=missing,
            served=tags,
        )

    def queue_depth(self, queues: Iterable[str]) -> int:
        """How many Celery messages wait in these queues, all priorities together."""
        lists = [f"{queue}{suffix}" for queue in queues for suffix in keys.LIST_SUFFIXES]
        return sum(self.commands([("LLEN", name) for name in lists]))

    def agree_store(self, mine: str) -> str:
        """The store (URL or marker) that the cluster uses: ``mine``, unless a worker has named another one before.

        The agreement lasts as long as there are workers, and a minute.
        """
        _, agreed = self.commands([("SET", keys.STORE, mine, "NX", "PX", _STORE_AGREED_MS), ("GET", keys.STORE)])
        return str(agreed.decode())

    def agreed_store(self) -> str | None:
        """The store that the cluster uses, if a worker has named one."""
        agreed = self.command("GET", keys.STORE)
        return None if agreed is None else str(agreed.decode())


def queues_of(registration: Mapping[str, Any]) -> set[str]:
    """The queues that a registered worker reads: its tags and its own id."""
    tags = registration.get("queues") or (registration.get("capabilities") or {}).get("tags") or ()
    return {str(tag) for tag in tags} | {str(registration["worker_id"])}
