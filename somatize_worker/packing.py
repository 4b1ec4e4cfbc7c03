"""The form in which values travel inside the cluster: MessagePack, with raw buffers for tensors.

Used by clients, the ledger, workers and filter hosts alike, so it needs only msgpack and numpy. Extension types:

    1  tensor     msgpack [dtype description as in an .npy header, shape], zero padding, then the C-order buffer
    2  reference  msgpack map with the fields of a ``DataRef`` (``{"type": "Local", "path": ...}``)
    3  integer    beyond 64 bits: big-endian two's complement

An unpacked tensor is a read-only view of the bytes that MessagePack cut out of the message.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack
import numpy as np

TENSOR: Final = 1
REFERENCE: Final = 2
BIG_INTEGER: Final = 3
_ALIGN: Final = 16
_USUAL_HEAD: Final = 4096


class Reference:
    """Where a value lies instead of the value itself: the fields of a protocol ``DataRef``."""

    __slots__ = ("fields",)

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    @property
    def type(self) -> str:
        """The variant: ``Local``, ``Cached``, ``S3``, ..."""
        return str(self.fields["type"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and self.fields == other.fields

    def __hash__(self) -> int:
        return hash(tuple(sorted((key, str(value)) for key, value in self.fields.items())))

    def __repr__(self) -> str:
        inner = ", ".join(f"{key}={value!r}" for key, value in self.fields.items())
        return f"Reference({inner})"


def _encode(obj: Any) -> msgpack.ExtType:
    if isinstance(obj, np.ndarray):
        return msgpack.ExtType(TENSOR, _tensor_head(obj) + obj.tobytes(order="C"))
    if isinstance(obj, Reference):
        return msgpack.ExtType(REFERENCE, msgpack.packb(obj.fields))
    if isinstance(obj, int):
        return msgpack.ExtType(BIG_INTEGER, obj.to_bytes(obj.bit_length() // 8 + 1, "big", signed=True))
    raise TypeError(f"{type(obj).__module__}.{type(obj).__qualname__} cannot be packed")


def _tensor_head(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype.hasobject:
        raise TypeError(f"an array of Python objects (dtype {array.dtype}) cannot travel; use a numeric dtype")
    if array.dtype.isbuiltin == 2:  # registered by another package, and known to no reader without it
        raise TypeError(f"an array of dtype {array.dtype} cannot travel; convert it, for example to float32")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("a masked array would lose its mask; send .filled(), or its .data and .mask")
    head: bytes = msgpack.packb([np.lib.format.dtype_to_descr(array.dtype), list(array.shape)])
    return head + b"\0" * (-len(head) % _ALIGN)


def _tensor(data: bytes) -> np.ndarray[Any, Any]:
    unpacker = msgpack.Unpacker(None, max_buffer_size=0)
    unpacker.feed(data[:_USUAL_HEAD])
    try:
        descr, shape = unpacker.unpack()
    except msgpack.OutOfData:  # a dtype with very many fields
        unpacker.feed(data[_USUAL_HEAD:])
        descr, shape = unpacker.unpack()
    start = unpacker.tell() + (-unpacker.tell() % _ALIGN)
    dtype = np.lib.format.descr_to_dtype(_with_tuples(descr))
    if dtype.hasobject or any(size < 0 for size in shape):
        raise ValueError(f"no tensor has dtype {dtype} and shape {shape}")
    return np.ndarray(shape, dtype=dtype, buffer=data, offset=start if start < len(data) else 0)


def _with_tuples(descr: Any) -> Any:
    """A dtype description as numpy wants it: MessagePack turned its tuples into lists."""
    if isinstance(descr, str):
        return descr
    return [
        (tuple(name) if isinstance(name, list) else name, _with_tuples(of), *(tuple(shape) for shape in shapes))
        for name, of, *shapes in descr
    ]


def _decode(code: int, data: bytes) -> Any:
    try:
        if code == TENSOR:
            return _tensor(data)
        if code == REFERENCE:
            return Reference(**msgpack.unpackb(data))
        if code == BIG_INTEGER:
            return int.from_bytes(data, "big", signed=True)
    except Exception as error:  # numpy raises whatever its parser of dtypes meets, SyntaxError included
        raise ValueError(f"a damaged value (packed extension {code}): {error}") from None
    raise ValueError(f"unknown packed extension {code}: written by a newer version?")


def pack(obj: Any) -> bytes:
    """Pack plain data: None, bool, int, float, str, bytes, list, tuple, dict, numpy arrays, references.

    Raises:
        TypeError: for anything else, for masked arrays, and for arrays of Python objects or of a dtype that numpy
            itself does not define.
        ValueError: for data nested too deep (510 levels always work).
    """
    packed: bytes = msgpack.packb(obj, default=_encode, use_bin_type=True, strict_types=False)
    return packed


def unpack(data: bytes | bytearray | memoryview) -> Any:
    """The data that :func:`pack` was given (tuples come back as lists).

    Raises:
        ValueError: the bytes are not a packed value.
    """
    try:
        return msgpack.unpackb(data, ext_hook=_decode, strict_map_key=False)
    except (ValueError, TypeError) as error:  # TypeError: a list as a dictionary's key
        raise ValueError(f"not a packed value: {type(error).__name__} {error}") from None
