"""A real terminal, as a person sees it: a shell in tmux."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.server import poll


class Terminal:
    """A shell of its own in a terminal of 100 columns and 40 lines."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._sockets = tempfile.mkdtemp(prefix="soma-tmux-")  # a socket's path must be short
        self._environ = {**environ, "TERM": "screen-256color", "PS1": "$ ", "ENV": ""}
        self._folder = folder

    def __enter__(self) -> Self:
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "40", "sh")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tmux("kill-server")
        shutil.rmtree(self._sockets, ignore_errors=True)

    def type(self, line: str) -> None:
        """Type a line, and Enter."""
        self._tmux("send-keys", "-l", line)
        self.press("Enter")

    def press(self, key: str) -> None:
        """Press a key: ``Enter``, ``C-c``."""
        self._tmux("send-keys", key)

    def text(self) -> str:
        """All that stands there, what has scrolled away included."""
        return self._tmux("capture-pane", "-p", "-S", "-5000").rstrip()

    def wait_for(self, *texts: str, timeout_s: float = 30.0) -> str:
        """What stands there, once it holds all of these texts."""
        seen = ""

        def look() -> bool:
            nonlocal seen
            seen = self.text()
            return all(text in seen for text in texts)

        try:
            poll(look, timeout_s=timeout_s, every_s=0.05, what=f"{texts} in the terminal")
        except AssertionError as error:
            raise AssertionError(f"{error}\nin the terminal stands\n{seen}") from None
        return seen

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", f"{self._sockets}/s", *arguments],
            env=self._environ,
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
