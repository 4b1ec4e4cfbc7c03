"""One attempt at a job: environment, files, process, results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from somatize_worker.errors import HostNotReady, InvalidSettings, PlanCancelled, SomaError, StoreError
from somatize_worker.hosts.certificate import describe
from somatize_worker.hosts.environments import Environment, Environments
from somatize_worker.hosts.inside import job as inside
from somatize_worker.hosts.nursery import Nursery
from somatize_worker.hosts.process import Child
from somatize_worker.jobs.bell import Bell
from somatize_worker.jobs.collecting import Collected, collect
from somatize_worker.jobs.launch import Circumstances, Cores, launch, write_files
from somatize_worker.jobs.outcome import JobOutcome
from somatize_worker.jobs.printed import Live, Reader, Step, Transcript, parse_object
from somatize_worker.jobs.reports import ReportPipe
from somatize_worker.jobs.scratch import Scratch, root_folder
from somatize_worker.jobs.validation import CheckedJob
from somatize_worker.ports import DataStore
from somatize_worker.settings import Settings

PHASES: Final = ("environment", "write_files", "execute", "collect_results")
CANCELLED: Final = "cancelled"
DEADLINE: Final = "deadline"

_TICK_S: Final = 0.05
_RESULT_LIMIT_BYTES: Final = 64 << 20
_TEXT_LIMITS: Final = {"error": 10_000, "error_type": 1_000, "traceback": 200_000}


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What every attempt on a worker uses."""

    settings: Settings
    store: DataStore
    environments: Environments
    nursery: Nursery
    cores: Cores
    worker_id: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the caller of one attempt wants. The callbacks are called on its own thread and must not raise."""

    attempt: int
    checkpoint_folder: Path
    on_progress: Callable[[str, int, int, Any], None]
    on_output: Callable[[list[str]], None]
    cancelled: Callable[[], bool]
    deadline_s: float | None
    gpus: Sequence[int] | None


class Attempt:
    """Used once: :meth:`run`."""

    def __init__(self, tools: Tools, job: CheckedJob, request: Request) -> None:
        self._tools = tools
        self._job = job
        self._request = request
        self._started = time.monotonic()
        self._stopped_for = ""
        self._transcript = Transcript(tools.settings.job_output_limit_bytes)
        self._live = Live(request.on_output, time.monotonic)
        self._reader = Reader(self._on_step, time.monotonic)

    def run(self) -> JobOutcome:
        """Everything, start to end.

        Raises:
            EnvironmentFailed: the environment could not be built.
        """
        try:
            self._phase("environment")
            with self._environment() as environment, self._scratch() as scratch:
                self._phase("write_files")
                write_files(self._job, scratch)
                self._make_checkpoint_folder()
                self._phase("execute")
                certificate = self._execute(environment, scratch)
                if self._stopped_for == CANCELLED:
                    return self._stopped(certificate)
                self._phase("collect_results")
                return self._ended(certificate, scratch)
        except PlanCancelled:
            return self._stopped(None)
        except (HostNotReady, StoreError, InvalidSettings) as error:
            return self._failed_by(error)
        except OSError as error:
            return self._failed_by(
                StoreError(f"the job's files cannot be written: {error}; SOMA_JOB_FOLDER names another folder for them")
            )

    # ── phases ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _phase(self, name: str, metrics: Any = None) -> None:
        self._request.on_progress(name, PHASES.index(name) + 1, len(PHASES), metrics or {})

    def _environment(self) -> Environment:
        return self._tools.environments.python_for(
            self._job.requirements,
            lambda line: self._phase("environment", {"message": line}),
            cancelled=self._should_stop,
        )

    def _scratch(self) -> Scratch:
        return Scratch(root_folder(self._tools.settings), self._job.job_id)

    def _make_checkpoint_folder(self) -> None:
        folder = self._request.checkpoint_folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(folder)  # an attempt that only reads is a use too

    def _execute(self, environment: Environment, scratch: Scratch) -> dict[str, Any]:
        """Run the process until it or its time ends; afterwards nothing of it is left. Returns its certificate."""
        tools, request = self._tools, self._request
        with ReportPipe(scratch.control / "reports") as pipe, tools.cores.share() as cores:
            circumstances = Circumstances(
                worker_id=tools.worker_id,
                attempt=request.attempt,
                checkpoint_folder=request.checkpoint_folder,
                gpus=request.gpus,
                cores=cores,
                report_pipe=pipe.path,
            )
            child = tools.nursery.start(launch(self._job, scratch, environment, circumstances, tools.settings))
            try:
                with Bell(child, pipe) as bell:
                    while not child.exited():
                        bell.wait(_TICK_S)
                        self._look(child, pipe)
                        if self._should_stop():
                            child.kill(self._stopped_for)
                certificate = child.kill()
                self._look(child, pipe, final=True)
                self._reader.end()
                self._live.end()
                return certificate
            finally:
                child.close()

    def _look(self, child: Child, pipe: ReportPipe, *, final: bool = False) -> None:
        """Take what was printed and reported since the last look."""
        lines = child.take_output(final=final)
        self._reader.read(lines)
        for step in pipe.take():
            self._reader.report(step)
        self._reader.tick()
        self._print([line.text for line in lines])

    def _print(self, lines: list[str]) -> None:
        for line in lines:
            self._transcript.add(line)
        self._live.add(lines)

    def _on_step(self, step: Step) -> None:
        self._request.on_progress("execute", step.step, step.total, step.metrics)

    def _should_stop(self) -> bool:
        if not self._stopped_for:
            if self._request.cancelled():
                self._stopped_for = CANCELLED
            elif self._request.deadline_s is not None and self._elapsed_s() >= self._request.deadline_s:
                self._stopped_for = DEADLINE
        return bool(self._stopped_for)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started

    # ── outcomes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _ended(self, certificate: dict[str, Any], scratch: Scratch) -> JobOutcome:
        """The outcome of a process that ended, with what it left under ``outputs/``."""
        result = _read_result(scratch.control / inside.RESULT)
        failure = self._failure(certificate, result)
        try:
            collected = collect(scratch.outputs, self._tools.store, self._tools.settings)
        except StoreError as error:
            if not failure:
                return self._failed_by(error, exit_code=certificate.get("exit_code"))
            collected = Collected(notes=[f"outputs/ was not collected: {error.message}"])
        self._print([f"somatize: {note}" for note in collected.notes])
        value = (result or {}).get("value")
        return self._outcome(
            success=not failure,
            metrics=self._reader.metrics if value is None else value,
            outputs=collected.files,
            exit_code=certificate.get("exit_code"),
            **failure,
        )

    def _failure(self, certificate: dict[str, Any], result: dict[str, Any] | None) -> dict[str, Any]:
        """The outcome's fields that tell of a failure; empty for a success."""
        if certificate["reason"] == DEADLINE:
            return {**self._out_of_time(), "certificate": certificate}
        if certificate.get("exit_code") == 0 and (result is None or result["ok"]):
            return {}
        if result is not None and not result["ok"] and "exit_code" in certificate:
            return _told_of_failure(result)
        return {
            "error": f"the job's process did not end well: {describe(certificate)}",
            "error_type": "somatize_worker.errors.HostDied",
            "certificate": certificate,
        }

    def _stopped(self, certificate: dict[str, Any] | None) -> JobOutcome:
        if self._stopped_for == DEADLINE:
            return self._outcome(success=False, certificate=certificate, **self._out_of_time())
        return self._outcome(
            success=False,
            cancelled=True,
            error="the job was cancelled",
            error_type="somatize_worker.errors.PlanCancelled",
            certificate=certificate,
        )

    def _out_of_time(self) -> dict[str, Any]:
        limit = f"{self._request.deadline_s:.3g} s"
        return {
            "error": f"the job was not done after its {limit} (its timeout, or SOMA_JOB_TIMEOUT_S)",
            "error_type": "builtins.TimeoutError",
            "out_of_time": True,
        }

    def _failed_by(self, error: SomaError, **more: Any) -> JobOutcome:
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        return self._outcome(success=False, error=error.message, error_type=kind, **more)

    def _outcome(self, **fields: Any) -> JobOutcome:
        fields.setdefault("metrics", self._reader.metrics)
        return JobOutcome(output=self._transcript.text(), duration_ms=round(self._elapsed_s() * 1000), **fields)


def _read_result(path: Path) -> dict[str, Any] | None:
    """What the process said about its end. The job could have written there too, so anything may be in it."""
    try:
        if path.stat().st_size > _RESULT_LIMIT_BYTES:
            return None
        result = parse_object(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return result if result is not None and isinstance(result.get("ok"), bool) else None


def _told_of_failure(result: dict[str, Any]) -> dict[str, Any]:
    """What the process said about an exception, as an outcome's fields."""
    told: dict[str, Any] = {
        name: _shortened(str(result[name]), limit) for name, limit in _TEXT_LIMITS.items() if name in result
    }
    bases = result.get("error_mro")
    if isinstance(bases, list):
        told["error_mro"] = tuple(str(name) for name in bases)
    return told


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n[… {len(text) - limit} characters left out …]\n{text[-limit // 2 :]}"
