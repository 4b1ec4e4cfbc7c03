"""How single values look on the wire: numbers, text, times, byte strings, free JSON, tensors.

A field type is an ``Annotated`` alias. Where the Python value and the wire value differ, it carries an :class:`As`,
which reads every wire form and writes the one that a :class:`Form` asks for.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, Strict
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from somatize_worker.protocol.problems import NOTHING, fault, shorten

MAX_DATA_DEPTH: Final = 200
"""How deep free JSON data may be nested."""

MAX_PLAN_DEPTH: Final = 120
"""How deep an execution plan may be nested to be readable at all; a worker's own limit may be lower.

One level of a plan is up to four levels of data, and MessagePack writes 511 of those."""

TENSOR_DTYPES: Final = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
)
"""Element types that JSON and MessagePack can carry; others travel only in the packed form."""

_EXACT: Final = frozenset({int, bool, str, type(None)})
_LEAVES: Final = _EXACT | {float}


@dataclass(frozen=True)
class Form:
    """A way to write messages.

    Attributes:
        compact: structs as arrays of their fields instead of maps.
        native: arrays and byte strings as they are, for the packed form used inside a cluster.
        finite: refuse NaN and infinities, which JSON does not have.
    """

    compact: bool = False
    native: bool = False
    finite: bool = False


class CannotWrite(Exception):
    """A value without a wire form; ``place`` grows while the error travels outwards."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.place: list[int | str] = []

    def inside(self, part: int | str) -> CannotWrite:
        """The same error, seen from one level further out."""
        self.place.insert(0, part)
        return self


@dataclass(frozen=True)
class As:
    """How a field's Python value is read from any wire form, and written."""

    read: Callable[[Any], Any]
    write: Callable[[Any, Form], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)


def write_float(value: float, form: Form) -> float:
    """A finite number, or any where the form has them.

    Raises:
        CannotWrite: NaN or infinity in JSON.
    """
    if form.finite and not math.isfinite(value):
        raise CannotWrite(f"{value} is no JSON number; send MessagePack, or put a finite number or null there")
    return value


# ── Times ───────────────────────────────────────────────────────────────────────────────────────────────────────

_RFC_3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,6})\d*)?([Zz]|[+-]\d\d:\d\d)")
_A_TIME: Final = "an RFC 3339 time with a zone, such as 2026-04-06T10:30:15Z"


def _read_time(value: Any) -> datetime:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise fault(_A_TIME, "a time without a zone; use datetime.now(timezone.utc)")
        return value.astimezone(UTC)
    match = _RFC_3339.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise fault(_A_TIME)
    day, time, fraction, zone = match.groups()
    try:
        parsed = datetime.fromisoformat(f"{day}T{time}.{(fraction or '0'):0<6}{zone.replace('z', 'Z')}")
        return parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        raise fault(_A_TIME) from None


def _write_time(value: datetime, form: Form) -> str:
    micros = value.microsecond
    digits = "auto" if not micros else "milliseconds" if micros % 1000 == 0 else "microseconds"
    return value.astimezone(UTC).isoformat(timespec=digits).replace("+00:00", "Z")


# ── Byte strings ────────────────────────────────────────────────────────────────────────────────────────────────


