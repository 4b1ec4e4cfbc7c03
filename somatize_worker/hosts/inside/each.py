"""One plan for each of many items: a batch of a ``map``."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from somatize_worker.errors import InvalidPipeline
from somatize_worker.hosts.inside import tree
from somatize_worker.hosts.inside.failures import NodeFailed, Suspend
from somatize_worker.hosts.inside.interpreter import Interpreter

_DONE: Final = "each"
"""The journal entry with the outputs of the first items, as far as they are done."""


def run_each(interpreter: Interpreter, plan: Any, items: Any) -> list[Any]:
    """The outputs of the plan for each item of a list, or each row of an array, in order.

    Raises:
        NodeFailed: an item failed; the message has its index.
        Suspend: parts must run elsewhere first.
        InvalidPipeline: there are no items in the input.
    """
    if not isinstance(items, (list, tuple)) and not (isinstance(items, np.ndarray) and items.ndim > 0):
        raise InvalidPipeline(f"a plan for each item needs a list or an array, not {type(items).__qualname__}")
    journal = interpreter.journal
    outputs: list[Any] = []
    if journal.replaying and journal.has(_DONE):
        outputs = list(interpreter.use(_DONE))
    first = len(outputs)
    waiting: list[dict[str, Any]] | None = None
    finished: list[int] = []
    for index in range(first, len(items)):
        try:
            outputs.append(_one(interpreter, plan, items[index], index))
        except Suspend as suspended:
            waiting = [*(waiting or []), *suspended.children]
            outputs.append(None)
            continue
        finished.append(index)
        if waiting is None and journal.is_due():
            journal.note(_DONE, outputs, _DONE)
    if waiting is not None:
        for index in finished:
            journal.ensure(_place(index), outputs[index], tree.last_node(plan))
        raise Suspend(waiting)
    return outputs


def _place(index: int) -> str:
    return f"item{index}"


def _one(interpreter: Interpreter, plan: Any, item: Any, index: int) -> Any:
    journal = interpreter.journal
    journal.quiet = True
    try:
        return interpreter.run_item(plan, item, _place(index))
    except NodeFailed as failed:
        failed.failure.error = f"item {index}: {failed.failure.error}"
        failed.failure.details["item"] = index
        raise
    finally:
        journal.quiet = False
