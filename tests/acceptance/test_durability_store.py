"""The data store's disk is full: a clear failure, nothing partial is left, and work goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from somatize_worker import PlanFailed
from somatize_worker.errors import StoreFull
from tests.acceptance.conftest import MakeCluster
from tests.support.cluster import alive, short
from tests.support.plans import Large

MB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 16 MB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small filesystem needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def files(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def test_the_disk_of_the_store_is_full(small_disk: Path, make_cluster: MakeCluster) -> None:
    cluster = make_cluster({"cpu": 1}, settings=short(store=f"file://{small_disk / 'store'}"))
    worker = cluster.workers[0]
    c = cluster.coordinator()
    assert c.forward(Large(2 * MB), 1.0).result(timeout=20).output.nbytes == 2 * MB
    before = files(small_disk)

    def check(plan: Any) -> None:
        with pytest.raises(PlanFailed) as caught:
            c.forward(plan, 1.0).result(timeout=30)
        error = caught.value
        assert error.details["error_type"] == "somatize_worker.errors.StoreFull"
        assert "no room in" in error.message
        assert str(small_disk) in error.message
        assert files(small_disk) == before
        assert c.forward(lambda x: x + 1, 1).result(timeout=20).output == 2  # at once

    check(Large(32 * MB))  # a result that does not fit
    with pytest.raises(StoreFull, match="no room in"):  # an input that does not fit: nothing was submitted
        c.forward(lambda x: x, np.zeros(32 * MB // 8))
    assert files(small_disk) == before
    # Filled up by others, not a byte left: what is small goes past the store.
    (small_disk / "others").write_bytes(bytes(small_disk_free(small_disk)))
    before = files(small_disk)
    check(Large(1 * MB))
    (small_disk / "others").unlink()
    assert c.forward(Large(1 * MB), 1.0).result(timeout=20).output.nbytes == 1 * MB
    assert alive(worker.pid)
    assert c.workers()[0].pid == worker.pid


def small_disk_free(place: Path) -> int:
    free = os.statvfs(place)
    return free.f_bavail * free.f_frsize
