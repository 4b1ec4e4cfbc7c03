"""How a plan is to be run, and batches of a map: decisions without a server."""

from __future__ import annotations

from typing import Any

import pytest

from somatize_worker.coordinator.mapping import next_batch_size
from somatize_worker.errors import InvalidPipeline
from somatize_worker.settings import Settings
from somatize_worker.submission import Policy


def test_defaults_come_from_the_settings() -> None:
    settings = Settings(plan_timeout_s=2.5, max_attempts=7)
    assert Policy().fields(settings) == {"timeout_ms": 2500, "priority": 5, "retry": None, "max_attempts": 7}
    fields = Policy(timeout=0, retries=2, retry_on=("builtins.ValueError",), max_attempts=1).fields(settings)
    assert (fields["timeout_ms"], fields["max_attempts"]) == (0, 1)
    assert fields["retry"] == {"retries": 2, "on": ["builtins.ValueError"], "delay_s": 0.5, "factor": 2.0}


@pytest.mark.parametrize(
    "wrong",
    [{"timeout": -0.1}, {"timeout": float("nan")}, {"timeout": float("inf")}, {"priority": -1}, {"priority": 10},
     {"priority": 2.5}, {"retries": -1}, {"retry_delay": -1.0}, {"max_attempts": 0}, {"retry_on": ("ValueError",)}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidPipeline, match=name):
        Policy(**wrong)


@pytest.mark.parametrize(
    ("size", "duration_ms", "expected"),
    [(1, 0.0, 8), (8, 1.0, 64), (100, 50.0, 200), (100, 100.0, 100), (100, 1000.0, 10), (1, 5000.0, 1),
     (9000, 1.0, 10_000)],
)  # fmt: skip
def test_batches_aim_at_a_tenth_of_a_second(size: int, duration_ms: float, expected: int) -> None:
    assert next_batch_size(size, duration_ms) == expected
