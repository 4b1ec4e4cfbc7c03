"""What every message type is made of: structs and enums with fields, read from any wire form, written to each.

Every struct of the protocol is a :class:`Message`; every enum with fields is a :class:`OneOf` whose variants are its
subclasses, with one of three ways to say which variant it is (:class:`Internal`, :class:`Adjacent`,
:class:`External`: the ways of Rust's serde). One reader takes all forms, since they cannot be confused: where a
struct is expected, an object has its fields by name and a list has them in the order of declaration.
:func:`tree` writes; ``wire`` turns trees into bytes and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, ClassVar, Final, Self, TypeVar

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from somatize_worker.protocol.fields import As, CannotWrite, Form, write_float
from somatize_worker.protocol.problems import NOTHING, Place, fault, invalid_message, relocated, shorten

JSON: Final = Form(finite=True)

_ABSENT: Final = object()

Init = TypeVar("Init", bound=Callable[..., None])


def typed_init(init: Init) -> Init:
    """Mark an ``__init__`` that only gives the fields' types and order, so that pydantic reads messages past it."""
    init.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # pydantic's own mark for such a method
    return init


class Message(BaseModel):
    """A struct of the protocol: frozen, compared by content (arrays too), unknown fields ignored when read.

    ``newtype`` says that the wire form is that of the only field (a Rust newtype), not an object with one key.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)
    newtype: ClassVar[bool] = False

    @typed_init
    def __init__(self, /, **fields: Any) -> None:
        """Make a message.

        Raises:
            InvalidMessage: a field is missing or has a value of a wrong type.
            TypeError: no such field.
        """
        unknown = fields.keys() - type(self).model_fields.keys()
        if unknown:
            known = ", ".join(type(self).model_fields) or "none"
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}; its fields: {known}")
        self._fill(**fields)

    def _fill(self, **fields: Any) -> None:
        """What ``__init__`` does, for subclasses that declare their arguments."""
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise invalid_message(type(self).__name__, error) from None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        """The compact form's fields by their names."""
        if not isinstance(data, (list, tuple)):
            return data
        names = list(cls.model_fields)
        if len(data) > len(names):
            raise fault(f"at most {len(names)} fields ({', '.join(names)})", f"a list of {len(data)}")
        return dict(zip(names, data, strict=False))

    @model_serializer(mode="plain")
    def _tree(self) -> Any:
        return tree(self, JSON)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return same(self, other)

    def __hash__(self) -> int:
        try:
            return hash((type(self), *("nan" if value != value else value for value in self.__dict__.values())))
        except (TypeError, ValueError):
            raise TypeError(f"{type(self).__name__} cannot be hashed: it holds arrays or free JSON data") from None


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal: same types, arrays by dtype, shape and bytes, NaN equal to NaN.

    Without recursion, so that plans of any depth can be compared.
    """
    pairs = [(a, b)]
    while pairs:
        left, right = pairs.pop()
        if left is right:
            continue
        if type(left) is not type(right):
            return False
        if isinstance(left, Message):
            pairs.extend((value, right.__dict__.get(name, _ABSENT)) for name, value in left.__dict__.items())
        elif isinstance(left, dict):
            if left.keys() != right.keys():
                return False
            pairs.extend((value, right[key]) for key, value in left.items())
        elif isinstance(left, (list, tuple)):
            if len(left) != len(right):
                return False
            pairs.extend(zip(left, right, strict=True))
        elif not _same_leaf(left, right):
            return False
    return True


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return bool(a == b)


# ── Enums with fields ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Internal:
    """The variant's name beside its fields: ``{"type": "GetState", "plan_id": "p"}``."""

    tag: str

    def open(self, data: Any) -> tuple[Any, Any]:
        """The variant's name and its fields."""
        if isinstance(data, dict) and self.tag in data:
            return data[self.tag], data
        if isinstance(data, (list, tuple)) and data:
            return data[0], data[1:]
        raise fault(f'an object with "{self.tag}"')

    def close(self, name: str, body: Any, form: Form) -> Any:
        """The wire form of a variant with these fields (None: it has none)."""
        if form.compact:
            return [name, *(body or [])]
        return {self.tag: name, **(body or {})}

    def place(self, name: str) -> Place:
        """Where the variant's fields lie, for error messages."""
        return ()


@dataclass(frozen=True)
class Adjacent:
    """The variant's name and its content under two keys: ``{"type": "Bytes", "data": [1, 2]}``."""

    tag: str
    content: str

    def open(self, data: Any) -> tuple[Any, Any]:
        """The variant's name and its content."""
        if isinstance(data, dict) and self.tag in data:
            return data[self.tag], data.get(self.content, _ABSENT)
        if isinstance(data, (list, tuple)) and 1 <= len(data) <= 2:
            return data[0], data[1] if len(data) == 2 else _ABSENT
        raise fault(f'an object with "{self.tag}" and "{self.content}"')

    def close(self, name: str, body: Any, form: Form) -> Any:
        """The wire form of a variant with this content."""
        if form.compact:
            return [name] if body is _ABSENT else [name, body]
        return {self.tag: name} if body is _ABSENT else {self.tag: name, self.content: body}

    def place(self, name: str) -> Place:
        """Where the content lies."""
        return (self.content,)


