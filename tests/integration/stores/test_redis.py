"""What only the server's store has: parts, eviction, an unreachable server, a workspace."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from somatize_worker.errors import MissingData, ServerUnreachable, StoreError, StoreMismatch
from somatize_worker.packing import Reference
from somatize_worker.settings import Settings
from somatize_worker.stores import formats
from somatize_worker.stores.redis import PART_BYTES, RedisStore
from tests.integration.stores.support import PREFIX, Case, local, server_case
from tests.support.server import Server

KEY = bytes(range(32))
NAME = f"{PREFIX}{KEY.hex()}"
REFERENCE = Reference(type="Cached", cache_key=KEY)
TABLE = np.arange(2_000.0).reshape(200, 10)


@pytest.fixture
def case(data_url: str) -> Case:
    return server_case(data_url, part_bytes=1_000)


@pytest.fixture
def client(data_url: str) -> redis.Redis:
    return redis.Redis.from_url(data_url)


def test_a_value_of_several_parts_has_that_many_keys(case: Case) -> None:
    case.store.put(TABLE, key=KEY)
    parts = case.raw() - {NAME}
    assert len(parts) == 16
    assert {name.split(":")[-1] for name in parts} == {str(number) for number in range(16)}
    assert all(name.startswith(f"{NAME}:") for name in parts)


def test_parts_outlive_their_head(case: Case, client: redis.Redis) -> None:
    case.store.put(TABLE, key=KEY)
    for use in (lambda: None, lambda: case.store.get(REFERENCE), lambda: case.store.info(REFERENCE)):
        use()
        assert all(client.pttl(name) > client.pttl(NAME) for name in case.raw() - {NAME})


def test_a_value_as_large_as_parts_are_in_use(data_url: str) -> None:
    case = server_case(data_url)
    border = PART_BYTES // 800
    array = np.random.default_rng(1).random((3 * border, 100))
    reference = case.store.put(array)
    assert len(case.raw()) == 4
    assert np.array_equal(case.store.get(reference), array)
    assert np.array_equal(case.store.rows(reference, border - 5, border + 5), array[border - 5 : border + 5])


def test_rows_move_only_their_bytes(case: Case, client: redis.Redis) -> None:
    reference = case.store.put(np.zeros((10_000, 10)))
    before = client.info("stats")["total_net_output_bytes"]
    case.store.rows(reference, 5_000, 5_010)
    assert client.info("stats")["total_net_output_bytes"] - before < 30_000


def test_an_evicted_part_is_missing_data_and_the_value_can_be_put_again(case: Case, client: redis.Redis) -> None:
    for ask in (
        lambda: case.store.get(REFERENCE),
        lambda: case.store.rows(REFERENCE, 0, 1),
        lambda: case.store.info(REFERENCE),
    ):
        case.store.put(TABLE, key=KEY)
        client.delete(next(iter(case.raw() - {NAME})))
        with pytest.raises(MissingData, match="evicted"):
            ask()
        assert case.raw() == set()
    case.store.put(TABLE, key=KEY)
    client.delete(next(iter(case.raw() - {NAME})))
    case.store.put(TABLE, key=KEY)
    assert np.array_equal(case.store.get(REFERENCE), TABLE)


def test_keys_of_something_else_are_an_error(case: Case, client: redis.Redis) -> None:
    client.set(NAME, b"something else")
    for ask in (lambda: case.store.get(REFERENCE), lambda: case.store.find(KEY), lambda: case.store.delete(REFERENCE)):
        with pytest.raises(StoreError, match="cannot be read"):
            ask()
    client.delete(NAME)
    client.lpush(NAME, b"a list")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        case.store.get(REFERENCE)


def test_a_damaged_value_is_an_error(case: Case, client: redis.Redis) -> None:
    case.store.put(np.arange(10.0), key=KEY)
    client.setrange(NAME, 64, b"what is this")
    for ask in (lambda: case.store.get(REFERENCE), lambda: case.store.info(REFERENCE)):
        with pytest.raises(StoreError, match=KEY.hex()):
            ask()


def test_data_of_a_shared_folder(case: Case, tmp_path: Path) -> None:
    for ask in (
        case.store.get,
        case.store.info,
        case.store.delete,
        lambda reference: case.store.fetch(reference, tmp_path),
    ):
        with pytest.raises(StoreMismatch, match=r"shared folder.*SOMA_STORE=file:///"):
            ask(local("ab/x.npy"))


def test_an_unreachable_server() -> None:
    store = RedisStore(redis.Redis(port=1, retry=Retry(NoBackoff(), 0)), Settings())
    for ask in (lambda: store.put(1), lambda: store.get(REFERENCE), lambda: store.find(KEY)):
        with pytest.raises(ServerUnreachable, match="SOMA_REDIS_URL"):
            ask()


def test_the_server_goes_away_in_the_middle() -> None:
    with Server() as server:
        store = RedisStore(server.client(retry=None), Settings())
        reference = store.put(np.zeros(3 * PART_BYTES // 8))
        server.stop(kill=True)
        with pytest.raises(ServerUnreachable):
            store.get(reference)
        with pytest.raises(ServerUnreachable):
            store.put(np.zeros(3 * PART_BYTES // 8))
        server.start()
        assert store.get(reference).nbytes == 3 * PART_BYTES


def test_a_fetched_copy_is_used_again(case: Case, tmp_path: Path) -> None:
    case.store.put(TABLE, key=KEY)
    path = case.store.fetch(REFERENCE, tmp_path)
    made = path.stat().st_ino
    os.utime(path, (1, 1))
    assert case.store.fetch(REFERENCE, tmp_path) == path
    assert path.stat().st_ino == made
    assert path.stat().st_mtime > 1
    case.store.delete(REFERENCE)
    with pytest.raises(MissingData):
        case.store.fetch(REFERENCE, tmp_path)


# ── the workspace ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_process_that_ends_removes_its_workspace(case: Case) -> None:
    assert not Path(case.ask("end_with_a_workspace")).exists()


def test_the_workspace_of_a_killed_process_is_swept(case: Case) -> None:
    with case.child("crash_with_a_workspace") as child:
        assert child.stdout is not None
        folder = Path(child.stdout.readline().strip().strip('"'))
        case.store.sweep()
        assert len(list(folder.rglob("*.npy"))) == 1, "it lives"
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert folder.exists()
    assert case.store.sweep() >= 1
    assert not folder.exists()


def test_the_workspace_keeps_what_is_in_use(case: Case) -> None:
    folder = case.store.workspace()
    written = formats.write(folder / formats.new_name(), TABLE)
    fetched = case.store.fetch(case.store.put(TABLE), folder)
    for age_s, left in ((800, {written, fetched}), (1_000, {written}), (200_000, set())):
        then = time.time() - age_s
        for path in (written, fetched):
            if path.exists():
                os.utime(path, (then, then))
        case.store.sweep()
        assert {path for path in (written, fetched) if path.exists()} == left
    assert case.store.workspace() == folder
    assert folder.exists()


def test_a_store_that_is_dropped_removes_its_workspace(data_url: str) -> None:
    case = server_case(data_url)
    folder = case.store.workspace()
    assert folder.stat().st_mode & 0o777 == 0o700
    del case
    assert not folder.exists()
