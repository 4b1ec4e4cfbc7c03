"""Values as files that other tools open too.

    .npy      a numpy array, in C order; opened memory-mapped and read-only
    .json     JSON-like data (None, bool, int, float, str, list, dict)
    .bin      bytes
    .msgpack  JSON-like data that JSON cannot carry: with arrays, bytes or references in it, NaN and infinities,
              integers beyond 64 bits; the form is that of :mod:`somatize_worker.packing`

The same bytes lie under a key where the store is a server. Runs inside filter hosts: needs numpy and msgpack only.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np

from somatize_worker.errors import StoreError, Unrepresentable
from somatize_worker.packing import pack, unpack
from somatize_worker.ports import TensorInfo
from somatize_worker.stores import npy
from somatize_worker.stores.disk import Data, mapped, new_file, opened, read_whole

SUFFIXES: Final = (".npy", ".json", ".bin", ".msgpack")
_KNOWN: Final = f"the known formats are {', '.join(SUFFIXES)}"
MAPPED_FROM_BYTES: Final = 1 << 20
"""A smaller array is read faster than its pages are mapped."""


@dataclass(frozen=True)
class Encoded:
    """A value in its file form: ``head`` (an ``.npy`` header, else empty), then the body, in that order."""

    suffix: str
    head: bytes
    body: npy.Array | bytes

    @property
    def body_nbytes(self) -> int:
        return self.body.nbytes if isinstance(self.body, np.ndarray) else len(self.body)

    @property
    def nbytes(self) -> int:
        return len(self.head) + self.body_nbytes

    def chunks(self) -> Iterator[Data]:
        """The body in pieces of any size; nothing of it is copied as a whole."""
        if isinstance(self.body, np.ndarray):
            yield from npy.body(self.body)
        else:
            yield self.body


def encode(value: Any) -> Encoded:
    """The file form of plain data.

    Raises:
        Unrepresentable: no format holds such a value (which type).
    """
    if isinstance(value, np.ndarray):
        array = value.view(np.ndarray)
        return Encoded(".npy", npy.header(array.dtype, array.shape), array)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Encoded(".bin", b"", bytes(value))
    try:
        if _fits_json(value):
            return Encoded(".json", b"", _json(value))
        return Encoded(".msgpack", b"", pack(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Unrepresentable(
            f"a {type(value).__qualname__} cannot be stored ({error}): give arrays, numbers, text, bytes, None, "
            "or lists and dicts of those, nested at most a few hundred deep"
        ) from error


def _fits_json(value: Any) -> bool:
    """Whether JSON carries the value so that every reader gets it back exactly."""
    if value is None or isinstance(value, (bool, str)):
        return True
    if isinstance(value, int):
        return -(1 << 63) <= value < (1 << 64)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_fits_json, value.values()))
    return isinstance(value, (list, tuple)) and all(map(_fits_json, value))


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # lone surrogates: only escaped do they survive
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def decode(suffix: str, data: Data | npy.Array) -> Any:
    """The value whose file form is ``data``. Arrays are views of it.

    Raises:
        ValueError: the data are damaged or of another format.
    """
    try:
        return _decode(suffix, data)
    except (TypeError, LookupError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _decode(suffix: str, data: Data | npy.Array) -> Any:
    if suffix == ".npy":
        start = bytes(data[: npy.PREFIX_BYTES])
        return npy.array(npy.parse(bytes(data[: npy.header_nbytes(start)])), data)
    if suffix == ".bin":
        return bytes(data)
    if suffix == ".json":
        return json.loads(bytes(data))
    if suffix == ".msgpack":
        return unpack(data.data if isinstance(data, np.ndarray) else data)
    raise ValueError(f"its name ends in {suffix!r}; {_KNOWN}")


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────


def new_name() -> str:
    """A fresh name for a value, without suffix, as a path relative to a store's folder: ``"ab/abcd…"``."""
    name = secrets.token_hex(16)
    return f"{name[:2]}/{name}"


def write(path_without_suffix: Path, value: Any) -> Path:
    """Write a value to a file that appears complete, or not at all.

    Missing folders are made. An existing file of that name is replaced; whoever has it open keeps the old data.

    Returns:
        The file's path, with the suffix of its format.

    Raises:
        StoreFull: no room; the partial file is gone.
        Unrepresentable: no format holds such a value.
    """
    return write_encoded(path_without_suffix, encode(value))


