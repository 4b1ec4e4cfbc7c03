"""Supervising one claimed Python job: its process runs in an environment of its own, this side relays and limits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from somatize_worker import protocol
from somatize_worker.errors import EnvironmentFailed, InvalidJob, PlanCancelled, ServerUnreachable
from somatize_worker.jobs import JobOutcome
from somatize_worker.ledger import Fail, Outcome, after_death, after_failure, patiently
from somatize_worker.packing import Reference, unpack
from somatize_worker.worker import ending
from somatize_worker.worker.publisher import Publisher
from somatize_worker.worker.running import End, Interruption, Running
from somatize_worker.worker.tools import Tools

log = logging.getLogger("somatize.worker")

_FLUSH_AT_MOST_EVERY_S = 0.02
_LOOK_EVERY_S = 0.25


@dataclass(frozen=True)
class _Again:
    """The job is to be run again, from its beginning, because of ``why``."""

    why: str
    delay_ms: int


class JobSupervision:
    """One attempt at one job, on the thread of the Celery task that claimed it."""

    def __init__(self, tools: Tools, running: Running) -> None:
        self._tools = tools
        self._running = running
        self._claim = running.claim
        self._publisher = Publisher(tools.ledger, self._claim, tools.worker_id)
        self._stop = threading.Event()
        self._news = threading.Event()
        self._over = threading.Event()

    def run(self) -> End | None:
        """Run to the end; None when there is none to tell: another worker has the job now, or it is to run again."""
        try:
            decision = self._decide(self._run())
        except (EnvironmentFailed, InvalidJob, PlanCancelled) as error:
            decision = ending.failed_by(error, **self._about())
        except (RedisError, ServerUnreachable):
            raise  # nobody can be told anything: the lease runs out, and another worker takes over
        except Exception as error:  # a store that fails, a defect: whoever waits must hear of it now
            log.exception("job %s could not be run to its end", self._claim.plan_id)
            decision = ending.failed_by_worker(error, **self._about())
        why = self._running.interruption
        if why is Interruption.LOST:
            return None
        if why is Interruption.HAND_BACK:
            self._hand_back(why.value, count_attempt=False)
            return None
        if why is Interruption.CANCEL:
            decision = ending.cancelled(self._tools.ledger, self._running)
        if isinstance(decision, _Again):
            self._hand_back(decision.why, count_attempt=True, delay_ms=decision.delay_ms)
            return None
        return self._finish(decision)

    def _run(self) -> JobOutcome:
        claim = self._claim
        if claim.timeout_ms and not claim.remaining_ms:
            return JobOutcome(success=False, error_type="builtins.TimeoutError", out_of_time=True)
        flusher = threading.Thread(target=self._flush, name=f"soma-job-{claim.plan_id[:8]}", daemon=True)
        flusher.start()
        try:
            with self._running.stopping_with(self._stop.set), self._tools.gpus.lend() as gpus:
                return self._tools.jobs.run(
                    self._job(),
                    attempt=claim.epoch,
                    on_progress=self._progress,
                    on_output=self._output,
                    cancelled=self._stop,
                    deadline_s=self._limit(claim.remaining_ms),
                    gpus=gpus,
                )
        finally:
            self._over.set()
            self._news.set()
            flusher.join()

    def _job(self) -> Any:
        spec = unpack(self._claim.spec)
        return unpack(self._tools.store.get(spec)) if isinstance(spec, Reference) else spec

    def _limit(self, own_ms: int) -> float | None:
        """Seconds that the job has: its own, within what this worker grants any job; None: no limit."""
        own = own_ms / 1000 if self._claim.timeout_ms else None
        granted = self._tools.settings.job_timeout_s or None
        return min((limit for limit in (own, granted) if limit is not None), default=None)

    # ── what the job reports ─────────────────────────────────────────────────────────────────────────────────────

    def _progress(self, phase: str, step: int, total: int, metrics: Any) -> None:
        message = protocol.JobProgress(
            worker_id=self._tools.worker_id,
            job_id=self._claim.plan_id,
            phase=phase,
            step=step,
            total=total,
            metrics=metrics,
        )
        self._publisher.add_message(protocol.to_json(message).decode())
        self._news.set()

    def _output(self, lines: Sequence[str]) -> None:
        self._publisher.add(output=lines)
        self._news.set()

    def _flush(self) -> None:
        """Send what there is as soon as it is there; after an outage, what could not be sent."""
        while not self._over.is_set():
            self._news.wait(_LOOK_EVERY_S)
            self._news.clear()
            if not self._publisher.flush():
                self._running.interrupt(Interruption.LOST)
                return
            self._over.wait(_FLUSH_AT_MOST_EVERY_S)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _decide(self, outcome: JobOutcome) -> Outcome | _Again:
        """What follows from how the attempt ended."""
        result: dict[str, Any] = {
            "metrics": outcome.metrics,
            "files": outcome.outputs,
            "exit_code": outcome.exit_code,
            "duration_ms": outcome.duration_ms,
            **self._about(),
        }
        if outcome.success:
            return ending.succeeded({"output": outcome.output, **result})
        error = outcome.error
        if outcome.out_of_time:
            limit = self._limit(self._claim.timeout_ms)
            error = f"the job was not done after its {limit:g} s (its timeout, or SOMA_JOB_TIMEOUT_S)"
        else:
            next_step = after_death(self._claim)
            if not outcome.certificate:
                next_step = after_failure(self._claim, outcome.error_mro, error=error)
            if not isinstance(next_step, Fail):
                return _Again(error, next_step.delay_ms)
        return ending.failed(
            error,
            error_type=outcome.error_type,
            traceback=outcome.traceback,
            certificate=outcome.certificate,
            printed=outcome.output,
            **result,
        )

    def _about(self) -> dict[str, Any]:
        return {"worker_id": self._tools.worker_id, "attempts": self._claim.epoch}

    def _finish(self, outcome: Outcome) -> End | None:
        result = unpack(outcome.result)
        message = protocol.job_result_message(self._claim.plan_id, outcome.state, result)
        if outcome.state == "succeeded":
            text = ending.success_text(result["metrics"], result["duration_ms"], self._tools.worker_id)
        else:
            text = str(result["error"])
        end, wakes = ending.deliver(
            self._tools.ledger,
            self._claim,
            self._publisher,
            outcome,
            text=text,
            celery_result=protocol.to_json(message).decode(),
        )
        self._tools.send(wakes)
        return end

    def _hand_back(self, why: str, *, count_attempt: bool, delay_ms: int = 0) -> None:
        self._publisher.settle()
        wakes = patiently(
            lambda: self._tools.ledger.release(
                self._claim.plan_id, self._claim.epoch, why=why, count_attempt=count_attempt, delay_ms=delay_ms
            )
        )
        self._tools.send(wakes)
        self._tools.wake_after(self._claim, delay_ms)
