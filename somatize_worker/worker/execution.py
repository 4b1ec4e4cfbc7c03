"""Supervising one claimed plan: a host runs it, this side relays, limits, and writes how it ended.

Only references and small values pass here; a plan's data goes between its host and the store.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from redis.exceptions import RedisError

from somatize_worker import protocol
from somatize_worker.errors import (
    EnvironmentFailed,
    HostDied,
    HostNotReady,
    MissingData,
    PlanCancelled,
    ServerUnreachable,
    StoreError,
    Unrepresentable,
)
from somatize_worker.hosts import WAKE, Host
from somatize_worker.ledger import Outcome, Retry, after_death, after_failure, failed_event, patiently
from somatize_worker.packing import Reference, unpack
from somatize_worker.stores import resolve
from somatize_worker.submission import owned
from somatize_worker.worker import ending, lending, needs
from somatize_worker.worker.adoption import Adoption
from somatize_worker.worker.children import child_id, child_plans
from somatize_worker.worker.publisher import Publisher
from somatize_worker.worker.running import End, Interruption, Running
from somatize_worker.worker.tools import Tools

log = logging.getLogger("somatize.worker")

_TICK_S = 0.25
_GOES_ON = End("leased", "parts of it run elsewhere, and others here")
_RUN_FAILED = '"event_type":"RunFailed"'
_TOLD_OF_A_FAILURE = ("error_type", "node_id", "traceback")


class Deadline(Exception):
    """The plan's time is over."""


