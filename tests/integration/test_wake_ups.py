"""Wake-ups as Celery knows them: the same messages, put on the queue with the plan's record, and cheap to hold."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from somatize_worker.ledger import Ledger, Submission, Wake, connect
from somatize_worker.messaging import WakeUps, make_app
from somatize_worker.settings import Settings
from tests.support.server import Server

_databases = itertools.cycle(range(40, 64))
_NOTED = ("unacked", "unacked_index")


@pytest.fixture
def settings(server: Server) -> Settings:
    """A cluster's settings, with an empty database."""
    url = server.database_url(next(_databases))
    with connect(url) as client:
        client.flushdb()
    return Settings(redis_url=url)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    with connect(settings.redis_url) as client:
        yield Ledger(client, settings)


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    app = make_app(settings)
    yield app
    app.close()


@pytest.fixture
def wake_ups(app: Celery, ledger: Ledger) -> WakeUps:
    return WakeUps(app, ledger)


@pytest.fixture
def channel(app: Celery) -> Iterator[Any]:
    """A channel as a worker's consumer has one."""
    with app.connection_for_read() as connection:
        yield connection.default_channel


def wake(plan_id: str, priority: int = 5) -> Wake:
    return Wake(plan_id, "cpu", priority, f"forward {plan_id}", "plan")


def submission(plan_id: str) -> Submission:
    return Submission(plan_id, b"spec", "cpu", digest="d", summary=f"forward {plan_id}")


@pytest.mark.parametrize("priority", [0, 4, 9])
def test_it_is_the_message_that_celery_sends(app: Celery, wake_ups: WakeUps, ledger: Ledger, priority: int) -> None:
    wake_ups.entry(wake("an earlier one", priority))
    key, text = wake_ups.entry(wake("p1", priority))
    assert ledger.client.keys("cpu*") == []
    app.send_task(
        "somatize.assign_plan",
        args=["p1"],
        task_id="p1",
        queue="cpu",
        priority=priority,
        ignore_result=True,
        argsrepr="forward p1",
        kwargsrepr="",
    )
    queued: Any = ledger.client.rpop(key)
    sent, made = json.loads(queued), json.loads(text)
    assert made["headers"].pop("soma_wake") is True
    tags = {message["properties"].pop("delivery_tag") for message in (sent, made)}
    assert len(tags) == 2
    del sent["properties"]["argsrepr"], sent["properties"]["kwargsrepr"]  # Celery has them twice: headers they are
    assert made == sent


def test_it_goes_with_a_new_plan_and_only_with_a_new_one(wake_ups: WakeUps, ledger: Ledger, channel: Any) -> None:
    for _ in range(2):
        ledger.submit(submission("p1"), wake_up=wake_ups.entry(submission("p1").wake()))
    ledger.cancel("p2", "not wanted")
    ledger.submit(submission("p2"), wake_up=wake_ups.entry(submission("p2").wake()))
    message = channel.basic_get("cpu")
    assert message.headers["id"] == "p1"
    assert message.headers["argsrepr"] == "forward p1"
    assert channel.basic_get("cpu") is None


def test_several_go_at_once(wake_ups: WakeUps, channel: Any) -> None:
    assert wake_ups.send([wake(f"p{number}") for number in range(3)])
    assert [channel.basic_get("cpu").headers["id"] for _ in range(3)] == ["p0", "p1", "p2"]


def test_plans_that_are_woken_again_go_before_new_ones(wake_ups: WakeUps, ledger: Ledger, channel: Any) -> None:
    for number in range(2):
        new = submission(f"new{number}")
        ledger.submit(new, wake_up=wake_ups.entry(new.wake()))
    wake_ups.send([wake(f"again{number}") for number in range(2)])
    taken = [channel.basic_get("cpu").headers["id"] for _ in range(4)]
    assert taken == ["again0", "again1", "new0", "new1"]


def test_a_taken_one_is_held_in_memory(wake_ups: WakeUps, ledger: Ledger, channel: Any) -> None:
    wake_ups.send([wake("p1")])
    message = channel.basic_get("cpu")
    assert not ledger.client.exists(*_NOTED)
    message.ack()
    channel.qos.restore_unacked()
    assert channel.basic_get("cpu") is None


def test_a_taken_one_goes_back(wake_ups: WakeUps, channel: Any) -> None:
    wake_ups.send([wake("p1")])
    channel.basic_get("cpu").reject(requeue=True)
    again = channel.basic_get("cpu")
    assert again.headers["id"] == "p1"
    channel.qos.restore_unacked()  # as when a worker ends
    assert channel.basic_get("cpu").headers["id"] == "p1"


def test_messages_of_other_programs_are_noted_until_they_are_acknowledged(
    app: Celery, ledger: Ledger, channel: Any
) -> None:
    app.send_task("somatize.assign_plan", args=[{"type": "AssignPlan"}], queue="cpu")
    message = channel.basic_get("cpu")
    assert ledger.client.exists(*_NOTED) == len(_NOTED)
    message.reject(requeue=True)
    channel.basic_get("cpu").ack()
    assert not ledger.client.exists(*_NOTED)
    assert channel.basic_get("cpu") is None


def test_monitors_see_an_ordinary_broker(app: Celery, settings: Settings) -> None:
    with app.connection_for_read() as connection:
        assert connection.as_uri(include_password=True) == settings.redis_url
