"""How large a live object is, roughly, without pickling it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

_LOOKED_AT: Final = 100
_DEPTH: Final = 6
_SMALL: Final = 64


def rough_nbytes(value: Any, depth: int = _DEPTH) -> int:
    """About how many bytes the value takes when written: exact for arrays, a sample of long containers, and a guess
    from the attributes of other objects."""
    kind = type(value)
    if kind in (int, float, bool, type(None)):
        return _SMALL
    if kind in (str, bytes, bytearray):
        return len(value) + _SMALL
    if isinstance(value, np.ndarray):
        return int(value.nbytes) if not value.dtype.hasobject else _SMALL * int(value.size)
    if depth == 0:
        return _SMALL
    if isinstance(value, dict):
        return _of_items([item for pair in _first(value.items()) for item in pair], 2 * len(value), depth)
    if isinstance(value, (list, tuple, set, frozenset)):
        return _of_items(_first(value), len(value), depth)
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):  # tensors, and most other things that are like arrays
        return size
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        return _SMALL + rough_nbytes(attributes, depth - 1)
    return 4 * _SMALL


def _first(items: Any) -> list[Any]:
    return [item for item, _ in zip(items, range(_LOOKED_AT), strict=False)]


def _of_items(looked_at: list[Any], count: int, depth: int) -> int:
    if not looked_at:
        return _SMALL
    return _SMALL + sum(rough_nbytes(item, depth - 1) for item in looked_at) * count // len(looked_at)