class PlanSupervision:
    """One run of one plan, on the thread of the Celery task that claimed it."""

    def __init__(self, tools: Tools, running: Running) -> None:
        self._tools = tools
        self._running = running
        self._claim = running.claim
        self._publisher = Publisher(tools.ledger, self._claim, tools.worker_id)
        self._files = Adoption(tools.store)
        self._started = time.monotonic() - self._claim.elapsed_ms / 1000
        self._deadline = time.monotonic() + self._claim.remaining_ms / 1000 if self._claim.timeout_ms else None

    @cached_property
    def _spec(self) -> dict[str, Any]:
        return dict(unpack(self._claim.spec))

    def run(self) -> End | None:
        """Run to the end, or to the point where this worker has no more part in it (None)."""
        try:
            return self._run()
        except (RedisError, ServerUnreachable):
            raise  # nobody can be told anything: the lease runs out, and another worker takes over
        except Exception as error:  # a store that fails, a defect: whoever waits must hear of it now
            log.exception("plan %s could not be run to its end", self._claim.plan_id)
            return self._finish(ending.failed_by_worker(error, **self._about()))

    def _run(self) -> End | None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return self._finish(self._out_of_time())
        with self._tools.gpus.lend() as gpus:
            while (end := self._run_on(gpus)) is _GOES_ON:
                pass
        return end

    def _run_on(self, gpus: list[int] | None) -> End | None:
        try:
            host = self._acquire(gpus)
        except (EnvironmentFailed, HostNotReady, PlanCancelled) as error:
            if self._running.interruption is not None:
                return self._interrupted(self._running.interruption)
            return self._finish(ending.failed_by(error, **self._about()))
        reuse = False
        try:
            with self._running.stopping_with(host.wake):
                last = self._converse(host)
            reuse = bool(last[1].get("clean"))
        except HostDied as death:
            self._publisher.add(output=host.take_output(final=True))
            return self._after_death(death)
        except Deadline:
            certificate = host.kill("deadline")
            self._publisher.add(output=host.take_output(final=True))
            return self._finish(self._out_of_time(certificate))
        finally:
            self._tools.hosts.release(host, reuse=reuse)
        return self._after(last)

    # ── the conversation with the host ───────────────────────────────────────────────────────────────────────────

    def _acquire(self, gpus: list[int] | None) -> Host:
        requirements = needs.requirements(self._spec) if self._claim.requirements else ()
        with self._tools.environments.python_for(
            requirements, base=True, cancelled=lambda: self._running.interruption is not None
        ) as environment:
            return self._tools.hosts.acquire(self._claim.code, environment.python, lending.environment(gpus))

    def _converse(self, host: Host) -> tuple[str, dict[str, Any]]:
        """Send the plan, relay until the host has the last word; raises when host or time ends first."""
        claim, settings = self._claim, self._tools.settings
        host.send(
            [
                "run",
                {
                    "plan_id": claim.plan_id,
                    "epoch": claim.epoch,
                    "spec": claim.spec,
                    "journal": claim.journal,
                    "running": claim.running,
                    "store": str(self._tools.store.workspace()),
                    "inline_limit": settings.inline_limit_bytes,
                    "worker_id": self._tools.worker_id,
                    "cores": self._tools.cores,
                    "first": claim.seq == 0,
                    "elapsed_ms": int((time.monotonic() - self._started) * 1000),
                    "note": host.note,
                },
            ]
        )
        while True:
            frame = host.receive(self._patience())
            if frame is None or frame is WAKE:
                self._look_around(host)
                continue
            kind, *rest = frame
            if kind in ("done", "failed", "suspended"):
                self._publisher.add(output=host.take_output(final=True))
                return kind, rest[0]
            self._relay(host, kind, rest)

    def _relay(self, host: Host, kind: str, rest: list[Any]) -> None:
        if kind == "events":
            self._publisher.add(events=rest[0])
        elif kind == "journal":
            self._publisher.add(journal={path: self._files.adopt_packed(entry) for path, entry in rest[0].items()})
        elif kind == "node":
            self._publisher.node = host.node = rest[0]
        elif kind == "ask":
            number, what, payload = rest
            host.send(["answer", number, self._answer(what, payload)])
            return
        self._look_around(host)

    def _look_around(self, host: Host) -> None:
        """What is due between two frames: interruptions, the deadline, output and events to pass on."""
        if self._running.interruption is not None:
            host.kill(self._running.interruption.value)
        elif self._deadline is not None and time.monotonic() >= self._deadline:
            raise Deadline
        self._publisher.add(output=host.take_output())
        if not self._publisher.flush():
            self._running.interrupt(Interruption.LOST)
            host.kill(Interruption.LOST.value)

    def _patience(self) -> float:
        if self._deadline is None:
            return _TICK_S
        return float(max(0.0, min(_TICK_S, self._deadline - time.monotonic())))

    def _answer(self, what: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        store = self._tools.store
        try:
            if what == "fetch":
                return {"path": str(store.fetch(payload["reference"], store.workspace()))}
            if what == "find":
                return {"reference": store.find(payload["key"])}
            if what == "keep":
                return {"reference": self._keep(payload)}
        except (MissingData, StoreError) as error:
            return {"missing": error.message}
        return {"missing": f"this worker does not know the question {what!r}"}

    def _keep(self, payload: Mapping[str, Any]) -> Reference:
        if "reference" in payload:
            return self._files.keep(payload["reference"], payload["key"])
        return self._tools.store.put(payload["value"], key=payload["key"])

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _after(self, last: tuple[str, dict[str, Any]]) -> End | None:
        kind, said = last
        events = said.pop("events", [])
        if kind == "failed":
            events = [event for event in events if _RUN_FAILED not in event]  # told when it is final: see _finish
        self._publisher.add(events=events)
        if kind == "done":
            return self._finish(ending.succeeded(self._result(said)), said=said, garbage=said.get("garbage", ()))
        if kind == "suspended":
            return self._suspend(said)
        decision = after_failure(self._claim, said.get("error_mro", ()), error=said["error"])
        if isinstance(decision, Retry) and self._has_time_for(decision):
            return self._hand_back(said["error"], count_attempt=True, delay_ms=decision.delay_ms)
        told = {key: said[key] for key in _TOLD_OF_A_FAILURE if said.get(key)}
        details = {**(said.get("details") or {}), **told, **self._about()}
        details.pop("error", None)
        return self._finish(ending.failed(said["error"], **details), garbage=said.get("garbage", ()))

    def _after_death(self, death: HostDied) -> End | None:
        if self._running.interruption is not None:
            return self._interrupted(self._running.interruption)
        decision = after_death(self._claim)
        if isinstance(decision, Retry) and self._has_time_for(decision):
            return self._hand_back(death.message, count_attempt=True, delay_ms=decision.delay_ms)
        return self._finish(
            ending.failed(
                death.message,
                error_type="somatize_worker.errors.HostDied",
                node_id=death.details.get("node"),
                certificate=death.details,
                **self._about(),
            )
        )

    def _has_time_for(self, retry: Retry) -> bool:
        """Whether another attempt would start before the deadline."""
        return self._deadline is None or time.monotonic() + retry.delay_ms / 1000 < self._deadline

    def _interrupted(self, why: Interruption) -> End | None:
        if why is Interruption.LOST:
            return None
        if why is Interruption.HAND_BACK:
            return self._hand_back(why.value, count_attempt=False)
        return self._finish(ending.cancelled(self._tools.ledger, self._running))

    def _result(self, said: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "output": self._files.adopt(said["output"]),
            "states": self._files.adopt(said["states"]),
            **({"names": said["names"]} if said.get("names") else {}),
            **({"own": self._files.adopt(said["own"])} if said.get("own") else {}),
            "duration_ms": said["duration_ms"],
            **self._about(),
        }

    def _about(self) -> dict[str, Any]:
        return {"worker_id": self._tools.worker_id, "attempts": self._claim.attempts + 1}

    def _out_of_time(self, certificate: Mapping[str, Any] | None = None) -> Outcome:
        limit = self._claim.timeout_ms / 1000
        return ending.failed(
            f"the plan was not done after its {limit:g} s (timeout=, or SOMA_PLAN_TIMEOUT_S)",
            error_type="builtins.TimeoutError",
            node_id=(certificate or {}).get("node"),
            certificate=certificate,
            **self._about(),
        )

    def _finish(
        self, outcome: Outcome, said: Mapping[str, Any] | None = None, garbage: Sequence[Reference] = ()
    ) -> End | None:
        if outcome.state == "succeeded" and said is not None:
            text = ending.success_text(said["output"], said["duration_ms"], self._tools.worker_id)
        else:
            text = str(unpack(outcome.result)["error"])
        if self._running.interruption is Interruption.LOST:
            return None
        if outcome.state != "succeeded" and self._claim.root == self._claim.plan_id:
            self._publisher.add_message(failed_event(self._claim.plan_id, text, self._tools.worker_id))
        end, wakes = ending.deliver(
            self._tools.ledger,
            self._claim,
            self._publisher,
            outcome,
            text=text,
            celery_result=self._celery_result(outcome, text),
        )
        self._tools.send(wakes)
        if end is not None:
            self._files.discard(garbage if outcome.state == "succeeded" else {*garbage, *owned(self._claim.spec)})
        return end

    def _celery_result(self, outcome: Outcome, text: str) -> str:
        """For a message from another Celery program the whole protocol message, else one line."""
        if not self._came_as_a_message():
            return json.dumps(text)
        result = unpack(outcome.result)
        if "states" in result:
            result["states"] = resolve(self._tools.store, result["states"])
        try:
            message = protocol.plan_result_message(self._claim.plan_id, outcome.state, result)
            return protocol.to_json(message).decode()
        except Unrepresentable:  # JSON has no NaN, and not every dtype: then the output travels as a reference
            result["output"] = self._tools.store.put(result["output"])
            message = protocol.plan_result_message(self._claim.plan_id, outcome.state, result)
            return protocol.to_json(message).decode()

    def _came_as_a_message(self) -> bool:
        if b"wire" not in self._claim.spec:  # which spares reading a large spec for this alone
            return False
        return bool((self._spec["metadata"].get("soma") or {}).get("wire"))

    def _suspend(self, said: Mapping[str, Any]) -> End | None:
        self._publisher.settle()
        events, output = self._publisher.take()
        known = [child["path"] for child in said["children"] if "plan" not in child]
        new = [self._files.adopt(child) for child in said["children"] if "plan" in child]
        children = child_plans(self._claim, self._spec, new)
        journal = {path: self._files.adopt_packed(entry) for path, entry in said["journal"].items()}
        suspended = patiently(
            lambda: self._tools.ledger.suspend(
                self._claim.plan_id,
                self._claim.epoch,
                children,
                running=[child_id(self._claim.plan_id, path) for path in known],
                events=events,
                journal=journal,
                output=output,
                stay=said["goes_on"],
            )
        )
        self._tools.send(suspended.wake)
        if not (said["goes_on"] and suspended.accepted):
            return None
        self._claim = replace(
            self._claim,
            journal={**self._claim.journal, **journal},
            running=[*self._claim.running, *(child.path for child in children)],
            seq=max(self._claim.seq, 1),
        )
        return _GOES_ON

    def _hand_back(self, why: str, *, count_attempt: bool, delay_ms: int = 0) -> End | None:
        self._publisher.settle()
        wakes = patiently(
            lambda: self._tools.ledger.release(
                self._claim.plan_id, self._claim.epoch, why=why, count_attempt=count_attempt, delay_ms=delay_ms
            )
        )
        self._tools.send(wakes)
        self._tools.wake_after(self._claim, delay_ms)
        return None
