"""What goes into the ledger and what comes out: value objects, and a record's decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from io import BytesIO
from typing import Any, Literal

import msgpack

from somatize_worker.packing import unpack

Holding = Literal["held", "cancel", "lost"]


@dataclass(frozen=True)
class Wake:
    """A Celery message that somebody must send: this plan may be run."""

    plan_id: str
    queue: str
    priority: int
    summary: str
    kind: str


@dataclass(frozen=True)
class Submission:
    """A plan (or job) to be recorded.

    ``digest`` identifies its content: same id and digest, same plan. ``code`` says which warm host fits, ``reply`` is
    a channel to be told on, ``aliases`` are Celery task ids that stand for the plan beside its own. For children,
    ``parent`` and ``root`` follow from the plan that waits for them, and ``path`` is their place in it.
    """

    plan_id: str
    spec: bytes
    queue: str
    _: KW_ONLY
    digest: str
    kind: str = "plan"
    summary: str = ""
    code: str = ""
    requirements: Sequence[str] = ()
    priority: int = 5
    max_attempts: int = 3
    timeout_ms: int = 0
    retry: Mapping[str, Any] | None = None
    parent: str = ""
    root: str = ""
    path: str = ""
    reply: str = ""
    aliases: Sequence[str] = ()

    def wake(self) -> Wake:
        """The wake-up that follows a submission."""
        return Wake(self.plan_id, self.queue, self.priority, self.summary, self.kind)


@dataclass(frozen=True)
class Submitted:
    """``created`` is false for a plan that was known; ``state`` is where it stands."""

    created: bool
    state: str


@dataclass(frozen=True)
class Claim:
    """A lease, with all that is needed to run the plan. ``journal`` holds packed entries by path.

    ``remaining_ms`` is what is left of ``timeout_ms``, which counts from the first start; without a timeout it is 0.
    ``seq`` is the number of events that the plan has logged itself. ``running`` has the places of its parts that run
    as plans of their own. ``elapsed_ms`` is the time since its first start.
    """

    plan_id: str
    kind: str
    epoch: int
    attempts: int
    deaths: int
    spec: bytes
    code: str
    requirements: tuple[str, ...]
    root: str
    path: str
    timeout_ms: int
    remaining_ms: int
    max_attempts: int
    queue: str
    priority: int
    summary: str
    journal: dict[str, bytes]
    retry: Mapping[str, Any]
    seq: int = 0
    running: Sequence[str] = ()
    elapsed_ms: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a plan ended. ``result`` is a packed dict: ``output, states, duration_ms, worker_id`` of a success, or
    ``error, error_type, node_id, traceback, certificate, attempts``."""

    state: str
    result: bytes


@dataclass(frozen=True)
class Finished:
    """``accepted`` is false when the lease was over: the outcome was thrown away."""

    accepted: bool
    wake: list[Wake] = field(default_factory=list)


@dataclass(frozen=True)
class Suspended:
    """``accepted`` is false when the lease was over, or the plan was being cancelled and is now."""

    accepted: bool
    wake: list[Wake] = field(default_factory=list)


@dataclass(frozen=True)
class Cancelled:
    """What a cancellation met: the plan's state before (``"unseen"`` for an unknown id), the leased plans that their
    workers were told to stop as (worker id, plan id), and the plans that ended at once."""

    state_before: str
    holders: list[tuple[str, str]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    wake: list[Wake] = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    """A plan's record. Times are milliseconds of server time, 0 for not yet. In listings, ``spec`` is empty and
    ``result`` is None."""

    plan_id: str
    state: str
    kind: str
    digest: str
    spec: bytes
    queue: str
    priority: int
    epoch: int
    attempts: int
    deaths: int
    max_attempts: int
    timeout_ms: int
    retry: Mapping[str, Any]
    worker: str
    lease: int
    not_before: int
    parent: str
    root: str
    path: str
    summary: str
    code: str
    requirements: tuple[str, ...]
    aliases: tuple[str, ...]
    created: int
    started: int
    finished: int
    node: str
    cause: str
    cancel: str
    seq: int
    result: dict[str, Any] | None
    history: list[dict[str, Any]]

    @classmethod
    def decode(cls, plan_id: str, fields: Mapping[bytes, bytes]) -> Record:
        """A record from the hash in the server; absent fields have their defaults."""

        def text(name: bytes) -> str:
            return fields.get(name, b"").decode()

        def number(name: bytes, default: int = 0) -> int:
            return int(fields.get(name) or default)

        result = fields.get(b"result")
        return cls(
            plan_id=plan_id,
            state=text(b"state"),
            kind=text(b"kind") or "plan",
            digest=text(b"digest"),
            spec=fields.get(b"spec", b""),
            queue=text(b"queue"),
            priority=number(b"priority"),
            epoch=number(b"epoch"),
            attempts=number(b"attempts"),
            deaths=number(b"deaths"),
            max_attempts=number(b"max_attempts", 1),
            timeout_ms=number(b"timeout_ms"),
            retry=decode_retry(fields.get(b"retry")),
            worker=text(b"worker"),
            lease=number(b"lease"),
            not_before=number(b"not_before"),
            parent=text(b"parent"),
            root=text(b"root") or plan_id,
            path=text(b"path"),
            summary=text(b"summary"),
            code=text(b"code"),
            requirements=tuple(text(b"requirements").splitlines()),
            aliases=tuple(text(b"aliases").splitlines()),
            created=number(b"created"),
            started=number(b"started"),
            finished=number(b"finished"),
            node=text(b"node"),
            cause=text(b"cause"),
            cancel=text(b"cancel"),
            seq=number(b"seq"),
            result=unpack(result) if result else None,
            history=list(msgpack.Unpacker(BytesIO(fields.get(b"history", b"")))),
        )


LISTED = (
    *("state", "kind", "queue", "priority", "epoch", "attempts", "deaths", "max_attempts", "timeout_ms", "worker"),
    *("lease", "not_before", "parent", "root", "path", "summary", "created", "started", "finished", "node", "cause"),
    *("cancel", "seq", "history", "aliases", "digest"),
)
"""The fields of a record that listings read: all but the big ones."""


def decode_retry(packed: bytes | None) -> Mapping[str, Any]:
    """A plan's retry policy, empty when it asked for none."""
    return unpack(packed) if packed else {}


def decode_wakes(values: Sequence[bytes]) -> list[Wake]:
    """Wake-ups as the scripts return them, five values each."""
    return [
        Wake(
            plan_id=values[i].decode(),
            queue=values[i + 1].decode(),
            priority=int(values[i + 2]),
            summary=values[i + 3].decode(),
            kind=values[i + 4].decode(),
        )
        for i in range(0, len(values), 5)
    ]
