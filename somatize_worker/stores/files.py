"""The shared folder: ordinary files, opened in place by whoever needs them.

    <root>/.soma-store                         an id, by which a worker proves that the folder is the cluster's
    <root>/ab/abcd….npy                        a value, under a random name: ``Local{path}``
    <root>/cache/0f/0f0f….npy                  a value under its content key: ``Cached{cache_key}``
    <root>/**/.….tmp                           a file being written

Every other file below the root can be read as ``Local{path}`` too, and is never removed by :meth:`FileStore.sweep`.
An entry's modification time is the time of its last use.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from somatize_worker.errors import MissingData, StoreError, StoreMismatch
from somatize_worker.packing import Reference
from somatize_worker.ports import TensorInfo
from somatize_worker.settings import Settings
from somatize_worker.stores import formats
from somatize_worker.stores.disk import (
    FOLDER_MODE,
    TEMPORARY_SUFFIX,
    inside,
    make_folder,
    new_file,
    real_inside,
    writing,
)
from somatize_worker.stores.references import cached, checked_key, field, refuse, text

MARKER: Final = ".soma-store"
_MARKER_WAIT_S: Final = 5.0
_TOUCH_EVERY_S: Final = 3600.0
_STALE_TEMPORARY_S: Final = 900.0
"""A temporary file that nobody wrote to for so long has lost its writer (one that lives writes all the time)."""
_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_NOT_OURS: Final = {errno.EPERM, errno.EACCES, errno.EROFS}
"""Another user's file, or a folder mounted for reading: it expires as if unused."""
_SUFFIX: Final = r"\.(npy|json|bin|msgpack)"
_SHARD: Final = re.compile(r"[0-9a-f]{2}")
_ENTRY: Final = re.compile(rf"([0-9a-f]{{32}}|[0-9a-f]{{64}}){_SUFFIX}")


