"""Small pure parts of the ledger: URLs, Celery's entries, decoding."""

from __future__ import annotations

import json

import msgpack
import pytest

from somatize_worker.errors import InvalidSettings
from somatize_worker.ledger import Submission, Wake, celery_results, failed_event, hide_password, keys, queues_of
from somatize_worker.ledger.connection import check_url
from somatize_worker.ledger.records import Record, decode_wakes


@pytest.mark.parametrize(
    "url, shown",
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@host/1", "redis://:***@host/1"),
        ("rediss://me:s@cr:t@host:1/2", "rediss://me:***@host:1/2"),
        ("redis://me@host", "redis://me@host"),
        ("me:secret@host", "***@host"),
    ],
)
def test_passwords_are_hidden(url: str, shown: str) -> None:
    assert hide_password(url) == shown


@pytest.mark.parametrize("url", ["redis://h", "rediss://h:1/3", "unix:///run/redis.sock", "redis://u:p@h:1/0?x=1"])
def test_usable_urls(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url, part",
    [
        ("localhost:6379", "redis://host"),
        ("http://host:80", "'http'"),
        ("amqp://guest:guest@host", "'amqp'"),
        ("redis://:secret@host:6379/db", "must be a number"),
        ("redis://host:port/0", "not a usable server URL"),
    ],
)
def test_unusable_urls_are_explained_without_the_password(url: str, part: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        check_url(url)
    assert part in caught.value.message
    assert "secret" not in caught.value.message


def test_celery_entries_have_celerys_form() -> None:
    entry = json.loads(celery_results.success('{"x": [1]}'))
    assert entry.pop("date_done").endswith("+00:00")
    assert entry == {"status": "SUCCESS", "result": {"x": [1]}, "traceback": None, "children": []}
    entry = json.loads(celery_results.failure('it\'s "bad"', traceback="Traceback ..."))
    assert entry["status"] == "FAILURE"
    assert entry["traceback"] == "Traceback ..."
    assert entry["result"] == {
        "exc_type": "PlanFailed",
        "exc_message": ['it\'s "bad"'],
        "exc_module": "somatize_worker.errors",
    }
    assert json.loads(celery_results.revoked("why"))["status"] == "REVOKED"


def test_a_failed_event_is_a_protocol_event() -> None:
    assert json.loads(failed_event("p", "no", "w")) == {
        "type": "Event",
        "worker_id": "w",
        "plan_id": "p",
        "event": {"event_type": "RunFailed", "run_id": "p", "error": "no"},
    }


def test_a_sparse_record_has_defaults() -> None:
    record = Record.decode("p", {b"state": b"queued"})
    assert (record.kind, record.root, record.result, record.history) == ("plan", "p", None, [])
    assert (record.requirements, record.retry, record.attempts) == ((), {}, 0)


def test_history_is_a_stream_of_maps() -> None:
    packed = msgpack.packb({"worker": "a", "epoch": 1}) + msgpack.packb({"worker": "b", "epoch": 2})
    record = Record.decode("p", {b"state": b"queued", b"history": packed})
    assert [entry["worker"] for entry in record.history] == ["a", "b"]


def test_a_submissions_wake_is_what_the_scripts_return() -> None:
    submission = Submission("p", b"", "gpu", digest="d", priority=3, summary="s", kind="job")
    assert submission.wake() == Wake("p", "gpu", 3, "s", "job")
    assert decode_wakes([b"p", b"gpu", b"3", b"s", b"job"]) == [submission.wake()]


def test_a_queue_is_four_lists() -> None:
    from kombu.transport.redis import Channel, Transport

    assert Transport.Channel is Channel
    assert [f"cpu{suffix}" for suffix in keys.LIST_SUFFIXES] == [
        f"cpu{Channel.sep}{step}" if step else "cpu" for step in Channel.priority_steps
    ]


def test_a_worker_reads_its_tags_and_its_own_queue() -> None:
    assert queues_of({"worker_id": "w", "queues": ["cpu", "w"]}) == {"cpu", "w"}
    assert queues_of({"worker_id": "w", "capabilities": {"tags": ["gpu"]}}) == {"gpu", "w"}
