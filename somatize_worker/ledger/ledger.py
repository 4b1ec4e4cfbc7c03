"""The truth about plans: every change of a plan's state, each one script and one round trip."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import redis

from somatize_worker.errors import PlanConflict
from somatize_worker.ledger import celery_results, scripts
from somatize_worker.ledger.reading import Reader, pairs
from somatize_worker.ledger.records import (
    Cancelled,
    Claim,
    Finished,
    Holding,
    Outcome,
    Submission,
    Submitted,
    Suspended,
    Wake,
    decode_retry,
    decode_wakes,
)
from somatize_worker.ledger.registry import Registry
from somatize_worker.packing import pack
from somatize_worker.settings import Settings

Text = str | bytes
_BATCH: Final = 1000
_PARENT_ENDED: Final = "the plan that it is part of ended"


class Ledger(Reader, Registry):
    """Plan records in Redis or Valkey. Safe to share between threads.

    Every call may be sent twice (redis-py does so when a connection breaks): scripts that are not idempotent by nature
    recognise the repetition, by the nonce that a call makes for itself or by the content. A caller that repeats a
    ``report`` or a ``claim`` of its own passes the same ``nonce``. An outage raises ServerUnreachable.

    An epoch that is not the record's current one, or a plan that is not leased, is refused everywhere.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        super().__init__(client)
        self.settings = settings
        self._lease_ms = round(settings.lease_s * 1000)
        self._ttl_ms = round(settings.result_ttl_s * 1000)
        self._events_kept = settings.event_log_limit
        self._output_kept = settings.log_limit_bytes
        self._submit = scripts.load("submit")
        self._claim = scripts.load("claim")
        self._report = scripts.load("report")
        self._finish = scripts.load("finish")

    def submit(self, submission: Submission, *, wake_up: tuple[str, bytes] | None = None) -> Submitted:
        """Record a plan, once. With ``wake_up``, a Redis list and a message, that message is put on the list (at its
        left end) if the plan is new; without, the caller sees to it that a new plan is woken.

        The same id with the same digest again is the same plan; new aliases and a new reply channel are added to it. A
        plan that was cancelled before it was seen stays cancelled.

        Raises:
            PlanConflict: the id is taken by other content.
        """
        arguments: list[Any] = [
            submission.plan_id,
            os.urandom(8),
            submission.digest,
            submission.reply,
            "\n".join(submission.aliases),
            *(wake_up or ("", "")),
        ]
        arguments += _fields(submission)
        what, state = self.run(self._submit, arguments)
        if what == b"conflict":
            raise _conflict(submission.plan_id)
        return Submitted(what == b"created", state.decode())

    def claim(
        self, plan_id: str, worker_id: str, *, events: Sequence[Text] = (), nonce: bytes | None = None
    ) -> Claim | None:
        """Take the lease of a plan. None when it is not to be run now: not queued, not due yet, or over.

        ``events`` (JSON objects) are logged and published if the lease is taken.
        """
        arguments = [plan_id, worker_id, nonce or os.urandom(8), self._lease_ms, self._events_kept, *events]
        return self._claimed(plan_id, self.run(self._claim, arguments))

    def claim_soon(self, plan_id: str, worker_id: str) -> Callable[[], Claim | None]:
        """As :meth:`claim`, in two steps: it is on its way when this returns, and what is returned waits for it.

        That may be called on another thread, and again if it raises.
        """
        arguments = [plan_id, worker_id, os.urandom(8), self._lease_ms, self._events_kept]
        reply = self.begin(self._claim, arguments)
        return lambda: self._claimed(plan_id, reply())

    def _claimed(self, plan_id: str, answer: list[Any] | None) -> Claim | None:
        if answer is None:
            return None
        epoch, values, journal, remaining_ms, running, elapsed_ms = answer
        (kind, attempts, deaths, spec, code, requirements, root) = values[:7]
        (path, timeout_ms, max_attempts, queue, priority, summary, retry, seq) = values[7:]
        return Claim(
            plan_id=plan_id,
            kind=kind.decode(),
            epoch=epoch,
            attempts=int(attempts or 0),
            deaths=int(deaths or 0),
            spec=spec,
            code=_text(code),
            requirements=tuple(_text(requirements).splitlines()),
            root=_text(root) or plan_id,
            path=_text(path),
            timeout_ms=int(timeout_ms or 0),
            remaining_ms=int(remaining_ms),
            max_attempts=int(max_attempts),
            queue=queue.decode(),
            priority=int(priority),
            summary=_text(summary),
            journal={path.decode(): packed for path, packed in pairs(journal).items()},
            retry=decode_retry(retry),
            seq=int(seq or 0),
            running=[child.decode() for child in running],
            elapsed_ms=int(elapsed_ms),
        )

    def renew(self, worker_id: str, holds: Sequence[tuple[str, int]]) -> dict[str, Holding]:
        """Renew all leases (plan id, epoch) of a worker: each is held, held but to be stopped, or lost."""
        if not holds:
            return {}
        flat = [value for hold in holds for value in hold]
        answers = self.run(scripts.load("renew"), [self._lease_ms, *flat])
        return {plan_id: answer.decode() for (plan_id, _), answer in zip(holds, answers, strict=True)}

    def report(
        self,
        plan_id: str,
        root: str,
        epoch: int,
        *,
        events: Sequence[Text] = (),
        journal: Mapping[str, bytes] | None = None,
        output: Sequence[Text] = (),
        node: str = "",
        nonce: bytes | None = None,
    ) -> bool:
        """What a running plan tells: events, journal entries, printed lines, the node it is at. False: lease over."""
        entries = _flat(journal)
        arguments: list[Any] = [plan_id, root, epoch, nonce or os.urandom(8), node]
        arguments += (self._events_kept, self._output_kept, len(events), len(entries) // 2)
        arguments += (*events, *entries, *output)
        return bool(self.run(self._report, arguments))

    def finish(
        self,
        plan_id: str,
        epoch: int,
        outcome: Outcome,
        *,
        events: Sequence[Text] = (),
        output: Sequence[Text] = (),
        cause: str = "",
        node: str = "",
        celery_meta: Text = "",
        worker_died: bool = False,
        lease_seen: int | None = None,
    ) -> Finished:
        """End a plan: record, events, watchers, Celery's result entry, the parent's journal; a parent with nothing
        left to wait for is queued and returned to be woken. Children that are unfinished are cancelled.

        ``celery_meta`` is from :mod:`~somatize_worker.ledger.celery_results`; empty writes no entry. ``cause`` says in
        a line why it ended. ``lease_seen`` refuses if the lease was renewed since (for the sweeper).
        """
        arguments: list[Any] = [plan_id, epoch, outcome.state, outcome.result, cause, node, celery_meta]
        arguments += (self._ttl_ms, self._events_kept, self._output_kept, "1" if worker_died else "")
        arguments += ("" if lease_seen is None else lease_seen, len(events), *events, *output)
        answer = self.run(self._finish, arguments)
        if not answer[0]:
            return Finished(False)
        wakes = decode_wakes(answer[2])
        if answer[1]:
            wakes += self.cascade().wake
        return Finished(True, wakes)

    def suspend(
        self,
        plan_id: str,
        epoch: int,
        children: Sequence[Submission],
        *,
        running: Sequence[str] = (),
        events: Sequence[Text] = (),
        journal: Mapping[str, bytes] | None = None,
        output: Sequence[Text] = (),
        stay: bool = False,
    ) -> Suspended:
        """Give the lease back until child plans have ended; creates those that do not exist.

        ``running`` has the ids of children that exist already. ``stay``: the lease is kept, because there is work
        to do beside the children.

        A child's end is in the parent's journal under the child's ``path``, packed: ``{"state": .., **result}``.
        ``parent`` and ``root`` of the submissions are filled in here. A plan that is being cancelled is ended as
        cancelled and not accepted.

        Raises:
            PlanConflict: a child's id is taken by other content; nothing was changed.
        """
        entries = _flat(journal)
        arguments: list[Any] = [plan_id, epoch, self._events_kept, self._output_kept]
        arguments += (len(events), len(entries) // 2, len(output), "1" if stay else "", *events, *entries, *output)
        for child_id in running:
            arguments += (child_id, "", "", 0)
        for child in children:
            fields = _fields(child)
            arguments += (child.plan_id, child.digest, child.path or child.plan_id, len(fields), *fields)
        what, *more = self.run(scripts.load("suspend"), arguments)
        if what == b"conflict":
            raise _conflict(more[0].decode())
        if what == b"cancel":
            return Suspended(False, self._end_cancelled(plan_id, epoch, *more))
        return Suspended(what == b"ok", decode_wakes(more[0]) if more else [])

    def release(
        self,
        plan_id: str,
        epoch: int,
        *,
        why: str,
        count_attempt: bool,
        delay_ms: int = 0,
        worker_died: bool = False,
        lease_seen: int | None = None,
    ) -> list[Wake]:
        """Hand a plan back to be run again; the sweeper wakes it when a delay is over. Nothing if the lease was over.

        ``count_attempt`` is false for a hand-back that is not the plan's fault (a worker that shuts down). A plan that
        is being cancelled is ended as cancelled instead.
        """
        arguments: list[Any] = [plan_id, epoch, why, "1" if count_attempt else "", delay_ms]
        arguments += ("1" if worker_died else "", "" if lease_seen is None else lease_seen)
        what, *more = self.run(scripts.load("release"), arguments)
        if what == b"cancel":
            return self._end_cancelled(plan_id, epoch, *more)
        return decode_wakes(more[0]) if more else []

    def cancel(self, plan_id: str, reason: str, *, unseen_queue: str = "") -> Cancelled:
        """Cancel a plan and all plans below it.

        What is queued or waiting ends at once; workers that hold a lease are told on their control channel, and again
        by their next renewal. An unknown id is remembered as cancelled, for as long as a finished record is.
        """
        arguments: list[Any] = [plan_id, reason, *self._cancellation(reason), unseen_queue, self._events_kept]
        arguments.append(failed_event(plan_id, f"cancelled: {reason}"))
        before, more, holders, cancelled, wakes = self.run(scripts.load("cancel"), arguments)
        result = _cancelled(before.decode(), holders, cancelled, wakes)
        if more:
            rest = self.cascade(reason)
            result.holders.extend(rest.holders)
            result.cancelled.extend(rest.cancelled)
            result.wake.extend(rest.wake)
        return result

    def cascade(self, reason: str = _PARENT_ENDED) -> Cancelled:
        """Cancel what is unfinished below plans that have ended (``state_before`` is empty).

        Called wherever such plans arise, and by the sweeper for a caller that died before it could.
        """
        total = _cancelled("", [], [], [])
        while True:
            arguments = [reason, *self._cancellation(reason)]
            more, holders, cancelled, wakes = self.run(scripts.load("cascade"), arguments)
            step = _cancelled("", holders, cancelled, wakes)
            total.holders.extend(step.holders)
            total.cancelled.extend(step.cancelled)
            total.wake.extend(step.wake)
            if not more:
                return total

    def _cancellation(self, reason: str) -> list[Any]:
        return [cancelled_result(reason), celery_results.revoked(reason), self._ttl_ms, _BATCH]

    def _end_cancelled(self, plan_id: str, epoch: int, reason: bytes, logged: int) -> list[Wake]:
        cause = reason.decode()
        return self.finish(
            plan_id,
            epoch,
            Outcome("cancelled", cancelled_result(cause)),
            events=[failed_event(plan_id, f"cancelled: {cause}")] if logged else (),
            cause=cause,
            celery_meta=celery_results.revoked(cause),
        ).wake


def cancelled_result(reason: str) -> bytes:
    """The packed result of a cancelled plan."""
    return pack({"error": reason, "error_type": "somatize_worker.errors.PlanCancelled"})


def failed_event(plan_id: str, error: str, worker_id: str = "") -> str:
    """The protocol's RunFailed event, for a plan that ends without its worker."""
    event = {"event_type": "RunFailed", "run_id": plan_id, "error": error}
    message = {"type": "Event", "worker_id": worker_id, "plan_id": plan_id, "event": event}
    return json.dumps(message, separators=(",", ":"))


def _fields(submission: Submission) -> list[Any]:
    """The fields of a new record, name after value; what is empty is left out."""
    fields: list[Any] = ["kind", submission.kind, "spec", submission.spec, "queue", submission.queue]
    fields += ("priority", submission.priority, "max_attempts", submission.max_attempts)
    if submission.summary:
        fields += ("summary", submission.summary)
    if submission.code:
        fields += ("code", submission.code)
    if submission.requirements:
        fields += ("requirements", "\n".join(submission.requirements))
    if submission.timeout_ms:
        fields += ("timeout_ms", submission.timeout_ms)
    if submission.retry:
        fields += ("retry", pack(dict(submission.retry)))
    return fields


def _flat(journal: Mapping[str, bytes] | None) -> list[Any]:
    return [part for entry in journal.items() for part in entry] if journal else []


def _text(value: bytes | None) -> str:
    return value.decode() if value else ""


def _cancelled(before: str, holders: list[bytes], cancelled: Iterable[bytes], wakes: list[bytes]) -> Cancelled:
    return Cancelled(
        before,
        [(holders[i].decode(), holders[i + 1].decode()) for i in range(0, len(holders), 2)],
        [plan_id.decode() for plan_id in cancelled],
        decode_wakes(wakes),
    )


def _conflict(plan_id: str) -> PlanConflict:
    return PlanConflict(
        f"the plan id {plan_id!r} is taken by a plan with other content; choose another id, "
        "or submit the very same plan to share its result",
        plan_id=plan_id,
    )
