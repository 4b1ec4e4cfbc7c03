"""A ledger in an empty database of the session's server, for each test."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from somatize_worker.ledger import Claim, Ledger, Outcome, Submission, connect
from somatize_worker.packing import pack
from somatize_worker.settings import Settings
from tests.support.server import Server

_databases = itertools.cycle(range(1, 32))

LEASE_S = 0.3
SETTINGS = Settings(lease_s=LEASE_S, max_attempts=3)
Plans = Callable[..., Submission]


@pytest.fixture
def url(server: Server) -> str:
    """An empty database."""
    url = server.database_url(next(_databases))
    with connect(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with connect(url) as client:
        yield Ledger(client, SETTINGS)


@pytest.fixture
def new() -> Plans:
    """Makes submissions with unique ids (channels are shared by all databases)."""

    def make(name: str = "", **fields: Any) -> Submission:
        plan_id = f"{name}-{uuid.uuid4().hex[:8]}"
        return Submission(plan_id, fields.pop("spec", b"spec"), fields.pop("queue", "cpu"), **{"digest": "d", **fields})

    return make


@pytest.fixture
def leased(ledger: Ledger, new: Plans) -> Callable[..., Claim]:
    """Submits a plan and takes its lease."""

    def make(worker: str = "w1", **fields: Any) -> Claim:
        submission = new(**fields)
        ledger.submit(submission)
        claim = ledger.claim(submission.plan_id, worker)
        assert claim is not None
        return claim

    return make


def succeeded(output: Any = None) -> Outcome:
    return Outcome("succeeded", pack({"output": output, "states": {}, "duration_ms": 1}))


def failed(error: str = "no") -> Outcome:
    return Outcome("failed", pack({"error": error, "error_type": "builtins.ValueError"}))


def cancelled() -> Outcome:
    return Outcome("cancelled", pack({"error": "stop"}))


def server_ms(ledger: Ledger) -> float:
    """The server's time, which is the ledger's."""
    seconds, micros = ledger.client.time()
    return float(seconds * 1000 + micros / 1000)


def event(**fields: Any) -> str:
    return json.dumps({"type": "Event", **fields})
