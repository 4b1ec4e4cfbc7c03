"""The ledger's decisions, without a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from somatize_worker.ledger import Fail, Retry, after_death, after_failure, renew_every_s, scripts
from somatize_worker.ledger.states import TERMINAL, TRANSITIONS, UNFINISHED, LeaseWatch

STATES = sorted(TERMINAL | UNFINISHED)


@dataclass(frozen=True)
class Plan:
    attempts: int = 0
    deaths: int = 0
    max_attempts: int = 3
    retry: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    "operation, starts",
    [
        ("claim", {"queued"}),
        ("report", {"leased"}),
        ("suspend", {"leased"}),
        ("wake", {"waiting"}),
        ("release", {"leased"}),
        ("finish", {"leased"}),
        ("cancel", {"queued", "waiting"}),
    ],
)
def test_where_each_transition_may_start(operation: str, starts: set[str]) -> None:
    assert set(TRANSITIONS[operation]) == starts


def test_nothing_leaves_a_terminal_state_and_every_state_is_reached() -> None:
    reached = {"queued"}
    for steps in TRANSITIONS.values():
        assert not set(steps) & TERMINAL
        for ends in steps.values():
            reached |= ends
    assert sorted(reached) == STATES


def test_the_scripts_guards_come_from_the_table() -> None:
    text = scripts.load("claim").text.decode()
    assert "claim = { queued = true }" in text
    assert "cancel = { queued = true, waiting = true }" in text
    assert "local FINISHED = { cancelled = true, failed = true, succeeded = true }" in text


@pytest.mark.parametrize("name", ["submit", "claim", "finish", "suspend", "release", "cancel", "sweep", "report"])
def test_each_script_says_its_keys_arguments_and_returns(name: str) -> None:
    from importlib import resources

    text = resources.files("somatize_worker.ledger").joinpath("scripts", f"{name}.lua").read_text()
    for heading in ("-- KEYS ", "-- ARGV ", "-- Returns "):
        assert heading in text


def test_a_plan_without_a_policy_is_not_retried_after_an_exception() -> None:
    assert isinstance(after_failure(Plan(), ["builtins.ValueError"]), Fail)


def test_an_exception_is_retried_if_it_or_a_base_is_named() -> None:
    plan = Plan(retry={"retries": 1, "on": ["OSError", "lib.Flaky"]})
    assert after_failure(plan, ["builtins.ConnectionError", "builtins.OSError", "builtins.Exception"]) == Retry(0)
    assert after_failure(plan, ["lib.Flaky", "builtins.Exception"]) == Retry(0)
    assert isinstance(after_failure(plan, ["other.Flaky", "builtins.Exception"]), Fail)
    assert isinstance(after_failure(plan, ["other.OSError"]), Fail)


def test_the_cause_carries_the_error() -> None:
    decision = after_failure(Plan(), ["builtins.ValueError"], error="bad shape")
    assert isinstance(decision, Fail)
    assert decision.cause.startswith("bad shape (")


def test_delays_grow_and_end() -> None:
    policy = {"retries": 3, "on": ["ValueError"], "delay_s": 0.5, "factor": 4}
    mro = ["builtins.ValueError"]
    assert after_failure(Plan(attempts=0, retry=policy), mro) == Retry(500)
    assert after_failure(Plan(attempts=1, retry=policy), mro) == Retry(2000)
    assert after_failure(Plan(attempts=2, retry=policy), mro) == Retry(8000)
    assert isinstance(after_failure(Plan(attempts=3, retry=policy), mro), Fail)
    assert after_failure(Plan(retry={**policy, "delay_s": 1e9}), mro) == Retry(3_600_000)


def test_a_dead_host_fails_the_plan_unless_it_asked_for_retries() -> None:
    assert isinstance(after_death(Plan()), Fail)
    assert after_death(Plan(retry={"retries": 1})) == Retry(0)
    assert isinstance(after_death(Plan(attempts=1, retry={"retries": 1})), Fail)


def test_worker_deaths_do_not_use_up_retries_nor_retries_deaths() -> None:
    assert after_death(Plan(attempts=2, deaths=2, retry={"retries": 1})) == Retry(0)
    assert after_death(Plan(attempts=5, deaths=0, retry={"retries": 5}), of_worker=True) == Retry(0)


@pytest.mark.parametrize("deaths, retried", [(0, True), (1, True), (2, False), (7, False)])
def test_a_dead_worker_is_retried_up_to_max_attempts(deaths: int, retried: bool) -> None:
    decision = after_death(Plan(attempts=deaths, deaths=deaths), of_worker=True)
    assert isinstance(decision, Retry) is retried
    if isinstance(decision, Fail):
        assert "max_attempts" in decision.cause


A, B = ("a", 1, 1000), ("b", 1, 1000)


def test_a_lease_needs_two_looks_apart() -> None:
    watch = LeaseWatch(gap_s=2.0, quiet_s=6.0)
    assert watch.look(10.0, [A]) == []
    assert watch.look(11.0, [A, B]) == []
    assert watch.look(12.0, [A, B]) == [A]
    assert watch.look(13.0, [B]) == [B]


def test_a_renewal_between_the_looks_starts_again() -> None:
    watch = LeaseWatch(gap_s=2.0, quiet_s=6.0)
    watch.look(10.0, [A])
    assert watch.look(12.0, [("a", 1, 1500)]) == []
    assert watch.look(12.5, []) == []
    assert watch.look(14.0, [A]) == []


def test_nothing_expires_for_a_while_after_an_outage() -> None:
    watch = LeaseWatch(gap_s=2.0, quiet_s=6.0)
    watch.look(10.0, [A])
    watch.interrupted(12.0)
    assert watch.look(12.0, [A]) == []
    assert watch.look(17.9, [A]) == []
    assert watch.look(18.0, [A]) == []
    assert watch.look(20.0, [A]) == [A]


def test_two_renewals_may_be_missed() -> None:
    assert 2 * renew_every_s(6.0) < 6.0
