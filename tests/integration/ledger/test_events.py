"""Events: numbered without a gap, live and in the log, for whoever comes when."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from somatize_worker.errors import PlanFailed
from somatize_worker.ledger import Claim, Ledger, celery_results, connect, keys
from somatize_worker.settings import Settings
from tests.integration.ledger.conftest import SETTINGS, Plans, cancelled, event, failed, succeeded
from tests.support.server import poll

Leased = Callable[..., Claim]


def subscribed(ledger: Ledger, channel: str) -> Iterator[bytes]:
    """Messages of a channel; subscribed when this returns."""
    pubsub = ledger.client.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(channel)
    poll(lambda: ledger.client.pubsub_numsub(channel)[0][1] == 1)

    def messages() -> Iterator[bytes]:
        with pubsub:
            while True:
                yield poll(lambda: pubsub.get_message(timeout=0.1))["data"]

    return messages()


def test_events_carry_their_number_in_front(ledger: Ledger, leased: Leased) -> None:
    plan_id = leased().plan_id
    ledger.report(plan_id, plan_id, 1, events=[event(a=1), event(a=2).encode()])
    ledger.report(plan_id, plan_id, 1, events=[event(a="ü")])
    assert ledger.events(plan_id) == [
        (1, '{"seq":1,"type": "Event", "a": 1}'),
        (2, '{"seq":2,"type": "Event", "a": 2}'),
        (3, '{"seq":3,"type": "Event", "a": "\\u00fc"}'),
    ]
    assert [seq for seq, _ in ledger.events(plan_id, after=2)] == [3]
    assert ledger.events(plan_id, after=3) == []
    assert ledger.events(plan_id, after=99) == []


def test_all_transitions_log_and_publish(ledger: Ledger, new: Plans) -> None:
    plan, child = new(), new("child", path="0")
    live = subscribed(ledger, keys.events_channel(plan.plan_id))
    ledger.submit(plan)
    ledger.claim(plan.plan_id, "w", events=[event(n=1)])
    ledger.report(plan.plan_id, plan.plan_id, 1, events=[event(n=2)])
    ledger.suspend(plan.plan_id, 1, [child], events=[event(n=3)])
    ledger.claim(child.plan_id, "w", events=[event(n=4)])
    ledger.report(child.plan_id, plan.plan_id, 1, events=[event(n=5)])
    ledger.finish(child.plan_id, 1, succeeded(), events=[event(n=6)])
    ledger.claim(plan.plan_id, "w")
    ledger.finish(plan.plan_id, 2, succeeded(), events=[event(n=7), event(n=8)])
    texts = [text for _, text in ledger.events(plan.plan_id)]
    assert [(json.loads(text)["seq"], json.loads(text)["n"]) for text in texts] == [(n, n) for n in range(1, 9)]
    assert [next(live).decode() for _ in range(8)] == texts
    assert ledger.events(child.plan_id) == ledger.events(plan.plan_id)


def test_numbers_have_no_gap_with_many_reporters(url: str, ledger: Ledger, leased: Leased, new: Plans) -> None:
    root = leased()
    children = [new("child", path=f"{n}") for n in range(4)]
    ledger.suspend(root.plan_id, 1, children)
    live = subscribed(ledger, keys.events_channel(root.plan_id))
    sent: dict[str, int] = {}

    def report(plan_id: str) -> None:
        with connect(url) as client:
            mine = Ledger(client, SETTINGS)
            assert mine.claim(plan_id, "w") is not None
            count = 0
            for _ in range(40):
                batch = [event(plan=plan_id, n=count + i) for i in range(random.randint(1, 5))]
                assert mine.report(plan_id, root.plan_id, 1, events=batch)
                count += len(batch)
            sent[plan_id] = count

    threads = [threading.Thread(target=report, args=(child.plan_id,)) for child in children]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(sent.values())
    logged = ledger.events(root.plan_id)
    assert [seq for seq, _ in logged] == list(range(1, total + 1))
    assert [json.loads(text)["seq"] for _, text in logged] == list(range(1, total + 1))
    for child in children:
        mine = [body["n"] for _, text in logged if (body := json.loads(text))["plan"] == child.plan_id]
        assert mine == list(range(sent[child.plan_id]))
    assert [next(live).decode() for _ in range(total)] == [text for _, text in logged]


@pytest.mark.parametrize("repeat", range(3))
def test_a_late_subscriber_misses_and_repeats_nothing(url: str, ledger: Ledger, leased: Leased, repeat: int) -> None:
    plan_id = leased().plan_id
    started = threading.Event()

    def report() -> None:
        with connect(url) as client:
            mine = Ledger(client, SETTINGS)
            for n in range(300):
                mine.report(plan_id, plan_id, 1, events=[event(n=n)])
                if n == 50:
                    started.set()

    reporter = threading.Thread(target=report)
    reporter.start()
    started.wait(20)
    live = subscribed(ledger, keys.events_channel(plan_id))
    seen = [json.loads(text)["seq"] for _, text in ledger.events(plan_id)]
    while seen[-1] < 300:
        seq = json.loads(next(live))["seq"]
        if seq > seen[-1]:
            seen.append(seq)
    reporter.join()
    assert seen == list(range(1, 301))


def test_nothing_is_published_to_nobody(ledger: Ledger, leased: Leased) -> None:
    plan_id = leased().plan_id

    def published() -> int:
        return int(ledger.client.info("commandstats").get("cmdstat_publish", {"calls": 0})["calls"])

    before = published()
    ledger.report(plan_id, plan_id, 1, events=[event(n=n) for n in range(200)])
    assert published() == before + 1
    assert len(ledger.events(plan_id)) == 200


def test_the_log_is_capped(url: str, new: Plans) -> None:
    with connect(url) as client:
        ledger = Ledger(client, Settings(event_log_limit=10))
        plan = new()
        ledger.submit(plan)
        ledger.claim(plan.plan_id, "w")
        ledger.report(plan.plan_id, plan.plan_id, 1, events=[event(n=n) for n in range(7)])
        ledger.report(plan.plan_id, plan.plan_id, 1, events=[event(n=n) for n in range(7, 2500)])
        kept = ledger.events(plan.plan_id)
        assert [seq for seq, _ in kept] == list(range(2491, 2501))
        assert [json.loads(text)["n"] for _, text in kept] == list(range(2490, 2500))
        assert [seq for seq, _ in ledger.events(plan.plan_id, after=2498)] == [2499, 2500]


def test_printed_lines_keep_their_tail(url: str, new: Plans) -> None:
    with connect(url) as client:
        ledger = Ledger(client, Settings(log_limit_bytes=100))
        plan = new()
        ledger.submit(plan)
        ledger.claim(plan.plan_id, "w")
        live = subscribed(ledger, keys.output_channel(plan.plan_id))
        ledger.report(plan.plan_id, plan.plan_id, 1, output=[f"line {n:04}" for n in range(50)])
        assert ledger.output(plan.plan_id) == [f"line {n:04}" for n in range(39, 50)]
        assert [next(live) for _ in range(50)][-1] == b"line 0049"
        ledger.report(plan.plan_id, plan.plan_id, 1, output=["x" * 500 + "end"])
        assert ledger.output(plan.plan_id) == ["x" * 97 + "end"]
        ledger.finish(plan.plan_id, 1, succeeded(), output=["ü", b"\xff\xfe"])
        assert ledger.output(plan.plan_id) == ["ü", "\ufffd\ufffd"]


def test_printed_lines_can_be_followed(url: str, new: Plans) -> None:
    with connect(url) as client:
        ledger = Ledger(client, Settings(log_limit_bytes=30))
        plan = new()
        ledger.submit(plan)
        assert ledger.output_since(plan.plan_id, 0) == (0, [])
        ledger.claim(plan.plan_id, "w")
        ledger.report(plan.plan_id, plan.plan_id, 1, output=["a", "b", "c"])
        assert ledger.output_since(plan.plan_id, 0) == (3, ["a", "b", "c"])
        assert ledger.output_since(plan.plan_id, 2) == (3, ["c"])
        assert ledger.output_since(plan.plan_id, 3) == (3, [])
        ledger.report(plan.plan_id, plan.plan_id, 1, output=["0123456789" for _ in range(5)])
        assert ledger.output_since(plan.plan_id, 7) == (8, ["0123456789"])
        assert ledger.output_since(plan.plan_id, 0) == (8, ["0123456789"] * 3)


def test_a_jobs_progress_has_its_own_channel(ledger: Ledger, new: Plans) -> None:
    job = new(kind="job")
    live = subscribed(ledger, keys.job_channel(job.plan_id))
    ledger.submit(job)
    claim = ledger.claim(job.plan_id, "w", events=[event(step=1)])
    assert claim is not None
    assert claim.kind == "job"
    assert json.loads(next(live)) == {"seq": 1, "type": "Event", "step": 1}


def test_what_a_child_says_after_the_root_ended_is_dropped(ledger: Ledger, leased: Leased, new: Plans) -> None:
    root, child = leased(), new("child", path="0")
    ledger.suspend(root.plan_id, 1, [child])
    ledger.claim(child.plan_id, "w")
    ledger.cancel(root.plan_id, "stop")
    events = ledger.events(root.plan_id)
    assert ledger.report(child.plan_id, root.plan_id, 1, events=[event()], output=["late"])
    assert ledger.events(root.plan_id) == events
    assert ledger.output(root.plan_id) == []


# ── Celery's view ────────────────────────────────────────────────────────────────────────────────────────────────


def celery_app(url: str) -> Celery:
    return Celery("test", broker=url, backend=url, set_as_current=False)


def test_celery_waits_for_the_result_under_every_id(url: str, ledger: Ledger, new: Plans) -> None:
    app = celery_app(url)
    plan = new(aliases=("alias-1", "alias-2"))
    ledger.submit(plan)
    claim = ledger.claim(plan.plan_id, "w")
    assert claim is not None
    results = [app.AsyncResult(task_id) for task_id in (plan.plan_id, "alias-1", "alias-2")]
    assert [result.state for result in results] == ["PENDING"] * 3
    got: list[object] = []
    waiter = threading.Thread(target=lambda: got.append(results[0].get(timeout=20)))
    waiter.start()
    channel = keys.celery_result(plan.plan_id)
    poll(lambda: ledger.client.pubsub_numsub(channel)[0][1] >= 1)
    ledger.finish(plan.plan_id, 1, succeeded(), celery_meta=celery_results.success('{"x": [1, "ü"]}'))
    waiter.join()
    assert got == [{"x": [1, "ü"]}]
    assert [result.get(timeout=5) for result in results[1:]] == got * 2
    assert all(result.date_done is not None and result.successful() for result in results)

    # An alias that comes after the end finds the result, too.
    ledger.submit(type(plan)(plan.plan_id, plan.spec, "cpu", digest="d", aliases=("alias-1", 'late/"3"')))
    assert app.AsyncResult('late/"3"').get(timeout=5) == got[0]
    assert ledger.record(plan.plan_id).aliases == ("alias-1", "alias-2", 'late/"3"')
    assert 0 < ledger.client.pttl(keys.celery_result('late/"3"')) <= SETTINGS.result_ttl_s * 1000


def test_celery_raises_what_the_plan_ended_with(url: str, ledger: Ledger, leased: Leased, new: Plans) -> None:
    app = celery_app(url)
    plan_id = leased().plan_id
    ledger.finish(plan_id, 1, failed(), celery_meta=celery_results.failure("node a: no", traceback="Traceback"))
    with pytest.raises(PlanFailed, match="node a: no"):
        app.AsyncResult(plan_id).get(timeout=5)
    assert app.AsyncResult(plan_id).traceback == "Traceback"

    plan_id = leased().plan_id
    ledger.finish(plan_id, 1, cancelled(), celery_meta=celery_results.revoked("stop"))
    with pytest.raises(TaskRevokedError, match="stop"):
        app.AsyncResult(plan_id).get(timeout=5)

    queued = new()
    ledger.submit(queued)
    ledger.cancel(queued.plan_id, "not wanted")
    assert app.AsyncResult(queued.plan_id).state == "REVOKED"
