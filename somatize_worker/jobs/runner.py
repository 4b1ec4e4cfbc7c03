"""Python jobs on one worker: what all attempts share, and running one."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from somatize_worker.errors import InvalidSettings
from somatize_worker.hosts.environments import Environments
from somatize_worker.hosts.nursery import Nursery
from somatize_worker.jobs import scratch
from somatize_worker.jobs.attempt import Attempt, Request, Tools
from somatize_worker.jobs.checkpoints import Checkpoints
from somatize_worker.jobs.launch import Cores
from somatize_worker.jobs.outcome import JobOutcome
from somatize_worker.jobs.validation import check_job
from somatize_worker.ports import DataStore
from somatize_worker.settings import Settings

log = logging.getLogger("somatize.jobs")

_SWEEP_EVERY_S: Final = 600.0


class Flag(Protocol):
    """``threading.Event``, as far as it is needed."""

    def is_set(self) -> bool:
        """Whether somebody set it."""
        ...


class JobRunner:
    """Runs jobs; any thread may call :meth:`run`, each call runs one attempt.

    Args:
        nursery: starts the processes; default: one of its own, made with the first job.
    """

    def __init__(
        self,
        settings: Settings,
        store: DataStore,
        worker_id: str,
        environments: Environments,
        nursery: Nursery | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._worker_id = worker_id
        self._environments = environments
        self._given_nursery = nursery
        self._checkpoints = Checkpoints(store.workspace(), settings.data_ttl_s)
        self._lock = threading.Lock()
        self._tools: Tools | None = None
        self._sweep_at = -math.inf

    def run(
        self,
        job: Any,
        *,
        attempt: int = 1,
        checkpoint_dir: Path | None = None,
        on_progress: Callable[[str, int, int, Any], None] = lambda *_: None,
        on_output: Callable[[list[str]], None] = lambda _: None,
        cancelled: Callable[[], bool] | Flag = lambda: False,
        deadline_s: float | None = None,
        gpus: Sequence[int] | None = None,
    ) -> JobOutcome:
        """One attempt at a job; blocks until it is over and nothing of it runs any more.

        Args:
            job: a ``PythonPipelineJob`` or its JSON form as a mapping.
            attempt: which one this is, from 1.
            checkpoint_dir: a folder that outlives the attempt; default: one beside the store's files, which goes when
                the job has succeeded.
            on_progress: takes (phase, step, total, metrics). The phases ``environment``, ``write_files``,
                ``execute`` and ``collect_results`` come as steps 1 to 4 of 4; the job's own steps within ``execute``.
            on_output: takes the lines printed since the last call, several times a second.
            cancelled: looked at many times a second; the job's processes are killed once it says so.
            deadline_s: from now, the environment's build included; None: none.
            gpus: numbers of the GPUs that the job may see (NVML's order); None: those that the worker sees.

        Raises:
            InvalidJob: the job is refused; nothing was started.
            EnvironmentFailed: its environment could not be built.
        """
        checked = check_job(job, self._settings)
        tools = self._prepared()
        self._sweep_now_and_then()
        request = Request(
            attempt=attempt,
            checkpoint_folder=checkpoint_dir or self._checkpoints.path(checked.job_id),
            on_progress=on_progress,
            on_output=on_output,
            cancelled=cancelled if callable(cancelled) else cancelled.is_set,
            deadline_s=deadline_s,
            gpus=gpus,
        )
        outcome = Attempt(tools, checked, request).run()
        if outcome.success and checkpoint_dir is None:
            self._checkpoints.done(checked.job_id)
        return outcome

    def close(self) -> None:
        """Kill what still runs. A nursery that was given stays open."""
        with self._lock:
            tools, self._tools = self._tools, None
        if tools is not None and self._given_nursery is None:
            tools.nursery.close()

    def _prepared(self) -> Tools:
        with self._lock:
            if self._tools is None:
                self._tools = Tools(
                    settings=self._settings,
                    store=self._store,
                    environments=self._environments,
                    nursery=self._given_nursery or Nursery(self._store.workspace()),
                    cores=Cores(self._settings.job_cores),
                    worker_id=self._worker_id,
                )
            return self._tools

    def _sweep_now_and_then(self) -> None:
        """Remove what dead workers' jobs left, and checkpoints that nobody resumed from."""
        with self._lock:
            if time.monotonic() < self._sweep_at:
                return
            self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
        try:
            scratch.sweep(scratch.root_folder(self._settings))
            self._checkpoints.sweep()
        except (OSError, InvalidSettings) as error:  # no reason to fail a job; where it is, the job itself will say so
            log.warning("what old jobs left cannot be removed: %s", error)
