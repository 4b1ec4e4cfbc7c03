"""What the protocol says about single values: which ends a loop, which chooses an arm, who may change what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

DEFAULT_ITERATIONS: Final = 100
"""How often a loop runs that does not say."""


def read_only(value: Any) -> Any:
    """An array that several steps receive: a view through which none of them can change it for the others."""
    if type(value) is np.ndarray and value.flags.writeable:
        value = value.view()
        value.flags.writeable = False
    return value


def ends_loop(output: Any) -> bool:
    """Whether a loop stops after a round with this output."""
    if output is None or output is True:
        return True
    if isinstance(output, str):
        return output in ("done", "stop")
    if isinstance(output, dict):
        return _true(output.get("done"))
    return isinstance(output, np.bool_) and bool(output)


def _true(value: Any) -> bool:
    return value is True or (isinstance(value, np.bool_) and bool(value))


def chosen_arm(choice: Any, labels: Sequence[str]) -> int:
    """Which arm a branch node's output names; else ``default`` or ``else``; else the first."""
    if isinstance(choice, dict):
        choice = choice.get("branch")
    if isinstance(choice, (bool, np.bool_)):
        choice = "true" if choice else "false"
    for label in (choice, "default", "else"):
        if isinstance(label, str) and label in labels:
            return list(labels).index(label)
    return 0
