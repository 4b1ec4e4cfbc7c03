"""Where a local cluster keeps its data: in folders that go with it, or in one in which it finds them again."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from somatize_worker import orphan
from somatize_worker.errors import ServerUnreachable, SomaError
from somatize_worker.server import EmbeddedServer

_FREE_WITHIN_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.05


class TemporaryFolders:
    """Folders for one cluster, removed by a process that sees to it whatever happens to this one."""

    def __init__(self) -> None:
        name = f"soma-cluster-{os.getpid()}-{secrets.token_hex(4)}"
        shared = Path("/dev/shm")
        self.disk = Path(tempfile.gettempdir()) / name
        self.memory = shared / name if shared.is_dir() and os.access(shared, os.W_OK) else self.disk
        folders = {self.disk, self.memory}
        self._remover = subprocess.Popen(
            [sys.executable, "-I", "-S", orphan.__file__, "--remove", *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # who reads our output until it ends need not wait for this one
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        for folder in folders:  # only now, so that there is no moment at which they would be left behind
            folder.mkdir(mode=0o700)

    def remove(self) -> None:
        self._remover.communicate(b".")  # nobody uses them any more


class KeptFolder:
    """A folder with the data of a cluster that comes back; of one cluster at a time.

    Raises:
        SomaError: another cluster runs there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise SomaError(f"another cluster runs in {folder}: stop it, or take another folder") from None

    def start_server(self, port: int) -> EmbeddedServer:
        """With the password of last time, on the port of last time unless one is given."""
        access = self._folder / "access.json"
        before = json.loads(access.read_text()) if access.exists() else {}
        server = EmbeddedServer(
            port=port or before.get("port", 0), password=before.get("password"), folder=self._folder / "server"
        )
        deadline = time.monotonic() + _FREE_WITHIN_S
        while True:
            try:
                server.start()
                break
            except ServerUnreachable:
                # A server whose owner was killed may still be writing its data down.
                if not before or time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_EVERY_S)
        with open(os.open(access, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            json.dump({"port": server.port, "password": server.password}, file)
        return server

    def close(self) -> None:
        os.close(self._lock)
