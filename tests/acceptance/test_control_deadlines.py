"""Deadlines, retries with back-off, and priorities."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from somatize_worker import Coordinator, Filter, InvalidPipeline, PlanFailed
from somatize_worker.coordinator import PlanHandle
from somatize_worker.settings import Settings
from tests.acceptance.conftest import MakeCluster
from tests.support.busy import Holds, Says, held, let_go, ran, wait_gone_soon
from tests.support.cluster import Cluster, short
from tests.support.plans import Dies, counts, runs, write_line
from tests.support.server import poll


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two workers of one slot each."""
    with Cluster({"cpu": 1, "gpu": 1}, slots=1, settings=short()) as running:
        yield running


class Flaky(Filter):
    """Notes each try, and fails the first so many times."""

    def __init__(self, folder: Path, failures: int, error: type[Exception]) -> None:
        self.folder = str(folder)
        self.failures = failures
        self.error = error

    def forward(self, x: Any, state: Any = None) -> Any:
        write_line(f"{self.folder}/tries", f"try {time.time():.3f} 0")
        with open(f"{self.folder}/tries", encoding="ascii") as file:
            tries = len(file.readlines())
        if tries <= self.failures:
            raise self.error(f"try {tries} failed")
        return x


class Hiccup(ConnectionError):
    """An error of the user's own, below a builtin one."""


def tries(folder: Path) -> list[float]:
    """When each try was."""
    file = folder / "tries"
    return [float(line.split()[1]) for line in file.read_text().splitlines()] if file.exists() else []


def kinds(run: PlanHandle) -> list[str]:
    return [event.event_type for event in run.events()]


# ── deadlines ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plan_that_takes_too_long(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(Holds(tmp_path, children=True), 1, timeout=0.5)
    pids = held(tmp_path)
    with pytest.raises(PlanFailed, match=r"not done after its 0\.5 s") as failure:
        run.result(timeout=10)
    wait_gone_soon(pids)
    assert failure.value.details["node_id"] == "Holds"
    assert failure.value.details["error_type"] == "builtins.TimeoutError"
    assert kinds(run).count("RunFailed") == 1
    assert c.forward(lambda x: x + 1, 1).result(timeout=10).output == 2


def test_the_default_comes_from_the_settings(cluster: Cluster, tmp_path: Path) -> None:
    with Coordinator(settings=replace(cluster.settings, plan_timeout_s=0.4)) as c:
        with pytest.raises(PlanFailed, match=r"not done after its 0\.4 s"):
            c.forward(Holds(tmp_path), 1).result(timeout=10)
        assert c.forward(Says(tmp_path, "long", 0.6), 1, timeout=0).result(timeout=10).output == 2


def test_time_in_the_queue_does_not_count(c: Coordinator, tmp_path: Path) -> None:
    blocker = c.forward(Holds(tmp_path), 1)
    held(tmp_path)
    queued = c.forward(Says(tmp_path, "queued"), 1, timeout=0.5)
    time.sleep(0.8)
    let_go(tmp_path)
    blocker.result(timeout=10)
    assert queued.result(timeout=10).output == 2


