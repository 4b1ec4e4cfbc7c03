"""Filters that end their own process: the plan fails with a death certificate, and nothing else happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from somatize_worker import Coordinator, PlanFailed
from tests.support.cluster import Cluster, alive, short, wait_gone
from tests.support.plans import Dies, Note, counts, runs

LAST_WORDS = ["these are my last words", "written to the other stream"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One worker for all tests here: it has to live through them."""
    settings = short(memory_limit_bytes=400 << 20)
    with Cluster({"cpu": 1}, slots=2, settings=settings, folder=tmp_path_factory.mktemp("cluster")) as cluster:
        pid = cluster.workers[0].pid
        yield cluster
        assert alive(pid), "the worker has not lived through its plans' deaths"


@pytest.fixture(scope="module")
def c(cluster: Cluster) -> Coordinator:
    return cluster.coordinator()


@pytest.mark.parametrize(
    "how, reason, ending",
    [
        ("abort", "crashed", {"signal": "SIGABRT"}),
        ("segv", "crashed", {"signal": "SIGSEGV"}),
        ("exit", "exited", {"exit_code": 7}),
        ("memory", "memory limit", {"signal": "SIGKILL"}),
    ],
)
def test_a_filter_ends_its_process(
    how: str, reason: str, ending: dict[str, object], c: Coordinator, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    plan = Note(notes, "before").named("before") >> Dies(notes, how).named("killer") >> Note(notes, "after")
    run = c.forward(plan, 1)
    with pytest.raises(PlanFailed) as caught:
        run.result(timeout=30)
    failed_at = time.monotonic()
    assert c.forward(lambda x: x + 1, 1).result(timeout=20).output == 2
    took_s = time.monotonic() - failed_at
    error = caught.value
    certificate = error.details["certificate"]
    assert certificate["reason"] == reason
    assert ending.items() <= certificate.items()
    assert certificate["node"] == error.details["node_id"] == "killer"
    assert certificate["peak_bytes"] > (400 << 20 if how == "memory" else 10 << 20)
    assert certificate["last_lines"][-2:] == LAST_WORDS
    assert error.details["attempts"] == 1
    for shown in [*map(str, ending.values()), "'killer'", "peak memory"]:
        assert shown in error.message
    assert counts(notes) == {"before": 1, "dies": 1}
    assert took_s < 5, "the next plan runs at once"
    events = list(run.events())
    assert [event.event_type for event in events].count("RunFailed") == 1
    assert events[-1].event_type == "RunFailed"
    wait_gone(*(pid for _, pid, _ in runs(notes)))


def test_a_death_is_retried_as_often_as_was_asked(c: Coordinator, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    run = c.forward(Dies(notes, "abort").named("killer"), 1, retries=2, retry_delay=0.05)
    with pytest.raises(PlanFailed) as caught:
        run.result(timeout=30)
    assert counts(notes) == {"dies": 3}
    assert caught.value.details["attempts"] == 3
    assert caught.value.details["certificate"]["signal"] == "SIGABRT"
    record = run.record
    assert [("SIGABRT" in entry["why"], entry["epoch"]) for entry in record.history] == [
        (True, 1),
        (True, 2),
        (True, 3),
    ]
    assert record.deaths == 0  # no worker died of it
    assert [event.event_type for event in run.events()].count("RunFailed") == 1


def test_a_death_that_does_not_happen_again(c: Coordinator, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    plan = Note(notes, "before", 0.3).named("before") >> Dies(notes, "segv", times=1).named("killer")
    result = c.forward(plan, 1, retries=2, retry_delay=0.05).result(timeout=30)
    assert result.output == 2
    assert result.attempts == 2