@dataclass(frozen=True)
class External:
    """The variant's name as the only key, or alone if it has no fields: ``{"Tag": "gpu"}``, ``"Empty"``."""

    def open(self, data: Any) -> tuple[Any, Any]:
        """The variant's name and what is under it."""
        if isinstance(data, str):
            return data, _ABSENT
        if isinstance(data, dict) and len(data) == 1:
            return next(iter(data.items()))
        raise fault("a variant's name as the only key of an object, or alone as text")

    def close(self, name: str, body: Any, form: Form) -> Any:
        """The wire form of a variant with this content."""
        return name if body is _ABSENT else {name: body}

    def place(self, name: str) -> Place:
        """Where the content lies."""
        return (name,)


class OneOf(Message):
    """A union of the protocol: an annotation and an argument of :func:`from_json`; its variants are subclasses.

    A union is declared with ``tagging``; a variant may say its name on the wire, if it is not the class's own.
    A union that holds itself has a ``depth_limit``.
    """

    tagging: ClassVar[Internal | Adjacent | External]
    variants: ClassVar[dict[str, type[OneOf]]]
    union: ClassVar[type[OneOf]]
    variant: ClassVar[str] = ""
    depth_limit: ClassVar[int] = 0

    def __init_subclass__(
        cls, *, tagging: Internal | Adjacent | External | None = None, name: str = "", **options: Any
    ) -> None:
        super().__init_subclass__(**options)
        if tagging is not None:
            cls.tagging, cls.variants, cls.union, cls.variant = tagging, {}, cls, ""
        else:
            cls.variant = name or cls.__name__
            cls.variants[cls.variant] = cls

    @typed_init
    def __init__(self, /, **fields: Any) -> None:
        """Make a message of one variant; see :class:`Message`."""
        if not self.variant:
            known = ", ".join(sub.__name__ for sub in self.variants.values())
            raise TypeError(f"{type(self).__name__} is a union: make one of its variants, {known}")
        super().__init__(**fields)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if cls.variant:
            return handler(source)
        writer = core_schema.plain_serializer_function_ser_schema(lambda message: tree(message, JSON))
        return core_schema.with_info_plain_validator_function(cls._read, serialization=writer)

    @classmethod
    def _read(cls, data: Any, info: ValidationInfo) -> Self:
        """A variant from its wire form. One frame for each level of a plan, since plans nest deep."""
        if isinstance(data, cls):
            return data
        context = info.context
        if cls.depth_limit:
            depth = (context or {}).get("depth", 0) + 1
            if depth > cls.depth_limit:
                raise fault(f"an {cls.__name__} nested at most {cls.depth_limit} deep", "a deeper one")
            context = {"depth": depth}
        name, body = cls.tagging.open(data)
        found = cls.variants.get(name) if isinstance(name, str) else None
        if found is None:
            raise fault(f"one of {', '.join(cls.variants)}", f"the unknown variant {shorten(name)}")
        place = cls.tagging.place(found.variant)
        if not found.model_fields:
            body = {}
        elif body is _ABSENT:
            raise fault("a value", NOTHING, at=place)
        elif found.newtype:
            body = {next(iter(found.model_fields)): body}
        try:
            return found.__pydantic_validator__.validate_python(body, context=context)  # type: ignore[no-any-return]
        except ValidationError as error:
            if not place and not found.newtype:
                raise
            raise relocated(error, place, drop=int(found.newtype)) from None


# ── Writing ─────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def _writers(cls: type[Message]) -> tuple[tuple[str, Callable[[Any, Form], Any]], ...]:
    """Each field's name and how its value is written."""
    found = []
    for name, field in cls.model_fields.items():
        special = [mark.write for mark in field.metadata if isinstance(mark, As)]
        found.append((name, special[0] if special else _write))
    return tuple(found)


def tree(message: Message, form: Form) -> Any:
    """A message as nested dicts, lists and scalars: its wire form, before it is turned into bytes.

    Raises:
        CannotWrite: something in it has no such form.
    """
    cls = type(message)
    fields = {}
    for name, write in _writers(cls):
        try:
            fields[name] = write(getattr(message, name), form)
        except CannotWrite as error:
            raise _placed(error, message, name) from None
    body: Any = list(fields.values()) if form.compact else fields
    if cls.newtype:
        (body,) = fields.values()
    if not isinstance(message, OneOf):
        return body
    return message.tagging.close(message.variant, body if fields else _nothing(message), form)


def _placed(error: CannotWrite, message: Message, name: str) -> CannotWrite:
    if not message.newtype:
        error = error.inside(name)
    if isinstance(message, OneOf):
        for part in reversed(message.tagging.place(message.variant)):
            error = error.inside(part)
    return error


def _nothing(message: OneOf) -> Any:
    return None if isinstance(message.tagging, Internal) else _ABSENT


def _write(value: Any, form: Form) -> Any:
    if isinstance(value, Message):
        return tree(value, form)
    if isinstance(value, float):
        return write_float(value, form)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (tuple, dict)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        written: dict[Any, Any] = {}
        for part, item in pairs:  # a loop, not a comprehension and a helper: plans nest deep
            try:
                written[part] = _write(item, form)
            except CannotWrite as error:
                raise error.inside(part) from None
        return written if isinstance(value, dict) else list(written.values())
    return value
