"""Entry points: ``train.py``, ``pkg/train.py`` (a script) and ``pkg.train:main`` (a function)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from somatize_worker.errors import InvalidJob
from somatize_worker.jobs.paths import check_path

_NAME: Final = r"[^\W\d]\w*"
_FUNCTION: Final = re.compile(rf"(?P<module>{_NAME}(\.{_NAME})*):(?P<function>{_NAME}(\.{_NAME})*)")
_FORMS: Final = "an entry point is `train.py`, `pkg/train.py` or `pkg.train:main`"


@dataclass(frozen=True)
class EntryPoint:
    """A script (``script``), or a function (``module`` and ``function``)."""

    script: str | None = None
    module: str | None = None
    function: str | None = None

    @classmethod
    def parse(cls, text: str) -> EntryPoint:
        """What an entry point's text means.

        Raises:
            InvalidJob: it has none of the forms.
        """
        match = _FUNCTION.fullmatch(text)
        if match:
            return cls(module=match["module"], function=match["function"])
        if text.endswith(".py"):
            return cls(script=check_path(text))
        if ".py:" in text:
            path, _, function = text.partition(".py:")
            hint = f"; write `{path.replace('/', '.')}:{function}`"
        else:
            hint = ""
        raise InvalidJob(f"the entry point {text[:200]!r} cannot be run: {_FORMS}{hint}", entry_point=text[:200])

    def check_among(self, paths: Collection[str]) -> None:
        """That the job has the file. A module whose first name is not the job's may come from its requirements.

        Raises:
            InvalidJob: it has not; the message lists similar files.
        """
        if self.script is not None:
            wanted = [self.script]
        else:
            stem = str(self.module).replace(".", "/")
            first = stem.partition("/")[0]
            if not any(path == f"{first}.py" or path.startswith(f"{first}/") for path in paths):
                return
            wanted = [f"{stem}.py", f"{stem}/__init__.py"]
        if not set(wanted) & set(paths):
            close = difflib.get_close_matches(wanted[0], list(paths), n=3) or sorted(paths)[:5]
            raise InvalidJob(
                f"the entry point {self} does not exist: the job has no file {wanted[0]!r}, but {', '.join(close)}",
                entry_point=str(self),
            )

    def describe(self) -> dict[str, Any]:
        """For the process that runs it."""
        return {"script": self.script, "module": self.module, "function": self.function}

    def __str__(self) -> str:
        return self.script or f"{self.module}:{self.function}"
