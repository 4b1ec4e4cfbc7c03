"""Every store under the same tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.integration.stores.support import Case, file_case, server_case
from tests.support.server import Server

_DATABASE = 21
SMALL_PART_BYTES = 1_000


@pytest.fixture
def data_url(server: Server) -> Iterator[str]:
    """A database of the server, empty before and after."""
    url = server.database_url(_DATABASE)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture(params=["files", "redis", "redis in small parts"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """Each store in turn; the last cuts nearly every value."""
    if request.param == "files":
        return file_case(tmp_path / "store")
    url = request.getfixturevalue("data_url")
    return server_case(url) if request.param == "redis" else server_case(url, part_bytes=SMALL_PART_BYTES)


@pytest.fixture(params=["files", "redis"])
def big_case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """Each store as it is used, for values of hundreds of megabytes."""
    if request.param == "files":
        return file_case(tmp_path / "store")
    return server_case(request.getfixturevalue("data_url"))
