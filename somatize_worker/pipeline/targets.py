"""Where a step runs: a tag that workers serve, or one worker's id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from somatize_worker.errors import InvalidPipeline

_BAD_TARGET: Final = re.compile(r"[\s,\x00-\x1f\x7f]")
_MOST_CHARACTERS: Final = 200


@dataclass(frozen=True, order=True)
class Target:
    """Where a step runs: ``kind`` is ``"Tag"`` or ``"WorkerId"``."""

    kind: str
    name: str

    @classmethod
    def of(cls, target: Any) -> Target:
        """From a tag (text), or from ``protocol.Tag`` / ``protocol.WorkerId`` in any form.

        Raises:
            InvalidPipeline: not a target, or a name that no queue can have.
        """
        kind, name = cls._split(target)
        if not isinstance(name, str) or not name or len(name) > _MOST_CHARACTERS or _BAD_TARGET.search(name):
            raise InvalidPipeline(
                f"{name!r} cannot be a {'tag' if kind == 'Tag' else 'worker id'}: it should be text without spaces or "
                f"commas, at most {_MOST_CHARACTERS} characters long",
            )
        return cls(kind, name)

    @staticmethod
    def _split(target: Any) -> tuple[str, Any]:
        if isinstance(target, Target):
            return target.kind, target.name
        if type(target) is str:
            return "Tag", target
        if hasattr(target, "model_dump"):
            named, dumped = type(target).__name__, target.model_dump()
            target = dumped if isinstance(dumped, Mapping) and set(dumped) & {"Tag", "WorkerId"} else {named: dumped}
        if isinstance(target, Mapping) and len(target) == 1:
            kind, name = next(iter(target.items()))
            if isinstance(name, Mapping) and len(name) == 1:
                name = next(iter(name.values()))
            if kind in ("Tag", "WorkerId"):
                return kind, name
        raise InvalidPipeline(
            f'{target!r} is not a place to run: give a tag such as "gpu", protocol.Tag("gpu") or '
            f'protocol.WorkerId("worker-1")',
        )

    def to_json(self) -> dict[str, str]:
        """``{"Tag": "gpu"}`` or ``{"WorkerId": "w1"}``."""
        return {self.kind: self.name}

    def __str__(self) -> str:
        return self.name
