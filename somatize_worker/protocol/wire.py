"""The wire: messages to bytes and back, in every form there is.

    JSON                 to_json                      objects with field names; no NaN, no infinity
    Python data          to_data                      the same before it is text, for serializers such as Celery's
    MessagePack maps     to_msgpack                   the same keys as the JSON
    MessagePack arrays   to_msgpack(compact=True)     structs as arrays of their fields, the tag first
    packed               to_packed                    MessagePack with raw buffers, for use inside a cluster

``from_json`` and ``from_msgpack`` (for the last three) read all of them. Nothing here does any I/O.
"""

from __future__ import annotations

import json
from typing import Any, Final, TypeVar

import msgpack
from pydantic import ValidationError

from somatize_worker import packing
from somatize_worker.errors import InvalidMessage, Unrepresentable
from somatize_worker.protocol.base import JSON, Message, OneOf, tree
from somatize_worker.protocol.fields import MAX_DATA_DEPTH, MAX_PLAN_DEPTH, CannotWrite, Form
from somatize_worker.protocol.problems import Problem, invalid_message, shorten

_MAPS: Final = Form()
_ARRAYS: Final = Form(compact=True)
_PACKED: Final = Form(native=True)
_LIMITS: Final = f"plans nested at most {MAX_PLAN_DEPTH} deep, other data {MAX_DATA_DEPTH}"
_TOO_DEEP: Final = f"it is nested too deep ({_LIMITS})"

M = TypeVar("M", bound=Message)


def to_data(message: Message) -> Any:
    """The JSON form as Python data (dict, list, str, ...): ``json.dumps`` of it is the wire form.

    Raises:
        Unrepresentable: NaN, infinities, or arrays of types that JSON cannot carry (where, and what to do).
    """
    return _tree(message, JSON)


def to_json(message: Message) -> bytes:
    """The JSON form: UTF-8, no spaces, fields in the order of declaration.

    Raises:
        Unrepresentable: NaN, infinities, or arrays of types that JSON cannot carry (where, and what to do).
    """
    data = _tree(message, JSON)
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except RecursionError:
        raise _unrepresentable(message, _TOO_DEEP) from None


def to_msgpack(message: Message, *, compact: bool = False) -> bytes:
    """The MessagePack form: maps with field names, or, if ``compact``, arrays of fields in declaration order.

    NaN and infinities are kept.

    Raises:
        Unrepresentable: arrays of types that a peer cannot read; whole numbers beyond 64 bits.
    """
    data = _tree(message, _ARRAYS if compact else _MAPS)
    try:
        packed: bytes = msgpack.packb(data)
    except OverflowError:
        raise _unrepresentable(message, "a whole number beyond 64 bits has no MessagePack form") from None
    except (ValueError, RecursionError):  # msgpack's own recursion limit
        raise _unrepresentable(message, _TOO_DEEP) from None
    return packed


def to_packed(message: Message) -> bytes:
    """The form for use inside a cluster: :mod:`somatize_worker.packing` with arrays of any type as raw buffers.

    Raises:
        Unrepresentable: data nested too deep.
    """
    data = _tree(message, _PACKED)
    try:
        return packing.pack(data)
    except (ValueError, RecursionError):
        raise _unrepresentable(message, _TOO_DEEP) from None


def from_data(kind: type[M], data: Any) -> M:
    """A message from its wire form as Python data: what a JSON or MessagePack parser returns, in any form.

    Args:
        kind: a message class, a union, or one variant of a union (which the data must then be).
        data: dicts, lists, text, numbers; a message of that kind is returned as it is.

    Raises:
        InvalidMessage: with the path of the field, what was expected there, and what was found.
    """
    whole: type[Message] = kind.union if issubclass(kind, OneOf) else kind
    try:
        message = whole.__pydantic_validator__.validate_python(data)
    except ValidationError as error:
        raise invalid_message(whole.__name__, error) from None
    except RecursionError:
        raise _invalid(kind, _LIMITS, "a deeper one") from None
    if not isinstance(message, kind):
        raise _invalid(kind, f"the variant {kind.__name__}", f"the variant {type(message).__name__}")
    return message


def from_json(kind: type[M], data: bytes | bytearray | str | dict[str, Any] | list[Any]) -> M:
    """A message from JSON text, or from data already parsed (see :func:`from_data`).

    ``NaN`` and ``Infinity``, which Python's ``json`` writes though JSON has none, are read where numbers may be.

    Raises:
        InvalidMessage: no JSON, or with the path of the field, what was expected there, and what was found.
    """
    if not isinstance(data, (bytes, bytearray, str)):
        return from_data(kind, data)
    try:
        parsed = json.loads(data)
    except UnicodeDecodeError as error:
        raise _invalid(kind, "JSON in UTF-8", f"the byte {data[error.start]!r} at {error.start}") from None
    except RecursionError:
        raise _invalid(kind, _LIMITS, "JSON that is nested deeper") from None
    except ValueError as error:
        raise _invalid(kind, "JSON", f"{shorten(data)} ({error})") from None
    return from_data(kind, parsed)


def from_msgpack(kind: type[M], data: bytes | bytearray | memoryview) -> M:
    """A message from MessagePack: maps, arrays, or the packed form. Packed tensors are read-only views of ``data``.

    Raises:
        InvalidMessage: no MessagePack, or with the path of the field, what was expected there, and what was found.
    """
    try:
        parsed = packing.unpack(data)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise _invalid(kind, "MessagePack", f"{shorten(bytes(data))} ({reason})") from None
    return from_data(kind, parsed)


def _invalid(kind: type[Message], expected: str, found: str) -> InvalidMessage:
    problem = Problem((), expected, found)
    return InvalidMessage(f"not a valid {kind.__name__}: {problem}", path="", expected=expected, found=found)


def _tree(message: Message, form: Form) -> Any:
    try:
        return tree(message, form)
    except CannotWrite as error:
        raise _unrepresentable(message, error.reason, Problem(tuple(error.place), "", "").path) from None
    except RecursionError:
        raise _unrepresentable(message, _TOO_DEEP) from None


def _unrepresentable(message: Message, reason: str, path: str = "") -> Unrepresentable:
    where = f", at {path}" if path else ""
    return Unrepresentable(f"cannot write this {type(message).__name__}{where}: {reason}", path=path)
