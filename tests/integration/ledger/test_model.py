"""The ledger against a simple model of it: random operations, and after each one both must agree."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from somatize_worker.errors import PlanConflict
from somatize_worker.ledger import Ledger, Outcome, Submission, connect, keys
from somatize_worker.ledger.states import TERMINAL, TRANSITIONS
from somatize_worker.packing import pack
from tests.integration.ledger.conftest import SETTINGS

ENDS = st.sampled_from(sorted(TERMINAL))
PICK = st.integers(0, 10_000)


@dataclass
class Plan:
    """What the model knows of a plan."""

    submission: Submission
    state: str = "queued"
    epoch: int = 0
    attempts: int = 0
    flagged: bool = False
    delayed: bool = False
    parent: str = ""
    pending: set[str] = field(default_factory=set)


class Model:
    """The transitions, in a few lines each, from the same table."""

    def __init__(self) -> None:
        self.plans: dict[str, Plan] = {}

    def may(self, operation: str, plan_id: str) -> bool:
        return self.plans[plan_id].state in TRANSITIONS[operation]

    def end(self, plan_id: str, state: str) -> None:
        plan = self.plans[plan_id]
        plan.state, plan.delayed = state, False
        parent = self.plans.get(plan.parent)
        if parent is not None:
            parent.pending.discard(plan_id)
            if self.may("wake", plan.parent) and (state != "succeeded" or not parent.pending):
                parent.state = "queued"
        for child in sorted(plan.pending):
            self.cancel(child)

    def cancel(self, plan_id: str) -> None:
        plan = self.plans[plan_id]
        if plan.state == "leased":
            plan.flagged = True
            for child in sorted(plan.pending):
                self.cancel(child)
        elif self.may("cancel", plan_id):
            self.end(plan_id, "cancelled")

    def suspend(self, plan_id: str, children: list[Submission]) -> None:
        plan = self.plans[plan_id]
        if plan.flagged:
            self.end(plan_id, "cancelled")
            return
        failed = False
        for child in children:
            known = self.plans.setdefault(child.plan_id, Plan(child, parent=plan_id))
            if known.state in TERMINAL:
                failed |= known.state != "succeeded"
            else:
                plan.pending.add(child.plan_id)
        # Those of an earlier time that are not asked for again are still waited for.
        plan.state = "queued" if failed or not self._waits(plan, children) else "waiting"

    @staticmethod
    def _waits(plan: Plan, children: list[Submission]) -> bool:
        return bool(plan.pending.intersection(child.plan_id for child in children))


class Machine(RuleBasedStateMachine):
    """Runs operations on both sides."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.client = connect(self.url)
        self.client.flushdb()
        self.ledger = Ledger(self.client, SETTINGS)
        self.model = Model()
        self.run = uuid.uuid4().hex[:6]
        self.numbers = itertools.count()

    def teardown(self) -> None:
        self.client.close()

    def new(self) -> Submission:
        return Submission(f"{self.run}-{next(self.numbers)}", b"", "cpu", digest="d", path=f"{next(self.numbers)}")

    def some(self, pick: int, *states: str) -> str | None:
        """One of the plans, in one of the states if there is such a one."""
        ids = sorted(self.model.plans)
        fitting = [plan_id for plan_id in ids if self.model.plans[plan_id].state in states] or ids
        return fitting[pick % len(fitting)] if fitting else None

    @initialize()
    def first(self) -> None:
        self.submit()

    @rule()
    def submit(self) -> None:
        submission = self.new()
        assert self.ledger.submit(submission).created
        self.model.plans[submission.plan_id] = Plan(submission)

    @rule(pick=PICK, other=st.booleans())
    def submit_again(self, pick: int, other: bool) -> None:
        plan = self.model.plans[self.some(pick) or ""]
        if other:
            with pytest.raises(PlanConflict):
                self.ledger.submit(replace(plan.submission, digest="other"))
        else:
            again = self.ledger.submit(plan.submission)
            assert (again.created, again.state) == (False, plan.state)

    @rule(pick=PICK)
    def claim(self, pick: int) -> None:
        plan_id = self.some(pick, "queued") or ""
        plan = self.model.plans[plan_id]
        claim = self.ledger.claim(plan_id, "w")
        assert (claim is not None) == (self.model.may("claim", plan_id) and not plan.delayed)
        if claim is not None:
            plan.state, plan.epoch = "leased", plan.epoch + 1
            assert (claim.epoch, claim.attempts) == (plan.epoch, plan.attempts)

    @rule(pick=PICK, stale=st.booleans(), end=ENDS)
    def finish(self, pick: int, stale: bool, end: str) -> None:
        plan_id = self.some(pick, "leased") or ""
        plan = self.model.plans[plan_id]
        outcome = Outcome(end, pack({"output": next(self.numbers)}))
        accepted = self.ledger.finish(plan_id, plan.epoch - stale, outcome).accepted
        assert accepted == (self.model.may("finish", plan_id) and not stale)
        if accepted:
            plan.attempts += end == "failed"
            self.model.end(plan_id, end)

    @rule(pick=PICK, stale=st.booleans(), counted=st.booleans(), delayed=st.booleans())
    def release(self, pick: int, stale: bool, counted: bool, delayed: bool) -> None:
        plan_id = self.some(pick, "leased") or ""
        plan = self.model.plans[plan_id]
        delay_ms = 3_600_000 if delayed else 0
        wakes = self.ledger.release(plan_id, plan.epoch - stale, why="x", count_attempt=counted, delay_ms=delay_ms)
        if stale or not self.model.may("release", plan_id):
            # A repeated release of a plan that is still queued is taken for one that lost its reply.
            assert not wakes or (plan.state == "queued" and not plan.delayed)
        elif plan.flagged:
            self.model.end(plan_id, "cancelled")
        else:
            plan.state, plan.attempts, plan.delayed = "queued", plan.attempts + counted, delayed
            assert [wake.plan_id for wake in wakes] == ([] if delayed else [plan_id])

    @rule(pick=PICK, stale=st.booleans(), fresh=st.integers(0, 3), known=st.integers(0, 2))
    def suspend(self, pick: int, stale: bool, fresh: int, known: int) -> None:
        plan_id = self.some(pick, "leased") or ""
        plan = self.model.plans[plan_id]
        if not self.model.may("suspend", plan_id) and not stale:
            return  # would be taken for a repetition if it was suspended last; test_leases has that
        mine = [other.submission for other in self.model.plans.values() if other.parent == plan_id]
        children = [*mine[:known], *(self.new() for _ in range(fresh))]
        accepted = self.ledger.suspend(plan_id, plan.epoch - stale, children).accepted
        assert accepted == (not stale and not plan.flagged)
        if not stale:
            self.model.suspend(plan_id, children)

    @precondition(lambda self: len(self.model.plans) > 3)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        plan_id = self.some(pick, "waiting", "leased", "queued") or ""
        before = self.model.plans[plan_id].state
        assert self.ledger.cancel(plan_id, "stop").state_before == before
        self.model.cancel(plan_id)

    @rule()
    def renew(self) -> None:
        holds = [(plan_id, plan.epoch) for plan_id, plan in self.model.plans.items()]
        answers: dict[str, Any] = {
            plan_id: "lost" if plan.state != "leased" else "cancel" if plan.flagged else "held"
            for plan_id, plan in self.model.plans.items()
        }
        assert self.ledger.renew("w", holds) == answers

    @invariant()
    def records_agree(self) -> None:
        for plan_id, plan in self.model.plans.items():
            record = self.ledger.record(plan_id)
            expected = (plan.state, plan.epoch, plan.attempts, plan.parent)
            assert (record.state, record.epoch, record.attempts, record.parent) == expected
            if plan.state not in TERMINAL:
                assert bool(record.cancel) == plan.flagged
            assert (self.client.ttl(keys.plan(plan_id)) > 0) == (plan.state in TERMINAL)
            if plan.state not in TERMINAL:
                members = self.ledger.command("SMEMBERS", keys.children(plan_id))
                assert {member.decode() for member in members} == plan.pending

    @invariant()
    def registries_agree(self) -> None:
        def members(key: str) -> set[str]:
            return {member.decode() for member in self.ledger.command("ZRANGE", key, 0, -1)}

        def plans(*states: str, delayed: bool = False) -> set[str]:
            found = self.model.plans.items()
            return {plan_id for plan_id, plan in found if plan.state in states and plan.delayed == delayed}

        assert members(keys.QUEUED) == plans("queued")
        assert members(keys.DELAYED) == plans("queued", delayed=True)
        assert members(keys.LEASES) == plans("leased")
        assert members(keys.ENDED) == plans(*TERMINAL)
        assert members(keys.CANCELLING) == set()


def test_the_ledger_agrees_with_its_model(url: str) -> None:
    run_state_machine_as_test(
        type("Bound", (Machine,), {"url": url}),
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
