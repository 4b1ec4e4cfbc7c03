"""Hosts for tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.inside.hosting import Hosted


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Hosted]:
    """A host of its own for the test."""
    with Hosted(tmp_path) as hosted:
        yield hosted
