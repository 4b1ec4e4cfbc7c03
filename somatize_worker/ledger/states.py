"""What may happen to a plan, and what to do when something went wrong: decisions without a server.

The scripts carry transitions out; which state each may start from is the table here, from which the loader makes
the scripts' guards.

    queued ──claim──> leased ──finish──> succeeded | failed | cancelled
      ^ ^               │ │
      │ └───release─────┘ └──suspend──> waiting
      └───────────wake (last child, or a failed one)──┘          cancel: queued, waiting -> cancelled; leased: flagged
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

State = Literal["queued", "leased", "waiting", "succeeded", "failed", "cancelled"]

TERMINAL: Final[frozenset[str]] = frozenset({"succeeded", "failed", "cancelled"})
UNFINISHED: Final[frozenset[str]] = frozenset({"queued", "leased", "waiting"})

TRANSITIONS: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "claim": {"queued": frozenset({"leased"})},
    "report": {"leased": frozenset({"leased"})},
    "suspend": {"leased": frozenset({"waiting", "queued"})},
    "wake": {"waiting": frozenset({"queued"})},
    "release": {"leased": frozenset({"queued"})},
    "finish": {"leased": TERMINAL},
    "cancel": {"queued": frozenset({"cancelled"}), "waiting": frozenset({"cancelled"})},
}
"""Operation -> state it may start from -> states it may lead to."""

_LONGEST_DELAY_S: Final = 3600.0


def renew_every_s(lease_s: float) -> float:
    """How often leases of ``lease_s`` seconds are renewed: two renewals may get lost before a lease expires."""
    return lease_s / 3


class Attempts(Protocol):
    """What a retry decision looks at; a ``Claim`` and a ``Record`` both have it.

    ``attempts`` counts the failed starts so far, without the one that is being decided on; ``deaths`` those of them
    that took their whole worker along. ``retry`` is ``{"retries": n, "on": [qualified exception names],
    "delay_s": seconds, "factor": growth for each further retry}``, all optional.
    """

    @property
    def attempts(self) -> int: ...
    @property
    def deaths(self) -> int: ...
    @property
    def max_attempts(self) -> int: ...
    @property
    def retry(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Retry:
    """Run the plan again, after a delay."""

    delay_ms: int


@dataclass(frozen=True)
class Fail:
    """Give the plan up, for this reason."""

    cause: str


def after_failure(plan: Attempts, error_mro: Sequence[str], *, error: str = "") -> Retry | Fail:
    """What follows an exception in user code.

    ``error_mro`` holds the qualified names of the exception's class and its bases (``"builtins.ValueError"``). The plan
    is retried if it asked for that by one of these names, and has retries left. A name without a module means a builtin
    exception. ``error`` is put in front of the cause.
    """
    wanted = {name if "." in name else f"builtins.{name}" for name in plan.retry.get("on") or ()}
    if wanted.intersection(error_mro):
        decision = _retry_if_left(plan)
    else:
        decision = Fail("not retried: the plan asked for no retry after such an error")
    if isinstance(decision, Fail) and error:
        return Fail(f"{error} ({decision.cause})")
    return decision


def after_death(plan: Attempts, *, of_worker: bool = False) -> Retry | Fail:
    """What follows the death of a plan's own process, or of the whole worker that ran it.

    The death of its process is the plan's own matter: it is run again only if it asked for retries. A worker may die
    for other reasons: the plan is always run again, until that has happened ``max_attempts`` times.
    """
    if not of_worker:
        return _retry_if_left(plan)
    deaths = plan.deaths + 1
    if deaths < plan.max_attempts:
        return Retry(0)
    times = "once" if deaths == 1 else f"{deaths} times"
    return Fail(f"the worker that ran it died, {times} (max_attempts is {plan.max_attempts})")


def _retry_if_left(plan: Attempts) -> Retry | Fail:
    retries = int(plan.retry.get("retries") or 0)
    done = plan.attempts - plan.deaths
    if done >= retries:
        return Fail(f"no retry left of {retries}" if retries else "not retried: the plan asked for no retries")
    delay_s = float(plan.retry.get("delay_s") or 0) * float(plan.retry.get("factor") or 1) ** done
    return Retry(round(min(delay_s, _LONGEST_DELAY_S) * 1000))


Lease = tuple[str, int, int]
"""Plan id, epoch, lease expiry (ms, server time): changes with each renewal."""


@dataclass
class LeaseWatch:
    """Decides when an expired lease means a dead worker.

    A server that was away lets all leases expire although their workers live. So a lease counts only once it has been
    seen expired, unchanged, in two looks at least ``gap_s`` apart, and nothing counts until ``quiet_s`` after the
    server was last known to be away: time for every live worker to renew. Times are seconds of one monotonic clock.
    """

    gap_s: float
    quiet_s: float
    _first_seen: dict[Lease, float] = field(default_factory=dict)
    _quiet_until: float = float("-inf")

    def interrupted(self, now: float) -> None:
        """The server did not answer, or not in time."""
        self._first_seen.clear()
        self._quiet_until = now + self.quiet_s

    def look(self, now: float, expired: Sequence[Lease]) -> list[Lease]:
        """Leases that are over, of those found expired at this moment."""
        if now < self._quiet_until:
            return []
        self._first_seen = {lease: self._first_seen.get(lease, now) for lease in expired}
        return [lease for lease, since in self._first_seen.items() if now - since >= self.gap_s]
