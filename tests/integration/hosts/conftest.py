"""Pools of real hosts; a test that leaves a process, a zombie or a file descriptor behind fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from somatize_worker.hosts import family
from somatize_worker.hosts.nursery import Nursery
from somatize_worker.hosts.pool import HostPool
from somatize_worker.settings import Settings
from tests.support.hosts import OBEDIENT, own_zombies


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[Callable[..., HostPool]]:
    """Make pools; when the test is over they are closed and nothing may be left of them."""
    pools: list[HostPool] = []

    def make(inside: Path = OBEDIENT, store_folder: Path = tmp_path, **settings: Any) -> HostPool:
        pool = HostPool(Settings(**settings), store_folder, "test", inside=inside)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()
        for host in list(pool._busy):  # what a test, failed or not, did not give back
            pool.release(host, reuse=False)
        assert not [pid for pid in family.pids() if (family.mark_of(pid) or "").startswith(pool.nursery.prefix)]
    assert own_zombies() == []


@pytest.fixture
def pool(make_pool: Callable[..., HostPool]) -> HostPool:
    """A pool with default settings."""
    return make_pool()


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    """A nursery, closed at the end."""
    nursery = Nursery()
    yield nursery
    nursery.close()
    assert own_zombies() == []
