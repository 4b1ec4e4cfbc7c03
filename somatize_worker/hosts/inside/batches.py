"""Data cut along its first axis, and put together again."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from somatize_worker.errors import InvalidPipeline


def rows(value: Any) -> int:
    """How long the first axis is.

    Raises:
        InvalidPipeline: there is none.
    """
    shape = getattr(value, "shape", None)
    if shape is not None and len(shape) > 0:
        return int(shape[0])
    if isinstance(value, (list, tuple)):
        return len(value)
    what = "a 0-dimensional array" if shape is not None else f"{type(value).__module__}.{type(value).__qualname__}"
    raise InvalidPipeline(f"only arrays and lists can be cut along a first axis; this is {what}")


def part(value: Any, start: int, stop: int) -> Any:
    """Rows ``start`` to ``stop``, without a copy where the type allows it."""
    by_position = getattr(value, "iloc", None)  # pandas: plain indexing would go by label
    return value[start:stop] if by_position is None else by_position[start:stop]


def parts(value: Any, size: int) -> Iterator[Any]:
    """The value in pieces of ``size`` rows; without rows, one empty piece."""
    total = rows(value)
    for start in range(0, max(total, 1), size):
        yield part(value, start, min(start + size, total))


def cut(x: Any, y: Any, size: int) -> Iterator[tuple[Any, Any]]:
    """``x`` and ``y`` (which may be None) in batches of ``size`` rows.

    Raises:
        InvalidPipeline: one of them cannot be cut, or their lengths disagree.
    """
    total = rows(x)
    if y is not None and rows(y) != total:
        raise InvalidPipeline(
            f"x has {total} rows here and y has {rows(y)}; fitting in batches needs as many of one as of the other"
        )
    for start in range(0, max(total, 1), size):
        stop = min(start + size, total)
        yield part(x, start, stop), None if y is None else part(y, start, stop)


def joined(outputs: Sequence[Any]) -> Any:
    """Outputs of consecutive pieces as one: arrays concatenated along their first axis, lists extended.

    Raises:
        InvalidPipeline: they are of a type that has no such join.
    """
    first = outputs[0]
    if len(outputs) == 1:
        return first
    if all(isinstance(output, np.ndarray) and output.ndim > 0 for output in outputs):
        return np.concatenate(outputs)
    if all(isinstance(output, list) for output in outputs):
        return [item for output in outputs for item in output]
    if all(isinstance(output, tuple) for output in outputs):
        return tuple(item for output in outputs for item in output)
    if all(output is None for output in outputs):
        return None
    module = type(first).__module__.partition(".")[0]
    if module == "torch" and getattr(first, "ndim", 0) > 0:
        return sys.modules["torch"].cat(list(outputs))
    if module == "pandas":
        return sys.modules["pandas"].concat(list(outputs))
    kinds = sorted({type(output).__qualname__ for output in outputs})
    raise InvalidPipeline(
        f"outputs of pieces cannot be put together: {', '.join(kinds)}; return an array or a list with one entry for "
        "each row, or run without batches"
    )
