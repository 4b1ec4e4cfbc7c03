"""What every contestant is given to do, and how what comes back is looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

CHAIN: Final = 100
"""Nodes in the chain."""

ROUND_TRIP: Final = "round trip"
CHAINED: Final = "chain"
CHAINED_SILENTLY: Final = "chain, events off"
TENSOR: Final = "tensor"
MAPPED: Final = "map"
MAPPED_IN_BATCHES: Final = "map, batched by hand"
MEMORY: Final = "memory"

Job = Callable[[], float | None]
"""One round of a job. Raises when the result is wrong; returns what it measured, or None for the seconds it took."""

Jobs = dict[str, Job]


def increment(x: float) -> float:
    """The small function of every job but the tensor's."""
    return x + 1


def double(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The tensor's."""
    return x * 2


@dataclass(frozen=True)
class Work:
    """Data, made once in each contestant's process before anything is timed."""

    tensor_bytes: int = 80_000_000
    items_count: int = 10_000
    memory_bytes: int = 1_000_000_000

    @cached_property
    def tensor(self) -> np.ndarray[Any, Any]:
        """float64, every page written."""
        return np.arange(self.tensor_bytes // 8, dtype=np.float64)

    @cached_property
    def items(self) -> list[float]:
        """Inputs of the map."""
        return [float(number) for number in range(self.items_count)]

    def check_tensor(self, result: np.ndarray[Any, Any]) -> None:
        """Read every element of a doubled tensor: a result that is only mapped has not arrived yet."""
        last = self.tensor_bytes // 8 - 1
        expect(float(result.sum()), float(last) * (last + 1))

    def check_items(self, result: Sequence[float]) -> None:
        """As many results as items, and the right ones."""
        expect(len(result), self.items_count)
        expect(float(sum(result)), sum(self.items) + self.items_count)


def expect(result: float, expected: float) -> None:
    """Raises ValueError if a job's result is not what it must be."""
    if result != expected:
        raise ValueError(f"the result is {result!r} and should be {expected!r}")
