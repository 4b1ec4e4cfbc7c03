"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A running server, shared by the session's tests: use a database or a key prefix of your own in it.

    A test that stops or freezes a server starts its own: ``with Server() as server: ...``.
    """
    with Server() as running:
        yield running
