"""Fixtures of the acceptance tests: whole clusters of real processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from somatize_worker import Coordinator
from somatize_worker.settings import Settings
from tests.support.cluster import Cluster, short

MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    """Starts clusters with short leases and an append-only file, and closes them after the test."""
    with ExitStack() as stack:

        def make(
            workers: Mapping[str, int] | None = None, *, slots: int = 2, settings: Settings | None = None
        ) -> Cluster:
            cluster = Cluster(workers, slots=slots, settings=settings or short(), folder=tmp_path / "cluster")
            return stack.enter_context(cluster)

        yield make


@pytest.fixture
def c(cluster: Cluster) -> Iterator[Coordinator]:
    """A client of the module's ``cluster``."""
    with Coordinator(settings=cluster.settings) as coordinator:
        yield coordinator


@pytest.fixture(scope="session")
def env_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the session's Python environments lie (the setting ``env_folder``)."""
    return str(tmp_path_factory.mktemp("environments"))
