"""Scratch folders go away, checkpoints stay while they are needed, outputs go to the store and nothing else does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from somatize_worker.errors import MissingData, StoreError, StoreFull
from somatize_worker.jobs import scratch as scratches
from somatize_worker.jobs.checkpoints import Checkpoints
from somatize_worker.jobs.collecting import collect
from somatize_worker.jobs.launch import Cores
from somatize_worker.jobs.scratch import Scratch
from somatize_worker.packing import Reference
from somatize_worker.settings import Settings
from somatize_worker.stores.files import FileStore

SETTINGS = Settings()


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store", SETTINGS)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


@pytest.fixture
def far_store() -> Iterator[FileStore]:
    """A store on another file system than the temporary folder's, so that files are copied into it."""
    folder = Path("/dev/shm") / f"soma-test-{os.getpid()}-{time.monotonic_ns()}"
    yield FileStore(folder, SETTINGS)
    scratches.remove(folder)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# ── scratch ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_scratch_folder_is_gone_afterwards(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Scratch(tmp_path, "job1") as scratch:
        scratch.write("pkg/deep/train.py", b"x")
        assert (scratch.job / "pkg/deep/train.py").read_bytes() == b"x"
        assert scratch.outputs.is_dir()
        assert scratch.folder.stat().st_mode & 0o077 == 0
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_two_attempts_at_one_job_do_not_meet(tmp_path: Path) -> None:
    with Scratch(tmp_path, "job1") as one, Scratch(tmp_path, "job1") as other:
        assert one.folder != other.folder


def test_what_a_job_made_hard_to_remove_goes_too(tmp_path: Path) -> None:
    with Scratch(tmp_path, "job1") as scratch:
        locked = scratch.job / "locked"
        locked.mkdir()
        (locked / "file").write_text("x")
        locked.chmod(0o000)
        folder_fd = os.open(scratch.job, os.O_RDONLY)
        for _ in range(1_500):  # deeper than Python recurses, and than one path may be long
            os.mkdir("d" * 100, dir_fd=folder_fd)
            below = os.open("d" * 100, os.O_RDONLY, dir_fd=folder_fd)
            os.close(folder_fd)
            folder_fd = below
        os.close(folder_fd)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_takes_what_dead_workers_left_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from somatize_worker.jobs.scratch import Scratch\n"
        "scratch = Scratch(Path(sys.argv[1]), 'dead').__enter__(); scratch.write('a.py', b''); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False)
    assert len(list(tmp_path.glob("dead-*"))) == 2
    with Scratch(tmp_path, "alive") as alive:
        assert scratches.sweep(tmp_path) == 1
        assert alive.outputs.is_dir()
        assert list(tmp_path.glob("dead-*")) == []
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_must_be_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"soma-{os.getuid()}").symlink_to(elsewhere)
    with pytest.raises(Exception, match="SOMA_JOB_FOLDER"):
        scratches.root_folder(SETTINGS)


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_checkpoints_outlive_attempts_until_done(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ttl_s=1000)
    assert checkpoints.sweep() == 0
    checkpoints.path("job1").mkdir(parents=True)
    (checkpoints.path("job1") / "epoch3").write_text("weights")
    assert checkpoints.sweep() == 0
    assert (checkpoints.path("job1") / "epoch3").read_text() == "weights"
    checkpoints.done("job1")
    assert not checkpoints.path("job1").exists()
    checkpoints.done("job1")


def test_checkpoints_that_nobody_writes_to_expire(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ttl_s=1000)
    old = time.time() - 2000
    for name in ("stale", "fresh"):
        folder = checkpoints.path(name)
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
        os.utime(folder, (old, old))
    os.utime(checkpoints.path("stale") / "file", (old, old))
    assert checkpoints.sweep() == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["fresh"]


# ── outputs ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("which", ["store", "far_store"])
def test_files_come_back_as_bytes(which: str, outputs: Path, request: pytest.FixtureRequest) -> None:
    store: FileStore = request.getfixturevalue(which)
    (outputs / "a/b").mkdir(parents=True)
    contents = {"model.bin": os.urandom(3 << 20), "a/b/ünï.json": b'{"x": 1}', "a/empty": b""}
    for name, content in contents.items():
        (outputs / name).write_bytes(content)
    (outputs / "model.bin").chmod(0o755)
    collected = collect(outputs, store, SETTINGS)
    assert {name: store.get(reference) for name, reference in collected.files.items()} == contents
    assert collected.notes == []
    for reference in collected.files.values():
        assert store.fetch(reference, outputs).stat().st_mode & 0o777 == 0o600