class FileStore:
    """A :class:`~somatize_worker.ports.DataStore` in a folder that all machines of the cluster share.

    Args:
        root: the folder; made, for this user alone, if it is not there.
        settings: ``data_ttl_s`` is how long an entry is kept after its last use.

    Raises:
        StoreError: the folder cannot be made or used.
    """

    def __init__(self, root: Path | str, settings: Settings) -> None:
        make_folder(Path(root))
        self.root = Path(os.path.realpath(root))
        self.url = f"file://{self.root}"
        self._ttl_s = settings.data_ttl_s
        self._touch_every_s = min(_TOUCH_EVERY_S, self._ttl_s / 4)

    # ── values ───────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, value: Any, *, key: bytes | None = None) -> Reference:
        """See :class:`~somatize_worker.ports.DataStore`."""
        if key is None:
            path = formats.write(self.root / formats.new_name(), value)
            return self._local(path)
        key = checked_key(key)
        if self._entry(key) is None:
            formats.write(self._cache_path(key), value)
        return cached(key)

    def get(self, reference: Reference) -> Any:
        """See :class:`~somatize_worker.ports.DataStore`."""
        if reference.type == "Inline":
            return field(reference, "value")
        path = self._used(reference)
        try:
            return formats.read(path)
        except MissingData as error:  # removed since we looked
            raise self._missing(reference) from error

    def find(self, key: bytes) -> Reference | None:
        """See :class:`~somatize_worker.ports.DataStore`. Finding counts as use."""
        path = self._entry(checked_key(key))
        return None if path is None else cached(checked_key(key))

    def info(self, reference: Reference) -> TensorInfo:
        """See :class:`~somatize_worker.ports.DataStore`."""
        if reference.type == "Inline":
            return formats.info_of(field(reference, "value"))
        return formats.info(self._used(reference))

    def rows(self, reference: Reference, start: int, stop: int) -> Any:
        """See :class:`~somatize_worker.ports.DataStore`."""
        if reference.type == "Inline":
            return formats.rows_of(field(reference, "value"), start, stop)
        return formats.rows(self._used(reference), start, stop)

    def delete(self, reference: Reference) -> None:
        """See :class:`~somatize_worker.ports.DataStore`. Arrays that are in use stay valid."""
        path = None if reference.type == "Inline" else self._path(reference)
        if path is not None:
            path.unlink(missing_ok=True)

    def fetch(self, reference: Reference, folder: Path) -> Path:
        """The store's own file; only an ``Inline`` value is written to ``folder``."""
        if reference.type == "Inline":
            return formats.write(folder / formats.new_name(), field(reference, "value"))
        return self._used(reference)

    def adopt(self, path: Path, *, key: bytes | None = None) -> Reference:
        """See :class:`~somatize_worker.ports.DataStore`. A file that has an entry's name already stays in place.

        Raises:
            UnsafePath: the file is not below the store's folder.
        """
        path = real_inside(self.root, path)
        formats.check_suffix(path)
        if key is not None:
            key = checked_key(key)
            if self._entry(key) is None:
                self._move(path, self._cache_path(key))
            else:
                path.unlink(missing_ok=True)
            return cached(key)
        if not (self._is_entry(path) and path.is_file()):
            path = self._move(path, self.root / formats.new_name())
        return self._local(path)

    def workspace(self) -> Path:
        """The store's folder itself: what is written under :func:`formats.new_name` there is an entry already."""
        return self.root

    # ── expiry ───────────────────────────────────────────────────────────────────────────────────────────────────

    def sweep(self) -> int:
        """See :class:`~somatize_worker.ports.DataStore`. Several may sweep at the same time."""
        now = time.time()
        removed = 0
        for entry in self._own_files():
            ttl_s = _STALE_TEMPORARY_S if entry.name.endswith(TEMPORARY_SUFFIX) else self._ttl_s
            with suppress(FileNotFoundError):  # somebody else was quicker
                if now - entry.stat(follow_symlinks=False).st_mtime > ttl_s:
                    os.unlink(entry.path)
                    removed += 1
        return removed

    def _own_files(self) -> Iterator[os.DirEntry[str]]:
        """Every entry and temporary file, and nothing that a user put into the folder."""
        folders = [self.root]
        for parent in (self.root, self.root / "cache"):
            with suppress(FileNotFoundError), os.scandir(parent) as items:
                folders += [Path(item.path) for item in items if _SHARD.fullmatch(item.name) and item.is_dir()]
        for folder in folders:
            with suppress(FileNotFoundError), os.scandir(folder) as items:
                for item in items:
                    temporary = item.name.startswith(".") and item.name.endswith(TEMPORARY_SUFFIX)
                    if temporary or (folder != self.root and _ENTRY.fullmatch(item.name)):
                        yield item

    # ── the marker ───────────────────────────────────────────────────────────────────────────────────────────────

    def marker(self) -> str:
        """The folder's id: made once, the same for everybody who sees this folder.

        Raises:
            StoreError: the folder is not writable, or its marker is empty.
        """
        path = self.root / MARKER
        deadline = time.monotonic() + _MARKER_WAIT_S
        while True:
            with suppress(FileNotFoundError):
                found = path.read_text(encoding="ascii").strip()
                if found:
                    return found
                if time.monotonic() > deadline:
                    raise StoreError(f"{path} is empty: whoever made it was interrupted; remove it", path=str(path))
                time.sleep(0.01)  # being written on a filesystem without hard links
                continue
            self._make_marker(path)

    def _make_marker(self, path: Path) -> None:
        """Make the marker unless somebody else does: complete from the first moment, where hard links exist."""
        content = f"{secrets.token_hex(16)}\n".encode()
        complete = path.with_name(f".{secrets.token_hex(16)}{TEMPORARY_SUFFIX}")
        try:
            with new_file(complete, len(content)) as append:
                append(content)
            with writing(self.root, len(content)), suppress(FileExistsError):
                self._link(complete, path)
        finally:
            complete.unlink(missing_ok=True)

    @staticmethod
    def _link(complete: Path, path: Path) -> None:
        try:
            os.link(complete, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with path.open("xb") as file:
                file.write(complete.read_bytes())

    def check_marker(self, expected: str | None) -> str:
        """The marker, if it is the cluster's; with None any is (nobody has said yet which one).

        Raises:
            StoreMismatch: this folder is another one.
        """
        found = self.marker()
        if expected is not None and found != expected:
            raise StoreMismatch(
                f"the folder {self.root} is not the one that the cluster keeps its data in (its marker is {found}, the "
                f"cluster's {expected}): mount the shared folder here and name it in SOMA_STORE=file:///… , or give "
                "every worker and client SOMA_STORE=redis if the machines share no folder",
                root=str(self.root),
                found=found,
                expected=expected,
            )
        return found

    # ── paths ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _local(self, path: Path) -> Reference:
        return Reference(type="Local", path=path.relative_to(self.root).as_posix())

    def _cache_path(self, key: bytes) -> Path:
        name = key.hex()
        return self.root / f"cache/{name[:2]}/{name}"

    def _entry(self, key: bytes) -> Path | None:
        """The file under a content key, marked as used."""
        base = str(self._cache_path(key))
        found = (base + suffix for suffix in formats.SUFFIXES if self._touch(base + suffix))
        return next(map(Path, found), None)

    def _path(self, reference: Reference) -> Path | None:
        """Where a reference leads; None when nothing lies under its key."""
        if reference.type == "Local":
            return inside(self.root, str(field(reference, "path")))
        if reference.type == "Cached":
            return self._entry(checked_key(field(reference, "cache_key")))
        refuse(reference, self.url)

    def _used(self, reference: Reference) -> Path:
        path = self._path(reference)
        if path is None or (reference.type == "Local" and not self._touch(path, ours=self._is_entry(path))):
            raise self._missing(reference)
        return path

    def _is_entry(self, path: Path) -> bool:
        named = _SHARD.fullmatch(path.parent.name) and _ENTRY.fullmatch(path.name)
        return path.parent.parent == self.root and named is not None

    def _touch(self, path: Path | str, *, ours: bool = True) -> bool:
        """Whether a file is there; note that it is used, at most once an hour, if it is an entry of ours."""
        try:
            if time.time() - os.stat(path).st_mtime > self._touch_every_s and ours:
                os.utime(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
        return True

    def _move(self, path: Path, target_without_suffix: Path) -> Path:
        target = Path(f"{target_without_suffix}{path.suffix}")
        try:
            with writing(target.parent, 0):
                target.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
                os.rename(path, target)
        except FileNotFoundError as error:
            raise MissingData(f"there is no file {path} to take over: it was never written", path=str(path)) from error
        return target

    def _missing(self, reference: Reference) -> MissingData:
        return MissingData(
            f"no data behind {text(reference)} in {self.root}: it has expired ({self._ttl_s:g} s after its last use, "
            "SOMA_DATA_TTL_S), was deleted, or was written to another store (is SOMA_STORE the same shared folder on "
            "every machine?); submit the data again",
            reference=repr(reference),
            store=self.url,
        )
