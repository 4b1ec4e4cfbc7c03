"""Whatever a value's size, going over it takes little memory: measured in processes of their own, at their peak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.stores.support import Case

MB = 1 << 20
SIZE = 256 * MB
ALLOWED_MB = 48.0
"""A few parts and blocks of some megabytes each; the value is more than five times as large."""


@pytest.fixture
def stored(big_case: Case) -> dict[str, Any]:
    """The fields, as JSON, of a reference to a value of 256 MB."""
    fields = dict(big_case.store.put(np.ones((32_768, SIZE // 8 // 32_768))).fields)
    if "cache_key" in fields:
        fields["cache_key"] = fields["cache_key"].hex()
    return fields


def test_rows(big_case: Case, stored: dict[str, Any]) -> None:
    assert big_case.ask("measure_rows", stored, 20_000, 21_000) < ALLOWED_MB


def test_fetching(big_case: Case, stored: dict[str, Any], tmp_path: Path) -> None:
    assert big_case.ask("measure_fetch", stored, str(tmp_path)) < ALLOWED_MB


def test_adopting(big_case: Case) -> None:
    assert big_case.ask("measure_adopt", SIZE) < ALLOWED_MB


@pytest.mark.parametrize("order", ["C", "F"])
def test_putting(big_case: Case, order: str) -> None:
    assert big_case.ask("measure_put", SIZE, order) < ALLOWED_MB
