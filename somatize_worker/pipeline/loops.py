"""Two small filters by which ``loop(..., until=...)`` says when to stop without losing the value it stopped at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from somatize_worker.pipeline.function_adapter import FunctionFilter

_VALUE: Final = "soma.value"


class Until(FunctionFilter):
    """Passes its input on; once ``condition(x)`` is true, as a mapping that ends the loop around it."""

    def __init__(self, condition: Callable[[Any], Any], name: str) -> None:
        super().__init__(condition)
        self.name = name

    def forward(self, x: Any, state: Any = None) -> Any:
        """``x``, or ``{"done": True, "soma.value": x}``."""
        return {"done": True, _VALUE: x} if self.function(x) else x


class Result(FunctionFilter):
    """Takes the value out of the mapping by which :class:`Until` ended the loop."""

    def __init__(self, name: str) -> None:
        super().__init__(_value)
        self.name = name


def _value(x: Any) -> Any:
    return x[_VALUE] if isinstance(x, Mapping) and _VALUE in x else x
