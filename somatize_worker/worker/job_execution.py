"""Supervising one claimed Python job: its process runs in an environment of its own, this side relays and limits."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from somatize_worker import protocol
from somatize_worker.errors import EnvironmentFailed, InvalidJob, PlanCancelled
from somatize_worker.jobs import JobOutcome
from somatize_worker.ledger import Fail, after_death, patiently
from somatize_worker.packing import unpack
from somatize_worker.worker import ending
from somatize_worker.worker.publisher import Publisher
from somatize_worker.worker.running import End, Interruption, Running
from somatize_worker.worker.tools import Tools

_FLUSH_EVERY_S = 0.1


class JobSupervision:
    """One attempt at one job, on the thread of the Celery task that claimed it."""

    def __init__(self, tools: Tools, running: Running) -> None:
        self._tools = tools
        self._running = running
        self._claim = running.claim
        self._publisher = Publisher(tools.ledger, self._claim, tools.worker_id)
        self._stop = threading.Event()
        self._over = threading.Event()

    def run(self) -> End | None:
        """Run to the end; None when this attempt is no longer this worker's."""
        claim = self._claim
        flusher = threading.Thread(target=self._flush, name=f"soma-job-{claim.plan_id[:8]}", daemon=True)
        flusher.start()
        try:
            with self._running.stopping_with(self._stop.set), self._tools.gpus.lend() as gpus:
                outcome = self._tools.jobs.run(
                    unpack(claim.spec),
                    attempt=claim.attempts + 1,
                    on_progress=self._progress,
                    on_output=self._output,
                    cancelled=self._stop,
                    deadline_s=claim.remaining_ms / 1000 if claim.timeout_ms else None,
                    gpus=gpus,
                )
        except (EnvironmentFailed, InvalidJob, PlanCancelled) as error:
            if self._running.interruption is not None:
                return self._interrupted(self._running.interruption)
            return self._finish(ending.failed_by(error, **self._about()), error.message)
        finally:
            self._over.set()
            flusher.join()
        return self._after(outcome)

    def _after(self, outcome: JobOutcome) -> End | None:
        if self._running.interruption is not None:
            return self._interrupted(self._running.interruption)
        result = {
            "output": outcome.output,
            "states": {},
            "metrics": outcome.metrics,
            "files": outcome.outputs,
            "exit_code": outcome.exit_code,
            "duration_ms": outcome.duration_ms,
            **self._about(),
        }
        if outcome.success:
            text = f"job done in {outcome.duration_ms} ms on {self._tools.worker_id}"
            return self._finish(ending.succeeded(result), text)
        out_of_time = outcome.error_type == "builtins.TimeoutError"
        if outcome.certificate and not out_of_time and not isinstance(decision := after_death(self._claim), Fail):
            return self._hand_back(outcome.error, count_attempt=True, delay_ms=decision.delay_ms)
        result.pop("output")
        failed = ending.failed(
            outcome.error,
            error_type=outcome.error_type,
            traceback=outcome.traceback,
            certificate=outcome.certificate,
            printed=outcome.output,
            **result,
        )
        return self._finish(failed, outcome.error)

    def _interrupted(self, why: Interruption) -> End | None:
        if why is Interruption.LOST:
            return None
        if why is Interruption.HAND_BACK:
            return self._hand_back(why.value, count_attempt=False)
        return self._finish(ending.cancelled(self._tools.ledger, self._running), "cancelled")

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

    def _output(self, lines: Sequence[str]) -> None:
        self._publisher.add(output=lines)

    def _flush(self) -> None:
        while not self._over.wait(_FLUSH_EVERY_S):
            if not self._publisher.flush():
                self._running.interrupt(Interruption.LOST)
                return

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _about(self) -> dict[str, Any]:
        return {"worker_id": self._tools.worker_id, "attempts": self._claim.attempts + 1}

    def _finish(self, outcome: Any, text: str) -> End | None:
        result = unpack(outcome.result)
        message = protocol.job_result_message(self._claim.plan_id, outcome.state, result)
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

    def _hand_back(self, why: str, *, count_attempt: bool, delay_ms: int = 0) -> End | None:
        self._publisher.settle()
        wakes = patiently(
            lambda: self._tools.ledger.release(
                self._claim.plan_id, self._claim.epoch, why=why, count_attempt=count_attempt, delay_ms=delay_ms
            )
        )
        self._tools.send(wakes)
        return None
