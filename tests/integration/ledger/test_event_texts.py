"""Texts of several events: numbered, published and read one by one, whatever they came in."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from somatize_worker.ledger import Claim, Ledger, connect, events_channel
from somatize_worker.settings import Settings
from tests.integration.ledger.conftest import Plans, event

Leased = Callable[..., Claim]


def text(first: int, count: int) -> str:
    """Events numbered from ``first`` on, one a line."""
    return "\n".join(event(n=number) for number in range(first, first + count))


def numbers(events: list[tuple[int, str]]) -> list[int]:
    """The events' own numbers, after a look at those that the ledger gave."""
    read = [json.loads(one) for _, one in events]
    assert [seq for seq, _ in events] == [one["seq"] for one in read]
    assert all(one["seq"] == one["n"] for one in read)
    return [one["n"] for one in read]


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5, 6, 7, 100])
def test_they_are_read_from_any_number_on(ledger: Ledger, leased: Leased, after: int) -> None:
    claim = leased()
    ledger.report(claim.plan_id, claim.root, claim.epoch, events=[text(1, 3), event(n=4)])
    ledger.report(claim.plan_id, claim.root, claim.epoch, events=[text(5, 2)])
    assert numbers(ledger.events(claim.plan_id, after=after)) == list(range(after + 1, 7))


def test_each_is_published(ledger: Ledger, leased: Leased) -> None:
    claim = leased()
    with ledger.listen(events_channel(claim.root)) as pubsub:
        ledger.report(claim.plan_id, claim.root, claim.epoch, events=[text(1, 3), text(4, 2)])
        published = [pubsub.get_message(timeout=5) for _ in range(5)]
        assert [json.loads(message["data"])["seq"] for message in published if message] == [1, 2, 3, 4, 5]
        assert [json.loads(message["data"])["n"] for message in published if message] == [1, 2, 3, 4, 5]


def test_many_texts_of_any_size(ledger: Ledger, leased: Leased) -> None:
    claim, total, sizes = leased(), 0, random.Random(7)
    for _ in range(60):
        texts = []
        for _ in range(sizes.randint(1, 9)):
            size = sizes.randint(1, 12)
            texts.append(text(total + 1, size))
            total += size
        ledger.report(claim.plan_id, claim.root, claim.epoch, events=texts)
    for after in (0, 1, total // 3, total - 1, total):
        assert numbers(ledger.events(claim.plan_id, after=after)) == list(range(after + 1, total + 1))


def test_the_newest_are_kept_with_those_in_the_same_text(url: str, new: Plans) -> None:
    with connect(url) as client:
        ledger = Ledger(client, Settings(event_log_limit=10))
        plan = new()
        ledger.submit(plan)
        claim = ledger.claim(plan.plan_id, "w1")
        assert claim is not None
        for first in range(1, 40, 4):
            ledger.report(plan.plan_id, plan.plan_id, claim.epoch, events=[text(first, 4)])
        assert numbers(ledger.events(plan.plan_id)) == list(range(29, 41))
        ledger.report(plan.plan_id, plan.plan_id, claim.epoch, events=[event(n=41), event(n=42)])
        assert numbers(ledger.events(plan.plan_id)) == list(range(33, 43))
        ledger.report(plan.plan_id, plan.plan_id, claim.epoch, events=[text(43, 25)])
        assert numbers(ledger.events(plan.plan_id)) == list(range(43, 68))
