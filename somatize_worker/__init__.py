"""Distributed, durable execution of Python pipelines on Celery workers.

Public names that need more than the standard library are imported when they are first used: a light submodule can
then be imported where this package's dependencies are missing, as inside a filter host. (``report`` could not be one
of them: its module has the same name, and would take its place here once anything imports it.)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from somatize_worker.errors import (
    EnvironmentFailed,
    FilterNotLoadable,
    HostDied,
    HostError,
    HostNotReady,
    InvalidJob,
    InvalidMessage,
    InvalidPipeline,
    InvalidSettings,
    MissingData,
    NoWorker,
    PlanCancelled,
    PlanConflict,
    PlanError,
    PlanFailed,
    PlanNotFound,
    ResultTimeout,
    RoutingError,
    ServerUnreachable,
    SomaError,
    StoreError,
    StoreFull,
    StoreMismatch,
    Unrepresentable,
    UnsafePath,
)
from somatize_worker.report import report

if TYPE_CHECKING:
    from somatize_worker import protocol
    from somatize_worker.coordinator import Coordinator
    from somatize_worker.local import LocalCluster
    from somatize_worker.pipeline.filter import Filter
    from somatize_worker.worker.application import app

    __version__: str

__all__ = [
    "Coordinator",
    "EnvironmentFailed",
    "Filter",
    "FilterNotLoadable",
    "HostDied",
    "HostError",
    "HostNotReady",
    "InvalidJob",
    "InvalidMessage",
    "InvalidPipeline",
    "InvalidSettings",
    "LocalCluster",
    "MissingData",
    "NoWorker",
    "PlanCancelled",
    "PlanConflict",
    "PlanError",
    "PlanFailed",
    "PlanNotFound",
    "ResultTimeout",
    "RoutingError",
    "ServerUnreachable",
    "SomaError",
    "StoreError",
    "StoreFull",
    "StoreMismatch",
    "Unrepresentable",
    "UnsafePath",
    "__version__",
    "app",
    "protocol",
    "report",
]

_HOMES: Final = {
    "Coordinator": "somatize_worker.coordinator",
    "Filter": "somatize_worker.pipeline.filter",
    "LocalCluster": "somatize_worker.local",
    "app": "somatize_worker.worker.application",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name == "protocol":
        value = import_module("somatize_worker.protocol")
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("somatize-worker")
    except PackageNotFoundError:  # imported by path, as filter hosts of other environments do
        return "0+unknown"
