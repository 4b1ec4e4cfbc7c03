"""What the stores' tests share: each kind of store, seen from outside, in this process and in others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from somatize_worker.packing import Reference
from somatize_worker.ports import DataStore
from somatize_worker.settings import Settings
from somatize_worker.stores.files import FileStore
from somatize_worker.stores.redis import PART_BYTES, RedisStore

TTL_S = 100_000.0
PREFIX = "soma:data:"


def open_spec(spec: dict[str, Any]) -> DataStore:
    """The store that a spec describes; the spec is JSON, so that other processes can open the same one."""
    settings = Settings(data_ttl_s=TTL_S)
    if spec["kind"] == "files":
        return FileStore(spec["root"], settings)
    client = redis.Redis.from_url(spec["url"])
    return RedisStore(client, settings, part_bytes=spec.get("part_bytes", PART_BYTES))


@dataclass
class Case:
    """One store under test, with what only a look behind it can tell."""

    spec: dict[str, Any]
    store: DataStore
    raw: Callable[[], set[str]]
    """Everything that lies in it: names of files or keys, temporary ones too."""
    age: Callable[[float], None]
    """Make everything look as if it had been used that many seconds ago for the last time."""
    left_s: Callable[[], float]
    """The time until the first entry expires."""

    def child(self, action: str, *arguments: Any) -> subprocess.Popen[str]:
        """A process that does one of the actions of ``children.py`` with the same store."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.integration.stores.children", action, json.dumps([self.spec, *arguments])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )

    def ask(self, action: str, *arguments: Any) -> Any:
        """The answer of a process that does one action."""
        with self.child(action, *arguments) as process:
            out, _ = process.communicate(timeout=100)
        assert process.returncode == 0
        return json.loads(out)


def file_case(root: Path) -> Case:
    spec = {"kind": "files", "root": str(root)}

    def files() -> list[Path]:
        return [path for path in root.rglob("*") if path.is_file()]

    def age(seconds: float) -> None:
        for path in files():
            then = time.time() - seconds
            os.utime(path, (then, then))

    return Case(
        spec=spec,
        store=open_spec(spec),
        raw=lambda: {str(path.relative_to(root)) for path in files()},
        age=age,
        left_s=lambda: TTL_S - max(time.time() - path.stat().st_mtime for path in files()),
    )


def server_case(url: str, **options: Any) -> Case:
    spec = {"kind": "redis", "url": url, **options}
    client = redis.Redis.from_url(url)

    def keys() -> list[str]:
        return [key.decode() for key in client.scan_iter(f"{PREFIX}*", count=1000)]

    def age(seconds: float) -> None:
        for key in keys():
            client.pexpire(key, int((TTL_S - seconds) * 1000))  # below zero: at once

    return Case(
        spec=spec,
        store=open_spec(spec),
        raw=lambda: set(keys()),
        age=age,
        left_s=lambda: min(int(client.pttl(key)) for key in keys()) / 1000,
    )


def local(path: str) -> Reference:
    return Reference(type="Local", path=path)
