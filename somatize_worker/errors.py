"""Every error this package raises on purpose.

    SomaError
    ├── InvalidMessage          a protocol message that cannot be read (which field, which value)
    ├── InvalidPipeline         a pipeline or plan that cannot run as written
    │   └── FilterNotLoadable   a filter that does not unpickle (which module is missing, where)
    ├── Unrepresentable         a Python object that no protocol value can carry
    ├── InvalidJob              a Python job refused before it started
    ├── InvalidSettings         a setting with an unusable value
    ├── RoutingError
    │   └── NoWorker            nobody alive serves the tag or worker id
    ├── ServerUnreachable       the Redis or Valkey server does not answer
    ├── StoreError
    │   ├── MissingData         a reference that leads nowhere
    │   ├── UnsafePath          a path that leaves the store's folder
    │   ├── StoreFull           no room left for the data
    │   └── StoreMismatch       this folder is not the cluster's
    ├── HostError
    │   ├── HostNotReady        a child process that did not start in time
    │   └── HostDied            a child process that ended in the middle of its work
    ├── EnvironmentFailed       an environment that could not be built (the builder's own words)
    └── PlanError
        ├── PlanNotFound        no record of that plan id
        ├── PlanConflict        the same plan id with other content
        ├── PlanFailed          the plan ended in failure (error, node, death certificate)
        ├── PlanCancelled       the plan was cancelled
        └── ResultTimeout       no result within the time that the caller gave; the plan goes on

Each takes one message, which says what is wrong and what to do, and optional details as keywords.
All of them survive ``pickle`` and :meth:`SomaError.to_dict` / :meth:`SomaError.from_dict`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def _rebuild(cls: type[SomaError], message: str, details: dict[str, Any]) -> SomaError:
    return cls(message, **details)


class SomaError(Exception):
    """Root of the tree. ``details`` holds what a program may want to read (ids, paths, limits)."""

    def __init__(self, message: str = "", /, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.details)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; details that JSON cannot hold are written as text."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "details": {key: _plain(value) for key, value in self.details.items()},
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> SomaError:
        """The error that :meth:`to_dict` described; an unknown kind comes back as :class:`SomaError`."""
        kinds = {kind.__name__: kind for kind in family(SomaError)}
        cls = kinds.get(str(data.get("error")), SomaError)
        return cls(str(data.get("message", "")), **dict(data.get("details") or {}))


def family(cls: type[SomaError]) -> list[type[SomaError]]:
    """A kind of error and every kind below it."""
    return [cls, *(deep for child in cls.__subclasses__() for deep in family(child))]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value)


class InvalidMessage(SomaError):
    """A protocol message that cannot be read."""


class InvalidPipeline(SomaError):
    """A pipeline or plan that cannot run as written."""


class FilterNotLoadable(InvalidPipeline):
    """A filter that does not unpickle where it should run."""


class Unrepresentable(SomaError, TypeError):
    """A Python object that no protocol value can carry."""


class InvalidJob(SomaError):
    """A Python job refused before it started."""


class InvalidSettings(SomaError, ValueError):
    """A setting with an unusable value."""


class RoutingError(SomaError):
    """A message that cannot be delivered."""


class NoWorker(RoutingError):
    """Nobody alive serves the tag or worker id; ``details['served']`` lists what is served."""


class ServerUnreachable(SomaError, ConnectionError):
    """The Redis or Valkey server does not answer."""


class StoreError(SomaError):
    """The data store could not do what was asked."""


class MissingData(StoreError, LookupError):
    """A reference that leads nowhere: never written, expired or deleted."""


class UnsafePath(StoreError, ValueError):
    """A path that leaves the store's folder."""


class StoreFull(StoreError):
    """No room left for the data; nothing partial was kept."""


class StoreMismatch(StoreError):
    """The folder given here is not the one that the cluster uses."""


class HostError(SomaError):
    """A child process did not do its part."""


class HostNotReady(HostError):
    """A child process that did not start in time."""


class HostDied(HostError):
    """A child process that ended in the middle of its work."""


class EnvironmentFailed(SomaError):
    """An environment that could not be built; the message carries the builder's own words."""


class PlanError(SomaError):
    """Something about one plan; ``details['plan_id']`` names it."""


class PlanNotFound(PlanError, LookupError):
    """No record of that plan id: never submitted, or expired."""


class PlanConflict(PlanError):
    """The plan id is taken by a plan with other content."""


class PlanFailed(PlanError):
    """The plan ended in failure.

    ``details`` may hold ``node_id``, ``error_type``, ``traceback``, ``attempts``, ``worker_id`` and, when a
    process died, ``certificate`` (exit signal or code, peak memory in bytes, node, last lines printed).
    """


class PlanCancelled(PlanError):
    """The plan was cancelled before it ended."""


class ResultTimeout(PlanError, TimeoutError):
    """No result within the caller's time; the plan goes on and can be asked again."""
