"""No room left: a clear error, nothing partial, and the store works on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from somatize_worker.errors import StoreFull
from somatize_worker.stores import formats
from tests.integration.stores.support import Case, file_case, server_case
from tests.support.server import Server

MB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 2 MB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small filesystem needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def small_server() -> Iterator[Server]:
    """A server that may use 20 MB and evicts nothing."""
    with Server("--maxmemory", "20mb", "--maxmemory-policy", "noeviction") as running:
        yield running


def check_full(case: Case, needed: str, place: str) -> None:
    """Too large a value is refused without a trace; what fits goes on."""
    kept = case.store.put(np.arange(100.0))
    before = case.raw()
    for key in (None, bytes(32)):
        with pytest.raises(StoreFull, match="no room in") as caught:
            case.store.put(np.zeros(30 * MB // 8), key=key)
        assert needed in str(caught.value)
        assert place in str(caught.value)
        assert caught.value.details["needed_bytes"] >= 30 * MB
        assert 0 <= caught.value.details["free_bytes"] < 30 * MB
        assert case.raw() == before
    assert case.store.find(bytes(32)) is None
    assert case.store.get(kept).sum() == 4950
    assert case.store.get(case.store.put(np.ones(1000))).sum() == 1000


def put_until_full(case: Case, value: Any) -> int:
    """How many values of this size went in before there was no room."""
    for count in range(1_000):
        try:
            case.store.put(value)
        except StoreFull:
            return count
    raise AssertionError("it never was full")


def test_a_full_disk(small_disk: Path) -> None:
    check_full(file_case(small_disk / "store"), "31.5 MB", str(small_disk))


def test_a_disk_filled_by_small_values(small_disk: Path) -> None:
    case = file_case(small_disk / "store")
    assert 5 < put_until_full(case, {"text": "x" * 100_000}) == len(case.raw()) < 30
    assert not any(name.endswith(".tmp") for name in case.raw())


def test_a_full_server(small_server: Server) -> None:
    check_full(server_case(small_server.url), "31.5 MB", "maxmemory")


def test_a_server_filled_by_small_values(small_server: Server) -> None:
    case = server_case(small_server.url)
    assert 5 < put_until_full(case, b"x" * MB) == len(case.raw()) < 30


def test_a_file_adopted_by_a_full_server_stays(small_server: Server) -> None:
    case = server_case(small_server.url)
    path = formats.write(case.store.workspace() / formats.new_name(), np.zeros(30 * MB // 8))
    with pytest.raises(StoreFull):
        case.store.adopt(path)
    assert path.exists()
    assert case.raw() == set()


def test_fetching_to_a_full_disk(small_disk: Path, data_url: str) -> None:
    case = server_case(data_url)
    reference = case.store.put(np.zeros(30 * MB // 8))
    with pytest.raises(StoreFull, match="no room in"):
        case.store.fetch(reference, small_disk)
    assert list(small_disk.iterdir()) == []


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    case = file_case(tmp_path / "store")
    kind, message = case.ask("put_under_a_file_size_limit", MB, 2 * MB)
    assert kind == "StoreFull"
    assert "File too large" in message
    assert case.raw() == set()
