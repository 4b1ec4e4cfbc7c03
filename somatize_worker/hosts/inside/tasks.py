"""Branches of a ``Parallel`` as pieces of work that may run here or in another process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from somatize_worker.hosts.inside.edges import Scope


@dataclass
class Task:
    """One branch of a ``Parallel`` that is to run: here, or in another process that then fills in the rest."""

    plan: Any
    path: str
    key: str
    value: Any
    scope: Scope | None = None
    output: Any = None
    #: What it waits for, if it could not be finished.
    children: list[dict[str, Any]] | None = None
    #: It holds something that cannot go to another process.
    stays_here: bool = False


class Runner(Protocol):
    """Who runs the branches of a ``Parallel``."""

    def run(self, tasks: Sequence[Task], here: Callable[[Task], None]) -> None:
        """Run all; ``here`` runs one in this thread. Raises what a branch raised."""
        ...


class OneAfterTheOther:
    """Runs every branch here."""

    def run(self, tasks: Sequence[Task], here: Callable[[Task], None]) -> None:
        """See :class:`Runner`."""
        for task in tasks:
            here(task)
