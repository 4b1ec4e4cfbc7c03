"""What only the shared folder has: paths, its marker, files of others."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from somatize_worker.errors import MissingData, StoreError, StoreMismatch, UnsafePath
from somatize_worker.packing import Reference
from somatize_worker.settings import Settings
from somatize_worker.stores import formats
from somatize_worker.stores.files import MARKER, FileStore
from tests.integration.stores.support import TTL_S, Case, file_case, local

UNSAFE = [
    "/etc/passwd", "../secret.npy", "ab/../../secret.npy", "..", "ab/..", "", "/", "a\0b.npy", "..\\secret.npy",
    "link.npy", "folder/secret.npy", "folder", "loop/x.npy", "a" * 5_000, "x/" * 600 + "y.npy",
]  # fmt: skip


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return file_case(tmp_path / "store")


@pytest.fixture
def store(case: Case) -> FileStore:
    assert isinstance(case.store, FileStore)
    return case.store


@pytest.mark.parametrize("path", UNSAFE)
def test_paths_that_leave_the_folder(store: FileStore, tmp_path: Path, path: str) -> None:
    secret = formats.write(tmp_path / "secret", 1)
    (store.root / "link.npy").symlink_to(secret)
    (store.root / "folder").symlink_to(tmp_path)
    (store.root / "loop").symlink_to("loop")
    for ask in (
        store.get,
        store.info,
        store.delete,
        lambda reference: store.rows(reference, 0, 1),
        lambda reference: store.fetch(reference, tmp_path),
    ):
        with pytest.raises(UnsafePath, match="not a path below"):
            ask(local(path))
    assert secret.exists()


def test_a_root_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = FileStore(tmp_path / "link", Settings())
    path = formats.write(tmp_path / "link" / "ab" / "x", [1])
    assert store.get(store.adopt(path)) == [1]
    assert store.get(store.put([2])) == [2]


def test_entries_are_where_the_documentation_says(store: FileStore) -> None:
    path = store.put(np.zeros(3)).fields["path"]
    assert path == Reference(type="Local", path=path).fields["path"]
    assert len(path) == len("ab/") + 32 + len(".npy")
    assert path[:2] == path[3:5]
    assert (store.root / path).is_file()
    store.put({"a": 1}, key=bytes(32))
    assert (store.root / "cache" / "00" / f"{'00' * 32}.json").is_file()


def test_files_that_users_put_there(store: FileStore, tmp_path: Path) -> None:
    (store.root / "datasets").mkdir()
    np.save(store.root / "datasets" / "train.npy", np.arange(12.0).reshape(4, 3))
    (store.root / "notes.json").write_text("[1]")
    (store.root / "same.npy").symlink_to("datasets/train.npy")
    assert store.get(local("datasets/train.npy")).shape == (4, 3)
    assert store.get(local("./datasets//train.npy")).shape == (4, 3)
    assert store.rows(local("same.npy"), 1, 2).tolist() == [[3, 4, 5]]
    assert store.info(local("datasets/train.npy")).total_rows == 4
    assert store.get(local("notes.json")) == [1]
    for path in store.root.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    assert store.sweep() == 0
    store.get(local("notes.json"))
    assert (store.root / "notes.json").stat().st_mtime == 1, "theirs to change"
    (store.root / "table.csv").write_text("a,b")
    with pytest.raises(StoreError, match="known formats"):
        store.get(local("table.csv"))


def test_entries_of_the_folder_itself_are_adopted_in_place(store: FileStore) -> None:
    path = formats.write(store.workspace() / formats.new_name(), np.zeros(3))
    assert store.adopt(path) == local(str(path.relative_to(store.root)))
    assert path.exists()


def test_other_files_get_an_entry_s_name(store: FileStore) -> None:
    path = formats.write(store.workspace() / "odd name", np.zeros(3))
    reference = store.adopt(path)
    assert not path.exists()
    assert store.get(reference).shape == (3,)


def test_a_fetched_file_is_the_store_s_own(store: FileStore, tmp_path: Path) -> None:
    reference = store.put(np.zeros(3))
    assert store.fetch(reference, tmp_path / "elsewhere") == store.root / reference.fields["path"]


def test_reading_touches_at_most_once_an_hour(store: FileStore) -> None:
    reference = store.put([1])
    path = store.root / reference.fields["path"]
    for age_s, touched in ((3_000, False), (4_000, True)):
        then = time.time() - age_s
        os.utime(path, (then, then))
        store.get(reference)
        assert (path.stat().st_mtime > then + 1) == touched


def test_data_that_live_shortly_are_touched_more_often(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store", Settings(data_ttl_s=100))
    reference = store.put([1])
    path = store.root / reference.fields["path"]
    then = time.time() - 30
    os.utime(path, (then, then))
    store.get(reference)
    assert path.stat().st_mtime > then + 1


def test_sweeping_counts_what_goes(store: FileStore, case: Case) -> None:
    store.put([1])
    store.put([2], key=bytes(32))
    formats.write(store.root / "notes", "mine")
    (store.root / "ab").mkdir(exist_ok=True)
    for name in (f"ab/.{'0' * 32}.tmp", f".{'1' * 32}.tmp"):
        (store.root / name).write_bytes(b"x")
    store.marker()
    case.age(TTL_S + 10)
    assert store.sweep() == 4
    assert case.raw() == {"notes.json", MARKER}
    assert store.sweep() == 0


def test_data_of_the_other_kind_of_store(store: FileStore) -> None:
    with pytest.raises(MissingData, match="SOMA_STORE"):
        store.get(Reference(type="Cached", cache_key=os.urandom(32)))


# ── the marker ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_marker_is_made_once(store: FileStore) -> None:
    first = store.marker()
    assert len(first) == 32
    assert store.marker() == first == FileStore(store.root, Settings()).marker()
    assert (store.root / MARKER).read_text().strip() == first
    assert (store.root / MARKER).stat().st_mode & 0o777 == 0o600


def test_many_processes_agree_on_the_marker(case: Case) -> None:
    children = [case.child("marker") for _ in range(5)]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    answers = [json.loads(child.communicate("go\n")[0]) for child in children]
    assert len(set(answers)) == 1
    assert case.raw() == {MARKER}


def test_checking_the_marker(store: FileStore, tmp_path: Path) -> None:
    other = FileStore(tmp_path / "other", Settings())
    assert store.check_marker(None) == store.check_marker(store.marker()) == store.marker()
    with pytest.raises(StoreMismatch, match=r"mount the shared folder.*SOMA_STORE=redis") as caught:
        other.check_marker(store.marker())
    assert str(other.root) in str(caught.value)


def test_a_folder_without_hard_links(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # what FUSE and exFAT answer

    monkeypatch.setattr(os, "link", link)
    assert store.marker() == store.marker()
    assert (store.root / MARKER).exists()


def test_a_marker_left_empty_by_a_crash(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("somatize_worker.stores.files._MARKER_WAIT_S", 0.05)
    (store.root / MARKER).touch()
    with pytest.raises(StoreError, match=r"is empty.*remove it"):
        store.marker()
