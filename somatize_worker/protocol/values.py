"""``Value``: what travels between nodes, as input, output and state."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from somatize_worker.protocol.base import Adjacent, OneOf, typed_init
from somatize_worker.protocol.fields import Array, JsonData, Octets


class Value(OneOf, tagging=Adjacent("type", "data")):
    """A tensor, JSON data, bytes, or nothing."""


class Tensor(Value):
    """An array of numbers of any shape.

    On the wire ``{"values": [...], "shape": [...]}``, row-major, with ``dtype`` unless it is float64. The array is
    held as given, without a copy (only foreign byte orders are converted): do not change it afterwards.
    """

    newtype: ClassVar[bool] = True
    array: Array

    @typed_init
    def __init__(self, array: np.ndarray | np.generic | dict[str, Any]) -> None:
        self._fill(array=array)

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """The array's element type."""
        return self.array.dtype


class Json(Value):
    """Any JSON data. Arrays and bytes inside it are written as tagged values, and read back as what they were."""

    newtype: ClassVar[bool] = True
    data: JsonData

    @typed_init
    def __init__(self, data: Any) -> None:
        self._fill(data=data)


class Bytes(Value):
    """A byte string; a list of numbers on the wire."""

    newtype: ClassVar[bool] = True
    data: Octets

    @typed_init
    def __init__(self, data: bytes) -> None:
        self._fill(data=data)


class Empty(Value):
    """No value."""
