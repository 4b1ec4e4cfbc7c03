"""Puts right what died: leases of dead workers, wake-ups that got lost, cancellations half done.

Every worker has a sweeper and calls :meth:`Sweeper.tick` about once a second; a lock in the server lets one of them
look at a time. All that it finds is in the server, so it does not matter which one, or that one dies in between.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from somatize_worker.errors import PlanNotFound, ServerUnreachable
from somatize_worker.ledger import celery_results, keys, scripts
from somatize_worker.ledger.ledger import Ledger, cancelled_result, failed_event
from somatize_worker.ledger.records import Outcome, Record, Wake, decode_wakes
from somatize_worker.ledger.states import Fail, Lease, LeaseWatch, after_death, renew_every_s
from somatize_worker.packing import pack
from somatize_worker.settings import Settings

_log = logging.getLogger(__name__)

_BATCH: Final = 200
_LOST_AFTER_MS: Final = 5_000
_SLOW_LOOK_S: Final = 1.0
_LAST_LINES: Final = 20
_DEATH: Final = "its worker died"


@dataclass(frozen=True)
class _Look:
    expired: list[Lease]
    wakes: list[Wake]
    cancelling: int


class Sweeper:
    """One worker's sweeper. ``lost_after_ms``: how old a wake-up must be before it may be taken for lost.

    A dead worker's lease is over ``lease_s`` after its last renewal; it is taken from it one renewal interval later.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        *,
        lost_after_ms: int = _LOST_AFTER_MS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._who = secrets.token_hex(8)
        self._lock_ms = round(settings.lease_s * 1000 * 2 / 3)
        self._lost_after_ms = lost_after_ms
        self._watch = LeaseWatch(gap_s=renew_every_s(settings.lease_s), quiet_s=settings.lease_s)
        self._offset = 0
        self._clock = clock

    def tick(self, now: float) -> list[Wake]:
        """Look once, and act on what is found. The caller sends the wake-ups that are returned.

        ``now`` is a time in seconds that only goes forward (``time.monotonic()``). Nothing is done, and nothing
        returned, while another sweeper holds the lock.

        Raises:
            ServerUnreachable: the server does not answer; call again later.
        """
        started = self._clock()
        try:
            look = self._look()
        except ServerUnreachable:
            self._watch.interrupted(now)
            raise
        if look is None:
            return []
        if self._clock() - started > _SLOW_LOOK_S:
            self._watch.interrupted(now)
        wakes = look.wakes
        for lease in self._watch.look(now, look.expired):
            wakes += self._expire(lease)
        if look.cancelling:
            wakes += self._ledger.cascade().wake
        return wakes

    def forget(self) -> None:
        """The server was away, as others have noticed: leases that expired meanwhile say nothing of their workers."""
        self._watch.interrupted(self._clock())

    def resign(self) -> None:
        """Give the lock up, for a worker that shuts down: another one need not wait until it expires."""
        if self._ledger.command("GET", keys.SWEEPER) == self._who.encode():
            self._ledger.command("DEL", keys.SWEEPER)

    def _look(self) -> _Look | None:
        arguments = [self._who, self._lock_ms, _BATCH, self._lost_after_ms, self._offset, *keys.LIST_SUFFIXES]
        mine, *found = self._ledger.run(scripts.load("sweep"), arguments)
        if not mine:
            return None
        expired, wakes, cancelling, self._offset = found
        leases = [(expired[i].decode(), int(expired[i + 1]), int(expired[i + 2])) for i in range(0, len(expired), 3)]
        return _Look(leases, decode_wakes(wakes), cancelling)

    def _expire(self, lease: Lease) -> list[Wake]:
        plan_id, epoch, expiry = lease
        try:
            record = self._ledger.record(plan_id)
        except PlanNotFound:
            return []
        if record.cancel:
            outcome = Outcome("cancelled", cancelled_result(record.cancel))
            meta = celery_results.revoked(record.cancel)
            return self._end(
                record, lease, outcome, cause=record.cancel, error=f"cancelled: {record.cancel}", meta=meta
            )
        decision = after_death(record, of_worker=True)
        if isinstance(decision, Fail):
            _log.warning("plan %s failed: %s", plan_id, decision.cause)
            certificate = death_certificate(record, self._ledger.output(plan_id)[-_LAST_LINES:])
            outcome = Outcome("failed", _death_result(record, decision.cause, certificate))
            meta = celery_results.failure(decision.cause)
            return self._end(record, lease, outcome, cause=decision.cause, error=decision.cause, meta=meta)
        _log.warning("plan %s: worker %s died, the plan is run again", plan_id, record.worker)
        return self._ledger.release(
            plan_id,
            epoch,
            why=_DEATH,
            count_attempt=True,
            delay_ms=decision.delay_ms,
            worker_died=True,
            lease_seen=expiry,
        )

    def _end(self, record: Record, lease: Lease, outcome: Outcome, *, cause: str, error: str, meta: str) -> list[Wake]:
        plan_id, epoch, expiry = lease
        logged = not record.parent and record.kind != "job"
        return self._ledger.finish(
            plan_id,
            epoch,
            outcome,
            events=[failed_event(plan_id, error, record.worker)] if logged else (),
            cause=cause,
            celery_meta=meta,
            worker_died=True,
            lease_seen=expiry,
        ).wake


def death_certificate(record: Record, last_lines: list[str]) -> dict[str, Any]:
    """What is known about a plan whose workers died: which, how often, at which node, and what it printed last."""
    died = Counter(entry["worker"] for entry in record.history if entry["why"] == _DEATH)
    died[record.worker] += 1
    return {
        "reason": "worker died",
        "deaths": record.deaths + 1,
        "workers": [{"worker_id": worker, "deaths": count} for worker, count in died.items()],
        "node_id": record.node,
        "last_lines": last_lines,
    }


def _death_result(record: Record, cause: str, certificate: dict[str, Any]) -> bytes:
    where = f"; the last node started was {record.node!r}" if record.node else ""
    return pack(
        {
            "error": f"{cause}{where}. If the plan itself brings its worker down (memory, a crash), its last lines "
            "may say how; a plan that is not at fault can be submitted again",
            "error_type": "somatize_worker.errors.PlanFailed",
            "node_id": record.node or None,
            "traceback": None,
            "certificate": certificate,
            "attempts": record.attempts + 1,
            "worker_id": record.worker,
        }
    )
