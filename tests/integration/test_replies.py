"""A client's reply channel: the end of every plan arrives, whatever happens to the connection."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from somatize_worker.coordinator.replies import Replies
from somatize_worker.ledger import Ledger, Outcome, Submission, connect
from somatize_worker.packing import pack
from somatize_worker.settings import Settings
from tests.support.server import Server, poll


@pytest.fixture
def ledger(server: Server) -> Iterator[Ledger]:
    url = server.database_url(39)
    with connect(url) as client:
        client.flushdb()
        yield Ledger(client, Settings(redis_url=url))


def test_ends_that_were_told_while_the_connection_was_cut(ledger: Ledger) -> None:
    replies = Replies(ledger)
    expected = {}
    for number in range(30):
        plan_id = uuid.uuid4().hex
        expected[plan_id] = replies.expect(plan_id)
        ledger.submit(Submission(plan_id, b"", "cpu", digest="d", reply=replies.channel))
        claim = ledger.claim(plan_id, "w")
        assert claim is not None
        if number % 2:
            assert ledger.client.client_kill_filter(_type="pubsub") >= 0
        assert ledger.finish(plan_id, claim.epoch, Outcome("succeeded", pack({"output": number}))).accepted
    poll(lambda: all(reply.message for reply in expected.values()), timeout_s=10, what="an end for each plan")
    for number, reply in enumerate(expected.values()):
        assert reply.message is not None
        said = reply.message["result"]
        assert (said["output"] if isinstance(said, dict) else said) == number
    assert not replies._waiting
    replies.close()