def _read_base64(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        pass  # reported below, like a value of a wrong type
    raise fault("base64 text (standard alphabet, padded)")


def _write_base64(value: bytes, form: Form) -> Any:
    return value if form.native else base64.b64encode(value).decode()


def read_octets(value: Any) -> bytes:
    """A byte string, from a list of whole numbers or as it is."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if not isinstance(value, (list, tuple)):
        raise fault("a list of whole numbers from 0 to 255")
    if set(map(type, value)) <= {int}:
        try:
            return bytes(value)
        except (ValueError, OverflowError):
            pass  # the loop below finds which number it was
    for index, item in enumerate(value):
        if type(item) is not int or not 0 <= item <= 255:
            raise fault("a whole number from 0 to 255", shorten(item), at=[index])
    return bytes(value)


def _write_octets(value: bytes, form: Form) -> Any:
    return value if form.native else list(value)


# ── Tensors ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _owned(array: np.ndarray) -> np.ndarray:
    """The array as messages hold it: exactly an ``ndarray``, in this machine's byte order."""
    if array.dtype.hasobject:
        raise fault("an array of numbers", f"an array of Python objects (dtype {array.dtype})")
    if isinstance(array, np.ma.MaskedArray):
        raise fault("an array without a mask; fill it with .filled()")
    if not array.dtype.isnative:
        return np.asarray(array.astype(array.dtype.newbyteorder("=")))
    return array if type(array) is np.ndarray else array.view(np.ndarray)


def _numbers(values: list[Any], dtype: np.dtype) -> np.ndarray:
    allowed: set[type] = {int, float}
    if dtype.kind == "f":
        allowed.add(type(None))  # serde writes NaN as null
    if dtype.kind == "b":
        allowed.add(bool)
    if not set(map(type, values)) <= allowed:
        index = next(i for i, value in enumerate(values) if type(value) not in allowed)
        raise fault("a number", shorten(values[index]), at=["values", index])
    if dtype.kind in "iu":
        return _whole_numbers(values, dtype)
    try:
        array = np.array(values, dtype=np.float64)
    except OverflowError:
        raise _too_large(values, dtype) from None
    if dtype.kind == "b" and not np.isin(array, (0.0, 1.0)).all():
        raise fault("only 0, 1, true and false, as dtype bool says", shorten(values), at=["values"])
    with np.errstate(over="ignore"):
        cast = array.astype(dtype, copy=False)
    if dtype.kind == "f" and (np.isinf(cast) != np.isinf(array)).any():
        raise _too_large(values, dtype)
    return cast


def _whole_numbers(values: list[Any], dtype: np.dtype) -> np.ndarray:
    if float in set(map(type, values)):  # a peer without integer tensors writes 1.0
        if not all(type(value) is int or value.is_integer() for value in values):
            raise fault(f"whole numbers, as dtype {dtype.name} says", shorten(values), at=["values"])
        values = [int(value) for value in values]
    limits = np.iinfo(dtype)
    if values and not limits.min <= min(values) <= max(values) <= limits.max:
        raise _too_large(values, dtype)
    return np.array(values, dtype=dtype)


def _too_large(values: list[Any], dtype: np.dtype) -> PydanticCustomError:
    return fault(f"numbers that fit dtype {dtype.name}", shorten(values), at=["values"])


def _shape(raw: Any) -> tuple[int, ...]:
    if not isinstance(raw, (list, tuple)) or any(type(size) is not int or size < 0 for size in raw):
        raise fault("a list of whole numbers, each at least 0", shorten(raw), at=["shape"])
    return tuple(raw)


def read_tensor(value: Any) -> np.ndarray:
    """An array, from ``{"values", "shape", "dtype"?}``, from the same as a list, or as it is."""
    if isinstance(value, (np.ndarray, np.generic)):
        return _owned(np.asanyarray(value))
    if isinstance(value, (list, tuple)) and 2 <= len(value) <= 3:
        value = dict(zip(("values", "shape", "dtype"), value, strict=False))
    if not isinstance(value, dict):
        raise fault('a numpy array, or an object with "values" and "shape"')
    for key in ("values", "shape"):
        if key not in value:
            raise fault("a value", NOTHING, at=[key])
    values, shape, name = value["values"], _shape(value["shape"]), value.get("dtype")
    name = "float64" if name is None else name
    if not isinstance(name, str) or name not in TENSOR_DTYPES:
        raise fault(f"one of {', '.join(sorted(TENSOR_DTYPES))}", shorten(name), at=["dtype"])
    if not isinstance(values, (list, tuple)):
        raise fault("a list of numbers", shorten(values), at=["values"])
    if math.prod(shape) != len(values):
        needed = f"{math.prod(shape)} values, as shape {list(shape)} says"
        raise fault(needed, f"{len(values)} values", at=["values"])
    numbers = _numbers(list(values), np.dtype(name))
    try:
        return numbers.reshape(shape)
    except ValueError:
        raise fault("a shape that numpy can hold", shorten(list(shape)), at=["shape"]) from None


def write_tensor(array: np.ndarray, form: Form) -> Any:
    """An array's wire form.

    Raises:
        CannotWrite: element types other than :data:`TENSOR_DTYPES`; NaN or infinity in JSON.
    """
    if form.native:
        return array
    if array.dtype.name not in TENSOR_DTYPES:
        raise CannotWrite(
            f"a tensor of dtype {array.dtype} has no form outside the cluster; convert it first, "
            "for example with .astype(), or .tolist() for text"
        )
    if form.finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CannotWrite(
            "the tensor holds NaN or infinity, which JSON does not have; "
            "send MessagePack or a reference, or replace them with numpy.nan_to_num"
        )
    numbers = array.astype(np.uint8) if array.dtype.kind == "b" else array
    fields: dict[str, Any] = {"values": numbers.ravel().tolist(), "shape": list(array.shape)}
    if array.dtype != np.float64:
        fields["dtype"] = array.dtype.name
    return list(fields.values()) if form.compact else fields


# ── Free JSON data ──────────────────────────────────────────────────────────────────────────────────────────────


def read_json_data(value: Any) -> Any:
    """JSON data, copied, so that later changes to the original do not reach the message.

    Arrays and byte strings inside it stay (arrays are not copied); written as tagged ``Value`` objects, they are
    read back.
    """
    return _read_data(value, ())


def _read_data(value: Any, at: tuple[int | str, ...]) -> Any:
    kind = type(value)
    if kind is str:
        return _read_text(value, at)
    if kind in _LEAVES:
        return value
    if len(at) >= MAX_DATA_DEPTH:
        raise fault(f"data nested at most {MAX_DATA_DEPTH} deep", "a deeper one", at=at[:8])
    if kind is list or kind is tuple:
        if set(map(type, value)) <= _LEAVES:
            for index, item in enumerate(value):
                if type(item) is str and not item.isascii():
                    _read_text(item, (*at, index))
            return list(value)
        return [_read_data(item, (*at, index)) for index, item in enumerate(value)]
    if kind is dict:
        return _read_object(value, at)
    if isinstance(value, np.ndarray):
        return _owned(value)
    if kind is bytes:
        return value
    return _read_subclass(value, at)


def _read_text(value: str, at: tuple[int | str, ...]) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise fault("text of valid Unicode characters", shorten(value), at=at) from None
    return value


def _read_object(value: dict[Any, Any], at: tuple[int | str, ...]) -> Any:
    if len(value) == 2 and value.get("type") in ("Tensor", "Bytes") and "data" in value:
        read = read_tensor if value["type"] == "Tensor" else read_octets
        try:
            return read(value["data"])
        except ValueError:
            pass  # no tagged value after all: an object of the user's own that happens to have these keys
    result: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise fault("an object whose keys are text", f"the key {shorten(key)}", at=at)
        result[_read_text(str(key), at)] = _read_data(item, (*at, key))
    return result


def _read_subclass(value: Any, at: tuple[int | str, ...]) -> Any:
    """Subclasses of JSON's types, as what they are."""
    for base in (bool, int, float, str):
        if isinstance(value, base) and not isinstance(value, np.generic):
            return base(value)
    if isinstance(value, dict):
        return _read_object(value, at)
    if isinstance(value, (list, tuple)):
        return _read_data(list(value), at)
    raise fault("JSON data (null, true, false, numbers, text, lists, objects)", shorten(value), at=at)


def write_json_data(value: Any, form: Form) -> Any:
    """Free JSON data's wire form; arrays and byte strings inside it become tagged ``Value`` objects.

    Raises:
        CannotWrite: NaN or infinity in JSON; arrays that :func:`write_tensor` refuses.
    """
    if form.native:
        return value
    if isinstance(value, list):
        kinds = set(map(type, value))
        if kinds <= (_EXACT if form.finite else _LEAVES):
            return value
        return [_write_part(item, form, index) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _write_part(item, form, key) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        # always with names: here the reader has only the keys to go by
        named = Form(native=form.native, finite=form.finite)
        return {"type": "Tensor", "data": write_tensor(value, named)}
    if isinstance(value, bytes):
        return {"type": "Bytes", "data": list(value)}
    return write_float(value, form) if isinstance(value, float) else value


def _write_part(value: Any, form: Form, part: int | str) -> Any:
    try:
        return write_json_data(value, form)
    except CannotWrite as error:
        raise error.inside(part) from None


def _null_is_nan(value: Any) -> Any:
    return math.nan if value is None else value


def _unicode(value: str) -> str:
    return _read_text(value, ())


Text = Annotated[str, Strict(), AfterValidator(_unicode)]
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=0, le=2**64 - 1)]
"""An unsigned 64-bit number."""
SmallCount = Annotated[int, Strict(), Field(ge=0, le=2**32 - 1)]
"""An unsigned 32-bit number."""
Float = Annotated[float, Strict(), BeforeValidator(_null_is_nan)]
"""A number; null is read as NaN, which is how serde writes one in JSON."""
Instant = Annotated[datetime, As(_read_time, _write_time)]
"""A time with a zone, kept in UTC; finer digits than microseconds are cut off."""
Base64 = Annotated[bytes, As(_read_base64, _write_base64)]
Octets = Annotated[bytes, As(read_octets, _write_octets)]
Array = Annotated[np.ndarray, As(read_tensor, write_tensor)]
JsonData = Annotated[Any, As(read_json_data, write_json_data)]
