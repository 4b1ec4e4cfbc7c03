"""What a caller holds of a running plan: its events, its result, a way to cancel it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from redis.exceptions import RedisError

from somatize_worker import protocol
from somatize_worker.coordinator.printed import PrintedLines
from somatize_worker.coordinator.replies import Reply
from somatize_worker.coordinator.session import Session
from somatize_worker.coordinator.subscription import LogStream
from somatize_worker.errors import PlanCancelled, PlanFailed, ResultTimeout
from somatize_worker.ledger import TERMINAL, Record, events_channel
from somatize_worker.packing import unpack
from somatize_worker.pipeline import FittedPipeline, StepSource
from somatize_worker.stores import clear, resolve
from somatize_worker.values import load_state

_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class RunResult:
    """A finished plan.

    ``output`` is a numpy array (a read-only view of the store's memory when it is large), JSON-like data, bytes or
    None. ``states`` maps each fitted node to its state as it travels; :meth:`state` gives one as the object it was.
    ``duration`` is the time from the plan's first start to its end.
    """

    plan_id: str
    output: Any
    states: Mapping[str, Any]
    duration: timedelta
    worker_id: str
    attempts: int = 1
    _source: StepSource | None = field(default=None, repr=False)

    @property
    def pipeline(self) -> FittedPipeline:
        """The fitted pipeline, ready for ``forward``, to save and to load."""
        if self._source is None:
            raise PlanFailed(
                f"plan {self.plan_id} was not submitted as a pipeline from here, so there is none to give back; "
                "its states are in .states",
                plan_id=self.plan_id,
            )
        return FittedPipeline(self._source, self.states)

    def state(self, node_id: str) -> Any:
        """One node's fitted state as the object it was. This unpickles what a worker sent: trust your workers."""
        return load_state(self.states[node_id])


class Handle:
    """A submitted plan or job. Everything here may be called any number of times, from any thread."""

    def __init__(self, session: Session, plan_id: str, *, root: str, reply: Reply | None) -> None:
        self.plan_id = plan_id
        self._session = session
        self._root = root
        self._reply = reply

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.plan_id!r})"

    @property
    def record(self) -> Record:
        """The ledger's record: state, attempts and where each ran, why it ended."""
        return self._session.ledger.record(self.plan_id)

    @property
    def state(self) -> str:
        """``queued``, ``leased``, ``waiting``, ``succeeded``, ``failed`` or ``cancelled``."""
        return self.record.state

    def done(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.state in TERMINAL

    def cancel(self, reason: str = "cancelled by the client") -> None:
        """Cancel it, wherever it is: its processes, its children and their hosts are killed."""
        self._session.cancel(self.plan_id, reason)

    def output_lines(self, *, follow: bool = False) -> Iterator[str]:
        """What it has printed so far (as far as it is kept); with ``follow``, live until it ends."""
        return iter(PrintedLines(self._session.ledger, self.plan_id, follow=follow))

    # ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _wait(self, timeout: float | None) -> dict[str, Any]:
        replies = self._session.replies
        deadline = None if timeout is None else time.monotonic() + timeout
        reply, first = self._reply, self._reply is None
        if reply is None:
            reply = self._reply = replies.expect(self.plan_id)
        while True:
            if first and (message := self._watch()) is not None:
                replies.forget(self.plan_id, reply)
                reply.put(message)
            left = None if deadline is None else deadline - time.monotonic()
            message = reply.wait(_LOOK_EVERY_S if left is None else max(0.0, min(_LOOK_EVERY_S, left)))
            if message is not None:
                return message
            if left is not None and left <= 0:
                raise ResultTimeout(
                    f"plan {self.plan_id} has not ended after {timeout:g} s; it goes on, ask again",
                    plan_id=self.plan_id,
                )
            first = True  # the message may have been lost with a connection: read the record, too

    def _watch(self) -> dict[str, Any] | None:
        """The end, if the record has it; else have it told on the reply channel."""
        try:
            record = self._session.ledger.watch(self.plan_id, self._session.replies.channel)
        except (RedisError, OSError) as error:
            self._session.replies.outage(error)
            return None
        self._session.replies.outage(None)
        if record is None:
            return None
        return {"plan_id": self.plan_id, "state": record.state, "result": record.result}


class PlanHandle(Handle):
    """A submitted plan."""

    def __init__(
        self, session: Session, plan_id: str, *, root: str, source: StepSource | None, reply: Reply | None
    ) -> None:
        super().__init__(session, plan_id, root=root, reply=reply)
        self._source = source
        self._result: RunResult | None = None

    def result(self, timeout: float | None = None, *, progress: bool = False) -> RunResult:
        """Wait for the end.

        Args:
            timeout: seconds to wait; None waits as long as it takes.
            progress: show a live display of the nodes in the terminal.

        Raises:
            PlanFailed: with the error, the node, and the death certificate when a process died.
            PlanCancelled: somebody cancelled it.
            ResultTimeout: not done yet; the plan goes on and may be asked again.
            MissingData: its output has expired.
        """
        if self._result is None:
            if progress:
                from somatize_worker.coordinator.progress import show

                show(self.record.summary or self.plan_id, self.messages(timeout=timeout))
            self._result = self._read(self._wait(timeout))
        return self._result

    def discard(self) -> None:
        """Remove what the plan stored, now and not when it expires. What :meth:`result` gave from here stays valid;
        whoever asks for the result elsewhere, or later, gets ``MissingData``. What cannot be removed is left to expire.

        Raises:
            ResultTimeout: the plan has not ended.
        """
        clear(self._session.store, _said(self._wait(0)).get("own") or ())

    def events(self, after: int = 0) -> Iterator[protocol.Event]:
        """The protocol's events from the first (or after number ``after``), live; ends with the plan."""
        return (message.event for message in self.messages(after))

    def messages(self, after: int = 0, timeout: float | None = None) -> Iterator[protocol.EventMessage]:
        """Like :meth:`events`, each in its message, which names the worker that ran it; for ``timeout`` seconds."""
        channel = events_channel(self._root)
        ledger = self._session.ledger
        for _, text in LogStream(ledger, self.plan_id, root=self._root, channel=channel, after=after, timeout=timeout):
            message = protocol.from_json(protocol.WorkerToCoordinator, text)
            assert isinstance(message, protocol.EventMessage)
            yield message
            if isinstance(message.event, (protocol.RunCompleted, protocol.RunFailed)):
                return

    def _read(self, message: Mapping[str, Any]) -> RunResult:
        said = _said(message)
        if message["state"] == "cancelled":
            raise PlanCancelled(f"plan {self.plan_id}: {said.get('error', 'cancelled')}", plan_id=self.plan_id)
        if message["state"] == "failed":
            details = {key: value for key, value in said.items() if key != "error"}
            raise PlanFailed(said["error"], plan_id=self.plan_id, **details)
        store = self._session.store
        return RunResult(
            plan_id=self.plan_id,
            output=resolve(store, said["output"]),
            states={node: resolve(store, state) for node, state in said["states"].items()},
            duration=timedelta(milliseconds=said["duration_ms"]),
            worker_id=said["worker_id"],
            attempts=said["attempts"],
            _source=self._source,
        )


def _said(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan's end says beside its state."""
    said = message["result"]
    return dict(unpack(said) if isinstance(said, bytes) else said)