def test_it_counts_over_all_attempts(c: Coordinator, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    pipeline = Says(tmp_path, "before", 0.3) >> Dies(notes, "exit")
    run = c.forward(pipeline.cached(False), 1, timeout=4.0, retries=50, retry_delay=0.1)
    with pytest.raises(PlanFailed):
        run.result(timeout=20)
    assert 1 < len(runs(notes)) < 10
    assert run.record.finished - run.record.created < 10_000
    assert kinds(run).count("RunFailed") == 1


def test_no_retry_is_started_for_which_there_is_no_time(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(Flaky(tmp_path, 1, ValueError), 1, timeout=5, retries=3, retry_on=[ValueError], retry_delay=3600)
    with pytest.raises(PlanFailed, match="try 1 failed"):
        run.result(timeout=10)


def test_a_plan_that_waits_for_children_too_long(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(Holds(tmp_path, "child", children=True).on("gpu") >> Says(tmp_path, "never"), 1, timeout=1.0)
    pids = held(tmp_path, "child")
    with pytest.raises(PlanFailed, match="not done after its 1 s"):
        run.result(timeout=20)
    wait_gone_soon(pids)
    (child,) = c.ledger.family(run.plan_id)
    poll(lambda: c.plan(child.plan_id).done(), timeout_s=10)
    assert ran(tmp_path) == []
    assert c.forward(lambda x: x + 1, 1, on="gpu").result(timeout=10).output == 2


# ── retries ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "named"), [(ValueError, ValueError), (Hiccup, Hiccup), (Hiccup, OSError), (KeyError, "LookupError")]
)
def test_named_errors_are_retried_with_growing_pauses(
    c: Coordinator, tmp_path: Path, error: type[Exception], named: Any
) -> None:
    run = c.forward(Flaky(tmp_path, 2, error), 1, retries=2, retry_on=[named], retry_delay=0.2)
    result = run.result(timeout=20)
    assert (result.output, result.attempts) == (1, 3)
    first, second, third = tries(tmp_path)
    assert second - first >= 0.2
    assert third - second >= 0.4
    assert kinds(run).count("RunFailed") == 0
    assert kinds(run).count("RunStarted") == kinds(run).count("RunCompleted") == 1
    assert kinds(run).count("NodeFailed") == 2
    why = [entry["why"] for entry in run.record.history]
    assert len(why) == 3
    assert "try 1 failed" in why[0]
    assert "try 2 failed" in why[1]
    assert all(entry["worker"] == result.worker_id for entry in run.record.history)


def test_a_short_pause_is_short_however_seldom_the_sweeper_looks(make_cluster: MakeCluster, tmp_path: Path) -> None:
    c = make_cluster({"cpu": 1}, settings=Settings(lease_s=180.0)).coordinator()  # it looks once a minute
    run = c.forward(Flaky(tmp_path, 1, ValueError), 1, retries=1, retry_on=[ValueError], retry_delay=0.2)
    assert run.result(timeout=20).attempts == 2


def test_retries_run_out(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(Flaky(tmp_path, 9, ValueError), 1, retries=2, retry_on=["ValueError"], retry_delay=0.05)
    with pytest.raises(PlanFailed, match="try 3 failed") as failure:
        run.result(timeout=20)
    assert failure.value.details["attempts"] == 3
    assert kinds(run).count("RunFailed") == 1
    assert kinds(run)[-1] == "RunFailed"
    assert run.record.attempts == 3


def test_other_errors_are_not_retried(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(Flaky(tmp_path, 1, KeyError), 1, retries=5, retry_on=[ValueError])
    with pytest.raises(PlanFailed, match="try 1 failed"):
        run.result(timeout=20)
    assert len(tries(tmp_path)) == 1


def test_the_death_of_a_host_is_retried_if_asked_for(c: Coordinator, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    run = c.forward(Dies(notes, "abort", times=2), 1, retries=2, retry_delay=0.05)
    assert run.result(timeout=20).attempts == 3
    assert counts(notes) == {"dies": 3}
    assert ["SIGABRT" in entry["why"] for entry in run.record.history] == [True, True, False]
    once = c.forward(Dies(tmp_path / "other", "abort", times=1), 1)
    with pytest.raises(PlanFailed, match="SIGABRT"):
        once.result(timeout=20)
    assert counts(tmp_path / "other") == {"dies": 1}


def test_a_failed_child_is_retried_once_for_itself_not_for_each_generation(c: Coordinator, tmp_path: Path) -> None:
    pipeline = Says(tmp_path, "before") >> Flaky(tmp_path, 9, ValueError).on("gpu")
    run = c.forward(pipeline, 1, retries=1, retry_on=[ValueError], retry_delay=0.05)
    with pytest.raises(PlanFailed, match="try 2 failed") as failure:
        run.result(timeout=20)
    assert failure.value.details["node_id"] == "Flaky"
    assert len(tries(tmp_path)) == 2
    (child,) = c.ledger.family(run.plan_id)
    assert (child.attempts, run.record.attempts) == (2, 1)


@pytest.mark.parametrize(
    "options",
    [{"timeout": -1}, {"priority": 10}, {"retries": -1}, {"retry_delay": -1}, {"max_attempts": 0},
     {"retry_on": [ValueError]}],
)  # fmt: skip
def test_senseless_options_are_refused(c: Coordinator, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidPipeline, match=next(iter(options))):
        c.forward(lambda x: x, 1, **options)


# ── priorities ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_option_that_does_not_exist_is_refused(c: Coordinator) -> None:
    for call in (c.forward, c.fit):
        with pytest.raises(TypeError, match="'tiemout'"):
            call(lambda x: x, 1, tiemout=1)


def test_what_is_urgent_goes_first(c: Coordinator, tmp_path: Path) -> None:
    blocker = c.forward(Holds(tmp_path), 1)
    held(tmp_path)
    order = [("last", 9), ("middle", 5), ("first", 0), ("late", 6), ("middle2", 5), ("first2", 0)]
    queued = [c.forward(Says(tmp_path, name), 1, priority=priority) for name, priority in order]
    let_go(tmp_path)
    for run in [blocker, *queued]:
        run.result(timeout=20)
    assert ran(tmp_path) == ["first", "first2", "middle", "middle2", "late", "last"]