def test_nothing_is_followed_or_opened_that_is_no_file(outputs: Path, store: FileStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    (outputs / "link").symlink_to(secret / "key")
    (outputs / "folder-link").symlink_to(secret)
    (outputs / "dangling").symlink_to("nowhere")
    os.mkfifo(outputs / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(outputs / "socket"))
    (outputs / "real").write_text("real")
    collected = collect(outputs, store, SETTINGS)
    assert list(collected.files) == ["real"]
    for name in ("link", "folder-link", "dangling"):
        assert f"outputs/{name} was not collected: it is a link" in collected.notes
    for name in ("pipe", "socket"):
        assert f"outputs/{name} was not collected: it is no ordinary file" in collected.notes
    assert b"secret" not in [path.read_bytes() for path in files_below(store.root)]


def test_a_folder_that_became_a_link_is_not_followed(tmp_path: Path, store: FileStore) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/key").write_text("secret")
    (tmp_path / "outputs").symlink_to(tmp_path / "real")
    collected = collect(tmp_path / "outputs", store, SETTINGS)
    assert collected.files == {}
    assert "link" in collected.notes[0]


def test_a_hard_link_is_copied_so_that_the_store_shares_no_file_with_others(
    outputs: Path, store: FileStore, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("before")
    os.link(outside, outputs / "linked")
    collected = collect(outputs, store, SETTINGS)
    outside.write_text("after")
    assert store.get(collected.files["linked"]) == b"before"


def test_names_that_are_no_text_are_left_with_a_note(outputs: Path, store: FileStore) -> None:
    (Path(os.fsdecode(os.fsencode(outputs) + b"/bad\xff"))).write_text("x")
    collected = collect(outputs, store, SETTINGS)
    assert collected.files == {}
    assert collected.notes == ["outputs/bad\\xff was not collected: its name is not text"]


def test_limits_refuse_everything(outputs: Path, store: FileStore) -> None:
    for name in "abc":
        (outputs / name).write_bytes(b"x" * 100)
    with pytest.raises(StoreError, match="SOMA_JOB_OUTPUTS_LIMIT\\)"):
        collect(outputs, store, Settings(job_outputs_limit=2))
    with pytest.raises(StoreError, match="300 bytes under outputs/, 299 are allowed"):
        collect(outputs, store, Settings(job_outputs_limit_bytes=299))
    assert files_below(store.root) == []


def test_a_store_that_fills_up_keeps_nothing(outputs: Path, tmp_path: Path) -> None:
    class Filling(FileStore):
        adopted = 0

        def adopt(self, path: Path, *, key: bytes | None = None) -> Reference:
            if self.adopted == 2:
                raise StoreFull("no room")
            self.adopted += 1
            return super().adopt(path, key=key)

    store = Filling(tmp_path / "store", SETTINGS)
    for name in "abc":
        (outputs / name).write_text(name)
    with pytest.raises(StoreFull):
        collect(outputs, store, SETTINGS)
    assert files_below(store.root) == []


def test_a_very_deep_tree_is_an_error_and_not_a_crash(outputs: Path, store: FileStore) -> None:
    folder_fd = os.open(outputs, os.O_RDONLY)
    for _ in range(2_000):
        os.mkdir("d", dir_fd=folder_fd)
        below = os.open("d", os.O_RDONLY, dir_fd=folder_fd)
        os.close(folder_fd)
        folder_fd = below
    os.close(folder_fd)
    try:
        with pytest.raises(StoreError, match="cannot be read"):
            collect(outputs, store, SETTINGS)
    finally:
        scratches.remove(outputs)


def test_deleted_references_are_gone(outputs: Path, store: FileStore) -> None:
    (outputs / "a").write_text("a")
    reference = collect(outputs, store, SETTINGS).files["a"]
    store.delete(reference)
    with pytest.raises(MissingData):
        store.get(reference)


# ── cores ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cores_are_shared_out_evenly() -> None:
    available = sorted(os.sched_getaffinity(0))
    with Cores(0).share() as free, Cores(len(available)).share() as all_of_them:
        assert free == all_of_them == []
    if len(available) < 2:
        pytest.skip("one core cannot be shared out")
    cores = Cores(1)
    with cores.share() as one, cores.share() as other:
        assert len(one) == len(other) == 1
        assert one != other
        with cores.share() as third:
            assert third in ([core] for core in available)
    with cores.share() as again:
        assert again == [available[0]]
