"""The ``.npy`` format, in pieces: a header, and the array's bytes in C order.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. ``numpy.save`` and ``numpy.load``
want a whole file; here headers are needed alone (over the network, for a range of rows), and an array in any memory
layout is written in C order without a copy of the whole. Needs only numpy.
"""

from __future__ import annotations

import ast
import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from somatize_worker.errors import Unrepresentable
from somatize_worker.stores.disk import Data

Array = np.ndarray[Any, np.dtype[Any]]

MAGIC: Final = b"\x93NUMPY"
PREFIX_BYTES: Final = 12
"""So many bytes of a file tell how long its header is."""
_BLOCK_BYTES: Final = 4 << 20
_HEADER_LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Header:
    """What an ``.npy`` header says; the data start at ``offset`` bytes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """Size of the data behind the header."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_nbytes(self) -> int:
        """Size of one row; of the one value when the array has no dimension."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@lru_cache(maxsize=256)
def header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The header of an array in C order.

    Raises:
        Unrepresentable: the dtype has no description that reads back as itself (objects, overlapping fields).
    """
    fields = {"descr": _describe(dtype), "fortran_order": False, "shape": shape}
    out = io.BytesIO()
    try:
        np.lib.format.write_array_header_1_0(out, fields)
    except ValueError:  # too long, or field names beyond Latin-1
        return _header_3_0(fields)
    return out.getvalue()


def _describe(dtype: np.dtype[Any]) -> Any:
    if not dtype.hasobject and (dtype.kind != "V" or dtype.type is np.void):
        try:
            description = np.lib.format.dtype_to_descr(dtype)
            if np.lib.format.descr_to_dtype(description) == dtype:
                return description
        except ValueError:  # fields that overlap or are out of order
            pass
    raise Unrepresentable(
        f"an array of dtype {dtype} cannot be stored as .npy: convert it with astype() to numbers, "
        "fixed-width text, or a structured dtype without overlapping fields",
        dtype=str(dtype),
    )


def _header_3_0(fields: dict[str, Any]) -> bytes:
    text = repr(fields).encode()
    padding = -(PREFIX_BYTES + len(text) + 1) % 64
    return MAGIC + struct.pack("<BBI", 3, 0, len(text) + padding + 1) + text + b" " * padding + b"\n"


def body(array: Array) -> Iterator[Data]:
    """The array's bytes in C order: one view of it where its memory is so already, else copies of small blocks."""
    if array.nbytes == 0:
        return
    if array.flags.c_contiguous:
        yield array.reshape(-1).view(np.uint8).data
        return
    blocks = np.nditer(
        array,
        flags=["external_loop", "buffered"],
        order="C",
        buffersize=max(_BLOCK_BYTES // array.itemsize, 1),
    )
    for block in blocks:
        yield block.tobytes()  # type: ignore[attr-defined]  # one operand: an array, not a tuple of them


def header_nbytes(start: bytes) -> int:
    """How long the whole header is, from a file's first :data:`PREFIX_BYTES` bytes.

    Raises:
        ValueError: these are not the first bytes of an ``.npy`` file.
    """
    if len(start) < PREFIX_BYTES or start[:6] != MAGIC or start[6] not in (1, 2, 3):
        raise ValueError("not an .npy file")
    length = 10 + struct.unpack_from("<H", start, 8)[0] if start[6] == 1 else 12 + struct.unpack_from("<I", start, 8)[0]
    if length > _HEADER_LIMIT_BYTES:
        raise ValueError(f"an .npy header of {length} bytes")
    return int(length)


@lru_cache(maxsize=256)
def parse(head: bytes) -> Header:
    """The header that :func:`header` or ``numpy.save`` wrote.

    Raises:
        ValueError: it is damaged, or describes Python objects.
    """
    text = head[10 if head[6] == 1 else 12 :].decode("utf-8" if head[6] == 3 else "latin-1")
    try:
        fields = ast.literal_eval(text.strip())
        dtype = np.lib.format.descr_to_dtype(fields["descr"])
        shape = tuple(int(length) for length in fields["shape"])
    except (SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError("a damaged .npy header") from error
    if dtype.hasobject:
        raise ValueError("an .npy file of Python objects, which may run code when read")
    if any(length < 0 for length in shape):
        raise ValueError("a damaged .npy header")
    return Header(dtype, shape, bool(fields.get("fortran_order")), len(head))


def array(head: Header, data: Data | Array, offset: int | None = None) -> Array:
    """The array whose bytes lie in ``data`` at ``offset`` (default: behind the header), without a copy; read-only
    where ``data`` is.

    Raises:
        ValueError: there are fewer bytes than the header says.
    """
    offset = head.offset if offset is None else offset
    available = len(data) - offset
    if available < head.nbytes:
        raise ValueError(f"{available} bytes of data where the .npy header says {head.nbytes}")
    order: Any = "F" if head.fortran else "C"
    if head.nbytes == 0:  # no buffer to be a view of
        empty = np.empty(head.shape, head.dtype, order)
        empty.flags.writeable = False
        return empty
    return np.ndarray(head.shape, head.dtype, buffer=data, offset=offset, order=order)