def write_encoded(path_without_suffix: Path, encoded: Encoded) -> Path:
    """:func:`write` for a value in its file form."""
    path = path_without_suffix.with_name(path_without_suffix.name + encoded.suffix)
    with new_file(path, encoded.nbytes) as append:
        if encoded.head:
            append(encoded.head)
        for chunk in encoded.chunks():
            append(chunk)
    return path


def read(path: Path) -> Any:
    """The value in a file. Larger arrays are read-only views of the file's pages, and stay valid when it is removed.

    Raises:
        MissingData: no such file.
        StoreError: the file is damaged, or its suffix is none of :data:`SUFFIXES`.
    """
    with opened(path) as (descriptor, size):
        large = path.suffix in (".npy", ".msgpack") and size >= MAPPED_FROM_BYTES
        data = mapped(descriptor, size) if large else read_whole(descriptor, size)
    try:
        return decode(path.suffix, data)
    except ValueError as error:
        raise damaged(str(path), error) from error


def info(path: Path) -> TensorInfo:
    """A tensor's metadata, from the file's header alone.

    Raises:
        MissingData: no such file.
        StoreError: the file holds no tensor.
    """
    if path.suffix != ".npy":
        with opened(path):
            raise not_a_tensor(str(path), path.suffix)
    with opened(path) as (descriptor, size):
        try:
            start = read_whole(descriptor, min(size, npy.PREFIX_BYTES))
            length = npy.header_nbytes(start)
            return tensor_info(npy.parse(start + read_whole(descriptor, length - len(start))))
        except ValueError as error:
            raise damaged(str(path), error) from error


def rows(path: Path, start: int, stop: int) -> npy.Array:
    """Rows ``start`` to ``stop`` (exclusive, cut at the end) of a tensor; only their pages are read.

    Raises:
        MissingData: no such file.
        StoreError: the file holds no tensor, or the range is none.
    """
    if path.suffix != ".npy":
        with opened(path):
            raise not_a_tensor(str(path), path.suffix)
    return rows_of(read(path), start, stop)


# ── shared by the stores ─────────────────────────────────────────────────────────────────────────────────────────


def tensor_info(head: npy.Header) -> TensorInfo:
    """A header as metadata; a tensor without dimensions counts as one row."""
    return TensorInfo(head.shape[0] if head.shape else 1, head.shape[1:], head.dtype.str)


def info_of(value: Any) -> TensorInfo:
    """Metadata of a tensor at hand."""
    if not isinstance(value, np.ndarray):
        raise not_a_tensor(f"a {type(value).__qualname__}", "")
    return TensorInfo(value.shape[0] if value.shape else 1, value.shape[1:], value.dtype.str)


def rows_of(value: Any, start: int, stop: int) -> npy.Array:
    """Rows of a tensor at hand."""
    if not isinstance(value, np.ndarray):
        raise not_a_tensor(f"a {type(value).__qualname__}", "")
    check_range(start, stop)
    return np.atleast_1d(value)[start:stop]


def check_suffix(path: Path) -> None:
    """Raises :class:`StoreError` unless the file's name ends in one of :data:`SUFFIXES`."""
    if path.suffix not in SUFFIXES:
        raise damaged(str(path), ValueError(f"its name ends in {path.suffix!r}; {_KNOWN}"))


def check_range(start: int, stop: int) -> None:
    """Raises :class:`StoreError` unless ``0 <= start <= stop``."""
    if not 0 <= start <= stop:
        raise StoreError(f"rows {start} to {stop} are no range: give 0 <= start <= stop", start=start, stop=stop)


def not_a_tensor(what: str, suffix: str) -> StoreError:
    """The error for asking rows or metadata of something else."""
    kind = {".json": "JSON", ".bin": "bytes", ".msgpack": "packed data"}.get(suffix, "no array")
    return StoreError(f"{what} holds {kind}, which has no rows: read it as a whole, with get()", what=what)


def damaged(what: str, error: Exception) -> StoreError:
    """The error for data that are not what their name says."""
    return StoreError(
        f"{what} cannot be read ({error}): it is damaged, or was not written by a store; write the value again",
        what=what,
    )
