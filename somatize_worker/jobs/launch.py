"""What a job's process finds: its files, its environment variables, its limits. The table is in ``docs/jobs.md``."""

from __future__ import annotations

import json
import marshal
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

import somatize_worker
from somatize_worker.hosts.environments import Environment
from somatize_worker.hosts.inside import job as inside
from somatize_worker.hosts.limits import Limits
from somatize_worker.hosts.process import Launch
from somatize_worker.jobs.scratch import Scratch
from somatize_worker.jobs.validation import CheckedJob
from somatize_worker.settings import Settings, passed_on

_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_ABOVE_LIMIT: Final = 4
_UNREAD_OUTPUT_BYTES: Final = 16 << 20  # half a second of a job that prints as fast as it can


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What decides about one attempt beside the job itself. ``cores``: numbers of cores to run on; none: any."""

    worker_id: str
    attempt: int
    checkpoint_folder: Path
    gpus: Sequence[int] | None
    cores: Sequence[int]
    report_pipe: Path


def write_files(job: CheckedJob, scratch: Scratch) -> None:
    """Write the job's files, params and input, and make this package importable to it.

    Raises:
        OSError: the disk is full, or the like.
    """
    for path, content in job.files:
        scratch.write(path, content)
    (scratch.control / inside.PARAMS).write_bytes(job.params)
    if job.input_data is not None:
        (scratch.control / inside.INPUT).write_bytes(job.input_data)
    importable = _importable(scratch)
    importable.mkdir()
    (importable / "somatize_worker").symlink_to(Path(somatize_worker.__file__).parent, target_is_directory=True)


def launch(
    job: CheckedJob, scratch: Scratch, environment: Environment, circumstances: Circumstances, settings: Settings
) -> Launch:
    """The process to start. Writes what it will read first."""
    description = {
        **job.entry.describe(),
        "root": str(scratch.job),
        "cores": list(circumstances.cores),
        "processes": _process_ceiling(settings.job_processes_limit),
        "params": json.loads(job.params) if job.entry.function else {},
        "input": job.input_data is not None,
    }
    (scratch.control / inside.DESCRIPTION).write_bytes(marshal.dumps(description))
    return Launch(
        argv=[str(environment.python), inside.__file__, str(scratch.control)],
        environ=_environ(job, scratch, environment, circumstances, settings),
        folder=scratch.job,
        output_limit_bytes=_UNREAD_OUTPUT_BYTES,
        limits=Limits(memory_bytes=settings.memory_limit_bytes, processes=settings.job_processes_limit),
    )


def _environ(
    job: CheckedJob, scratch: Scratch, environment: Environment, circumstances: Circumstances, settings: Settings
) -> dict[str, str]:
    environ = passed_on(settings.host_env)
    programs = environment.python.parent
    environ |= {
        "PATH": f"{programs}{os.pathsep}{environ.get('PATH', os.defpath)}",
        "VIRTUAL_ENV": str(programs.parent),
        "PYTHONPATH": str(_importable(scratch)),
        "PYTHONUTF8": "1",
        "TMPDIR": str(scratch.temporary),
        "PWD": str(scratch.job),
        "SOMA_WORKER_ID": circumstances.worker_id,
        "SOMA_REPORT_PIPE": str(circumstances.report_pipe),
        "SOMA_JOB_ID": job.job_id,
        "SOMA_JOB_PIPELINE_ID": job.pipeline_id,
        "SOMA_JOB_INVESTIGATION_ID": job.investigation_id,
        "SOMA_JOB_ATTEMPT": str(circumstances.attempt),
        "SOMA_JOB_PARAMS": str(scratch.control / inside.PARAMS),
        "SOMA_JOB_OUTPUTS": str(scratch.outputs),
        "SOMA_JOB_CHECKPOINT_DIR": str(circumstances.checkpoint_folder),
    }
    if job.input_data is not None:
        environ["SOMA_JOB_INPUT"] = str(scratch.control / inside.INPUT)
    if circumstances.gpus is not None:
        environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # NVML's order, in which the numbers are
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, circumstances.gpus))
    if circumstances.cores:
        environ |= dict.fromkeys(_THREAD_VARIABLES, str(len(circumstances.cores)))
    return environ


def _importable(scratch: Scratch) -> Path:
    """On ``PYTHONPATH``, with this package alone in it: ``from somatize_worker import report`` works in the job and
    in every Python process that it starts."""
    return scratch.control / "importable"


def _process_ceiling(limit: int) -> int:
    """The kernel's limit (``RLIMIT_NPROC``) that stops a fork bomb between two looks of the watch; 0: it has no effect.

    The kernel counts the threads of all processes of the user, so it stands well above what others use now; the
    watch counts exactly. Root is exempt from it.
    """
    if os.getuid() == 0:
        return 0
    own = os.getuid()
    threads = 0
    for process in psutil.process_iter(["uids", "num_threads"]):
        uids = process.info["uids"]
        threads += process.info["num_threads"] or 0 if uids and uids.real == own else 0
    return threads + _ABOVE_LIMIT * limit + 1_000


class Cores:
    """Shares out this process's cores: each job gets those that the fewest others have.

    Args:
        each: how many a job gets; 0: all, without any binding.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        self._uses: Counter[int] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def share(self) -> Iterator[list[int]]:
        """Numbers of cores, until the block ends; empty: any."""
        available = sorted(os.sched_getaffinity(0))
        if self._each == 0 or self._each >= len(available):
            yield []
            return
        with self._lock:
            chosen = sorted(available, key=lambda core: self._uses[core])[: self._each]
            self._uses.update(chosen)
        try:
            yield sorted(chosen)
        finally:
            with self._lock:
                self._uses.subtract(chosen)
