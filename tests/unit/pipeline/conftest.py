"""The user's package, importable here and nowhere else."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SUPPORT = ROOT / "tests" / "support"


@pytest.fixture
def filters() -> Iterator[Any]:
    """The module ``userpkg.filters``; the package is importable during the test."""
    sys.path.insert(0, str(SUPPORT))
    yield importlib.import_module("userpkg.filters")
    sys.path.remove(str(SUPPORT))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Callable[..., str]:
    """Runs Python code in a fresh process that has this package, but nothing of the user's; gives its output."""

    def run(code: str, *arguments: str, path: Path | None = None, seed: str = "random") -> str:
        folders = [str(ROOT)] if path is None else [str(ROOT), str(path)]
        environment = {"PYTHONPATH": ":".join(folders), "PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
