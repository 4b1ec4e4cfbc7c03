"""What is wrong with a message, said in one line: where, what was expected, what was found.

Validators raise :func:`fault`; pydantic collects faults with their places; :func:`invalid_message` turns them
into the one error that callers see.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from somatize_worker.errors import InvalidMessage

Place = tuple[int | str, ...]

_KIND: Final = "protocol"
_SHOWN: Final = 3
NOTHING: Final = "nothing"
_LONGEST: Final = 80
_LONGEST_PLACE: Final = 24

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 3
_REPR.maxlevel = 2

# What pydantic's own checks expected, in words that do not presume Python.
_EXPECTED: Final[Mapping[str, str]] = {
    "missing": "a value",
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of at most 64 bits",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "greater_than_equal": "a number of at least {ge}",
    "less_than_equal": "a number of at most {le}",
    "too_long": "at most {max_length} items",
    "enum": "{expected}",
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong: ``place`` inside the message (keys and positions), and both sides in words."""

    place: Place
    expected: str
    found: str

    @property
    def path(self) -> str:
        """The place as text: ``plan.filters[0].node_id``; empty for the whole message, long ones without middle."""
        parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.place]
        if len(parts) > _LONGEST_PLACE:
            parts[_LONGEST_PLACE // 2 : -_LONGEST_PLACE // 2] = [" ... "]
        return "".join(parts).removeprefix(".")

    def __str__(self) -> str:
        if self.found == NOTHING:
            return f"{self.path} is missing"
        where = f"{self.path}: " if self.place else ""
        return f"{where}expected {self.expected}, found {self.found}"


def shorten(value: Any) -> str:
    """A value as short text for an error message; large arrays and containers only by size."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {list(value.shape)} and dtype {value.dtype}"
    if isinstance(value, (bytes, bytearray)) and len(value) > _LONGEST:
        return f"{len(value)} bytes"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = _REPR.repr(value)
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    if isinstance(value, (str, int, float, list, tuple, dict)):
        return text
    return f"{text} of type {type(value).__qualname__}"


def fault(expected: str, found: str = "", at: Sequence[int | str] = ()) -> PydanticCustomError:
    """The error to raise in a validator.

    Args:
        expected: what should have been there, in words (``"text"``).
        found: what was there instead; by default the validator's input, shortened.
        at: the place inside the validator's input.
    """
    return PydanticCustomError(_KIND, "expected {expected}", {"expected": expected, "found": found, "at": tuple(at)})


def problems(error: ValidationError) -> list[Problem]:
    """Everything wrong that pydantic found."""
    return [_problem(detail) for detail in error.errors(include_url=False)]


def _problem(detail: ErrorDetails) -> Problem:
    context = detail.get("ctx", {})
    if detail["type"] == _KIND:
        found = context["found"] or shorten(detail["input"])
        return Problem((*detail["loc"], *context["at"]), context["expected"], found)
    template = _EXPECTED.get(detail["type"])
    expected = template.format_map(context) if template else detail["msg"]
    found = NOTHING if detail["type"] == "missing" else shorten(detail["input"])
    return Problem(detail["loc"], expected, found)


def relocated(error: ValidationError, prefix: Place, drop: int) -> ValidationError:
    """The same faults at other places: without the first ``drop`` parts, and with ``prefix`` before them."""
    moved: list[InitErrorDetails] = []
    for problem in problems(error):
        inner = fault(problem.expected, problem.found)
        moved.append({"type": inner, "loc": (*prefix, *problem.place[drop:]), "input": None})
    return ValidationError.from_exception_data(error.title, moved)


def invalid_message(name: str, error: ValidationError) -> InvalidMessage:
    """One readable error for a message type's ``name``; ``details`` hold the first fault's path and both sides."""
    found = problems(error)
    shown = "; ".join(str(problem) for problem in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    first = found[0]
    return InvalidMessage(
        f"not a valid {name}: {shown}{more}", path=first.path, expected=first.expected, found=first.found
    )
