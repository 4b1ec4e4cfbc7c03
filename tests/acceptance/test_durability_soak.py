"""Half a minute of the soak test: all kinds of plans, and all kinds of harm, at once."""

from __future__ import annotations

import pytest
from rich.console import Console

from benchmarks.soak import Soak, show, soak


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nothing_is_lost_doubled_or_leaked_whatever_is_killed() -> None:
    report = soak(Soak(seconds=12, plans=600, seed=11, lease_s=1.5, pause_s=(0.1, 0.8), expire=False))
    show(report, Console())
    assert report.problems == []
    figures = dict(report.figures)
    assert int(figures["plans"].replace(",", "")) >= 600
    assert figures["every plan has the result that it should have"] == "yes"
