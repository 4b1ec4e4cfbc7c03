"""What a job left under ``outputs/``: each regular file goes to the data store as bytes, in small parts.

The folder was the job's to do with as it liked, so nothing in it is trusted: links are not followed, special files
not opened, and a file that the job had linked elsewhere is copied rather than taken over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from somatize_worker.errors import StoreError
from somatize_worker.packing import Reference
from somatize_worker.ports import DataStore
from somatize_worker.settings import Settings
from somatize_worker.stores.disk import new_file
from somatize_worker.stores.formats import new_name

_PART_BYTES: Final = 1 << 20
_MAX_NAME_CHARS: Final = 1_024


@dataclass
class Collected:
    """The files by their path under ``outputs/``, and a line about each thing that was left there."""

    files: dict[str, Reference] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def collect(folder: Path, store: DataStore, settings: Settings) -> Collected:
    """Move what the folder holds into the store. All processes of the job must have ended.

    Raises:
        StoreError: more or larger files than the settings allow, or the store cannot take them. What it took already
            is removed from it.
    """
    collected = Collected()
    if folder.is_symlink():
        collected.notes.append("outputs/ was replaced by a link, which is not followed")
        return collected
    try:
        _check_size(folder, settings)
        for path, name, folder_fd in _files(folder, collected.notes):
            collected.files[path] = _store_file(name, folder_fd, store)
    except BaseException as error:
        for reference in collected.files.values():
            store.delete(reference)
        if isinstance(error, (OSError, RecursionError)):
            raise StoreError(f"the job's outputs cannot be read: {error}") from error
        raise
    return collected


def _files(folder: Path, notes: list[str]) -> Iterator[tuple[str, str, int]]:
    """Regular files, as (path under the folder, name, descriptor of the folder that holds it)."""

    def unreadable(error: OSError) -> None:
        notes.append(f"outputs/{_shown(str(error.filename))} was not collected: {error.strerror}")

    for parent, folders, names, folder_fd in os.fwalk(folder, onerror=unreadable, follow_symlinks=False):
        folders.sort()
        inside = os.path.relpath(parent, folder)
        for name in sorted(names):
            path = name if inside == "." else f"{inside}/{name}"
            mode = os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode
            if not stat.S_ISREG(mode):
                kind = "a link" if stat.S_ISLNK(mode) else "no ordinary file"
                notes.append(f"outputs/{_shown(path)} was not collected: it is {kind}")
            elif _shown(path) != path or len(path) > _MAX_NAME_CHARS:
                notes.append(f"outputs/{_shown(path)} was not collected: its name is not text")
            else:
                yield path, name, folder_fd
        for name in list(folders):
            if stat.S_ISLNK(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode):
                path = name if inside == "." else f"{inside}/{name}"
                notes.append(f"outputs/{_shown(path)} was not collected: it is a link")


def _check_size(folder: Path, settings: Settings) -> None:
    count = size = 0
    for _, name, folder_fd in _files(folder, []):
        count += 1
        size += os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_size
    if count > settings.job_outputs_limit:
        raise StoreError(
            f"the job left {count} files under outputs/, {settings.job_outputs_limit} are allowed "
            "(SOMA_JOB_OUTPUTS_LIMIT); pack them into an archive"
        )
    if size > settings.job_outputs_limit_bytes:
        raise StoreError(
            f"the job left {size} bytes under outputs/, {settings.job_outputs_limit_bytes} are allowed "
            "(SOMA_JOB_OUTPUTS_LIMIT_BYTES)"
        )


def _store_file(name: str, folder_fd: int, store: DataStore) -> Reference:
    """Move the file into the store's workspace where that is one rename, else copy it there; the store adopts it."""
    target = Path(f"{store.workspace() / new_name()}.bin")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _moved(name, folder_fd, target):
        _copy(name, folder_fd, target)
    try:
        return store.adopt(target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _moved(name: str, folder_fd: int, target: Path) -> bool:
    status = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    if status.st_nlink != 1 or status.st_uid != os.getuid() or status.st_dev != os.stat(target.parent).st_dev:
        return False
    os.chmod(name, 0o600, dir_fd=folder_fd)
    try:
        os.rename(name, target, src_dir_fd=folder_fd)
    except OSError:  # one device, and still two file systems to a rename (a bind mount)
        return False
    return True


def _copy(name: str, folder_fd: int, target: Path) -> None:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    with open(descriptor, "rb", buffering=0) as source, new_file(target, os.fstat(descriptor).st_size) as append:
        while part := source.read(_PART_BYTES):
            append(part)


def _shown(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
