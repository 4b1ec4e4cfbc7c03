"""What decides what is in an environment, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import Final

from somatize_worker import requirements as lines
from somatize_worker.errors import EnvironmentFailed
from somatize_worker.hosts import uv
from somatize_worker.settings import inherited

KEY_CHARS: Final = 32


def with_base(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Requirements with what a filter host itself needs; a version that the user asks for stands.

    cloudpickle reads reliably only what the same version wrote, so it is the worker's.
    """
    base = {
        "cloudpickle": f"cloudpickle=={version('cloudpickle')}",
        "msgpack": "msgpack>=1.0.5",
        "numpy": "numpy>=1.26",
    }
    mentioned = lines.names(wanted)
    return tuple(sorted({*wanted, *(line for name, line in base.items() if name not in mentioned)}))


def environment_key(wanted: tuple[str, ...], index_url: str = "") -> str:
    """The name of the environment for normalised requirements: a hash of all that decides what is in it.

    That is the requirements, the content of local paths among them, the interpreter (implementation, version, where
    it lies), the platform and the package index.
    """
    parts = {
        "requirements": wanted,
        "content": {line: _fingerprint(path) for line in wanted if (path := lines.local_path(line))},
        "python": [sys.implementation.name, platform.python_version(), os.path.realpath(sys.base_prefix)],
        "platform": [sysconfig.get_platform(), *platform.libc_ver()],
        "index": index_url or sorted(inherited(*uv.INDEX_VARIABLES).items()),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:KEY_CHARS]


def _fingerprint(path: Path) -> str:
    """Changes when the file, or any file in the folder, changes."""
    if not path.exists():
        raise EnvironmentFailed(
            f"the requirement {path} is not on this worker's machine: put it there, or name a package"
        )
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            status = file.lstat()
            digest.update(f"{file.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    else:
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256")
    return digest.hexdigest()
