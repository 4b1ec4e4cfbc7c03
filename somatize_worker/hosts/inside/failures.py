"""How a plan stops before its end: a node failed, or it waits for parts that run elsewhere."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from somatize_worker.errors import SomaError

_OWN_FOLDER: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
_READ_ONLY: Final = ("read-only", "readonly")
_TRACEBACK_LIMIT: Final = 20_000


class Suspend(Exception):
    """The plan goes on when its children have finished. Raised where the first output is missing.

    Each child has ``path``, ``node_id``, ``target``, ``plan`` and either ``value`` (a live object) or ``input``
    (packed already); one that runs already has its ``path`` alone. An empty list means: waits for what an earlier
    ``Suspend`` of this run has asked for. ``goes_on``: there is work to do here while the children run.
    """

    def __init__(self, children: list[dict[str, Any]], *, goes_on: bool = False) -> None:
        super().__init__(f"waits for {[child['path'] for child in children]}")
        self.children = children
        self.goes_on = goes_on


@dataclass
class Failure:
    """Why a plan failed, as the frame ``failed`` says it."""

    error: str
    error_type: str
    error_mro: list[str]
    node_id: str | None = None
    traceback: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Packable."""
        return dict(vars(self))

    @classmethod
    def of(cls, error: BaseException, node_id: str | None = None) -> Failure:
        """The failure that an exception means. ``error`` names the node."""
        if isinstance(error, NodeFailed):
            return error.failure
        text = describe(error)
        if node_id is not None and repr(node_id) not in text:
            text = f"node {node_id!r}: {text}"
        details = error.to_dict()["details"] if isinstance(error, SomaError) else {}
        if node_id is None:
            node_id = details.get("node_id")
        return cls(text, _qualified(type(error)), _mro(type(error)), node_id, _user_traceback(error), details)


class NodeFailed(Exception):
    """A node of the plan failed; it is reported already."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return self.failure.error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NodeFailed:
        """From :meth:`Failure.to_dict`, or from the result of a child plan that failed.

        The latter has no ``error_mro``: a child has used up its own retries, so its parent is not to retry for it.
        """
        known = {name: data[name] for name in Failure.__dataclass_fields__ if data.get(name) is not None}
        known.setdefault("error", "it failed and did not say why")
        known.setdefault("error_type", "somatize_worker.errors.PlanFailed")
        known.setdefault("error_mro", [])
        return cls(Failure(**known))


def describe(error: BaseException) -> str:
    """An exception in one line or a few: its type, its text, and a hint where the cause is known."""
    if isinstance(error, SomaError):
        return str(error)
    if isinstance(error, SystemExit):
        return f"the filter called sys.exit({error.code!r}); a filter ends by returning or by raising an exception"
    if isinstance(error, KeyboardInterrupt):
        return "the filter raised KeyboardInterrupt"
    name = type(error).__qualname__ if type(error).__module__ == "builtins" else _qualified(type(error))
    try:
        text = str(error)
    except Exception as broken:  # an exception whose own __str__ fails must not hide the failure
        text = f"(its text cannot be shown: {broken!r})"
    line = f"{name}: {text}" if text else name
    if isinstance(error, (ValueError, RuntimeError)) and any(word in text for word in _READ_ONLY):
        line += " (inputs are read-only, because other steps may read the same memory: copy first, `x = x.copy()`)"
    return line


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _mro(kind: type) -> list[str]:
    return [_qualified(base) for base in kind.__mro__ if base is not object]


def _user_traceback(error: BaseException) -> str:
    """The traceback without this package's own frames; of a long one, the end."""
    report = traceback.TracebackException.from_exception(error, limit=-60)
    seen: set[int] = set()
    part: traceback.TracebackException | None = report
    while part is not None and id(part) not in seen:
        seen.add(id(part))
        part.stack = traceback.StackSummary.from_list(
            [frame for frame in part.stack if not frame.filename.startswith(_OWN_FOLDER)]
        )
        part = part.__cause__ or part.__context__
    return "".join(report.format())[-_TRACEBACK_LIMIT:]
