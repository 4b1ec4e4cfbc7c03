"""Which names a job's files may have: confined to the job's folder, and the same file on every system."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from somatize_worker.errors import InvalidJob

OUTPUTS: Final = "outputs"

_MAX_PATH_BYTES: Final = 1_024
_MAX_PART_BYTES: Final = 255
_MAX_DEPTH: Final = 32
_MAX_ID_CHARS: Final = 128
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEVICES: Final = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|clock\$|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE
)
_OURS: Final = {
    OUTPUTS: "the job's results go into outputs/, and it starts empty",
    "somatize_worker": "that is this package's name",
    "somatize_worker.py": "that is this package's name",
}


def check_id(job_id: str) -> str:
    """The id, if it can be a file's name anywhere.

    Raises:
        InvalidJob: it cannot.
    """
    if (
        not _ID.fullmatch(job_id)
        or len(job_id) > _MAX_ID_CHARS
        or job_id.endswith(".")
        or ".." in job_id
        or _DEVICES.fullmatch(job_id)
    ):
        raise InvalidJob(
            f"the job id {job_id[:200]!r} cannot be a file's name: use letters, digits, `-`, `_` and single dots, "
            f"at most {_MAX_ID_CHARS}",
            job_id=job_id[:200],
        )
    return job_id


def check_path(path: str) -> str:
    """The path of one of a job's files, relative to the job's folder, with ``/`` between its parts.

    Raises:
        InvalidJob: it leaves the folder, or is not the same file everywhere; the message names it.
    """
    if not path:
        raise _refused(path, "it is empty")
    if "\0" in path or any(unicodedata.category(char) in ("Cc", "Cs") for char in path):
        raise _refused(path, "it holds a character that a file's name cannot have")
    if "\\" in path or ":" in path:
        raise _refused(path, "`\\` and `:` mean different things on different systems; put `/` between folders")
    if path.startswith("/"):
        raise _refused(path, "it is absolute; give it relative to the job's folder")
    parts = path.split("/")
    if len(path.encode()) > _MAX_PATH_BYTES or len(parts) > _MAX_DEPTH:
        raise _refused(path, f"it is too long: at most {_MAX_PATH_BYTES} bytes and {_MAX_DEPTH} parts")
    for part in parts:
        _check_part(path, part)
    ours = _OURS.get(_folded(parts[0]))
    if ours:
        raise _refused(path, ours)
    return path


def check_together(paths: Iterable[str]) -> None:
    """That no two paths are one file on a system that ignores case, and that none is a file and a folder.

    Raises:
        InvalidJob: two that collide; the message names both.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        name = _folded(path)
        if name in files:
            raise _refused(path, f"it is the same file as {files[name]!r} (names that differ only in case are one)")
        files[name] = path
        parts = name.split("/")
        folders.update({"/".join(parts[:depth]): path for depth in range(1, len(parts))})
    for name, path in files.items():
        if name in folders:
            raise _refused(path, f"it is a file and, in {folders[name]!r}, a folder")


def _check_part(path: str, part: str) -> None:
    if part in ("", ".", ".."):
        raise _refused(path, f"it has the part {part!r}; write it without `.`, `..` and doubled or trailing `/`")
    if part[-1] in ". " or part[0] == " ":
        raise _refused(path, "a name that begins with a space or ends with a dot or a space is not kept everywhere")
    if len(part.encode()) > _MAX_PART_BYTES:
        raise _refused(path, f"a name in it is longer than {_MAX_PART_BYTES} bytes")
    if _DEVICES.fullmatch(part):
        raise _refused(path, f"{part!r} is a device, not a file, on some systems")


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _refused(path: str, why: str) -> InvalidJob:
    shown = path if len(path) <= 200 else f"{path[:200]}…"
    return InvalidJob(f"the job's file {shown!r} is refused: {why}", path=shown)
