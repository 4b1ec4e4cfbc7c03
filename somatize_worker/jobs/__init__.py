"""Python jobs: source files, requirements and an entry point, run in an environment and a process of their own.

:mod:`validation` is for clients and workers alike; the rest runs on workers and is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from somatize_worker.jobs.outcome import JobOutcome
    from somatize_worker.jobs.runner import JobRunner
    from somatize_worker.jobs.validation import CheckedJob, check_job

__all__ = ["CheckedJob", "JobOutcome", "JobRunner", "check_job"]

_HOMES: Final = {
    "CheckedJob": "somatize_worker.jobs.validation",
    "JobOutcome": "somatize_worker.jobs.outcome",
    "JobRunner": "somatize_worker.jobs.runner",
    "check_job": "somatize_worker.jobs.validation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
