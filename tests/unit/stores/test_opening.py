"""From the setting to a store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from somatize_worker.errors import InvalidSettings, StoreError, UnsafePath
from somatize_worker.settings import Settings
from somatize_worker.stores import open_store
from somatize_worker.stores.disk import own_folder
from somatize_worker.stores.files import FileStore
from somatize_worker.stores.redis import RedisStore


def test_a_folder(tmp_path: Path) -> None:
    store = open_store(Settings(store=f"file://{tmp_path}/a%20b"))
    assert isinstance(store, FileStore)
    assert store.root == tmp_path / "a b"
    assert store.root.stat().st_mode & 0o777 == 0o700
    assert store.url == f"file://{tmp_path}/a b"


def test_the_default_is_a_folder_of_this_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("somatize_worker.settings.default_folder", lambda name: tmp_path / "soma" / name)
    monkeypatch.setattr("somatize_worker.stores.opening.default_folder", lambda name: tmp_path / "soma" / name)
    store = open_store(Settings())
    assert isinstance(store, FileStore)
    assert store.root == tmp_path / "soma" / "store"


def test_the_server_of_the_cluster() -> None:
    client = redis.Redis(port=1)
    store = open_store(Settings(store="redis"), client)
    assert isinstance(store, RedisStore)
    assert store.url == "redis"
    assert isinstance(open_store(Settings(store="redis", redis_url="redis://:secret@127.0.0.1:1/0")), RedisStore)


def test_another_server_is_named_without_its_password() -> None:
    store = open_store(Settings(store="redis://me:secret@data.example:6380/3?password=secret"))
    assert isinstance(store, RedisStore)
    assert store.url == "redis://data.example:6380/3"


@pytest.mark.parametrize(
    "url",
    ["s3://bucket", "/just/a/path", "file:relative", "file://host/path", "memcached", "redis:", "http://x", "file:"],
)
def test_what_is_no_store(url: str) -> None:
    with pytest.raises(InvalidSettings, match=r"known are file:///.*redis"):
        open_store(Settings(store=url))


def test_a_server_address_that_is_none() -> None:
    with pytest.raises(InvalidSettings, match="no server's address"):
        open_store(Settings(store="redis", redis_url="nonsense"))


def test_clients_must_return_bytes() -> None:
    with pytest.raises(InvalidSettings, match="decode_responses"):
        open_store(Settings(store="redis"), redis.Redis(port=1, decode_responses=True))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be made"):
        open_store(Settings(store=f"file://{tmp_path}/file/store"))


def test_a_default_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "soma").mkdir()
    os.chmod(tmp_path / "soma", 0o777)
    with pytest.raises(UnsafePath, match="other users"):
        own_folder(tmp_path / "soma" / "store")


def test_a_default_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    (tmp_path / "soma").symlink_to(tmp_path / "theirs")
    with pytest.raises(UnsafePath, match="other users"):
        own_folder(tmp_path / "soma" / "store")


@pytest.mark.parametrize("module", ["somatize_worker.stores.formats", "somatize_worker.stores.references"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('redis', 'pydantic', 'celery') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
