"""Connecting: what is wrong is said at once, and outages are survived."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from somatize_worker.errors import InvalidSettings, ServerUnreachable
from somatize_worker.ledger import Ledger, connect, patiently
from tests.integration.ledger.conftest import SETTINGS, Plans, event, succeeded
from tests.support.server import Server, free_port


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server with a password."""
    with Server("--requirepass", "right") as server:
        yield server


def test_nobody_there() -> None:
    with pytest.raises(ServerUnreachable, match="check that it runs") as caught:
        connect(f"redis://me:hidden@127.0.0.1:{free_port()}/0")
    assert "hidden" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_a_name_that_leads_nowhere() -> None:
    with pytest.raises(ServerUnreachable, match="does not answer"):
        connect("redis://no-such-host.invalid:6379/0")


@pytest.mark.parametrize("credentials", ["", ":wrong@", "nobody:right@"])
def test_a_wrong_password(guarded: Server, credentials: str) -> None:
    with pytest.raises(ServerUnreachable, match="refuses this user or password") as caught:
        connect(f"redis://{credentials}127.0.0.1:{guarded.port}/0", wait_s=60)
    assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
    with connect(f"redis://:right@127.0.0.1:{guarded.port}/0") as client:
        assert client.ping()


def test_a_database_that_is_not_there(server: Server) -> None:
    with pytest.raises(ServerUnreachable, match="no such database"):
        connect(server.database_url(9999))


def test_not_a_url() -> None:
    with pytest.raises(InvalidSettings):
        connect("localhost")


def test_tls_where_there_is_none(server: Server) -> None:
    with pytest.raises(ServerUnreachable, match="TLS"):
        connect(f"rediss://127.0.0.1:{server.port}/0")


def test_another_kind_of_server() -> None:
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    try:
        with pytest.raises(ServerUnreachable, match="not as a Redis"):
            connect(f"redis://127.0.0.1:{web.server_address[1]}/0")
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def test_a_cluster_node_is_refused() -> None:
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with Server(*options) as server, pytest.raises(ServerUnreachable, match="Cluster"):
        connect(server.url)


def test_a_server_that_comes_later_is_waited_for() -> None:
    server = Server()
    starter = threading.Timer(0.3, server.start)
    starter.start()
    try:
        with connect(server.url, wait_s=30) as client:
            assert client.ping()
    finally:
        starter.join()
        server.close()


def test_a_frozen_server_is_noticed() -> None:
    with Server() as server, connect(server.url, command_timeout_s=0.3) as client:
        ledger = Ledger(client, SETTINGS)
        server.freeze()
        with pytest.raises(ServerUnreachable, match=str(server.port)):
            ledger.record("p")
        server.thaw()
        assert patiently(ledger.records) == []


def test_results_are_delivered_through_an_outage(new: Plans) -> None:
    with Server() as server, connect(server.url) as client:
        ledger = Ledger(client, SETTINGS)
        plan = new()
        ledger.submit(plan)
        ledger.claim(plan.plan_id, "w")
        server.stop(kill=True)
        with pytest.raises(ServerUnreachable):
            patiently(lambda: ledger.finish(plan.plan_id, 1, succeeded()), 0.1)
        starter = threading.Timer(1.0, server.start)
        starter.start()
        finished = patiently(lambda: ledger.finish(plan.plan_id, 1, succeeded(), events=[event()]), 60)
        starter.join()
        assert finished.accepted
        assert ledger.record(plan.plan_id).state == "succeeded"
        assert len(ledger.events(plan.plan_id)) == 1


def test_a_quick_restart_goes_unnoticed(new: Plans) -> None:
    with Server() as server, connect(server.url) as client:
        ledger = Ledger(client, SETTINGS)
        plan = new()
        ledger.submit(plan)
        server.restart()
        assert ledger.claim(plan.plan_id, "w") is not None
