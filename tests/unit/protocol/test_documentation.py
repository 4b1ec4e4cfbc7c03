"""The protocol's page names every type, and the examples in the code are true."""

from __future__ import annotations

import doctest
import re
from enum import Enum
from pathlib import Path

import pytest

from somatize_worker import protocol
from somatize_worker.protocol import keys
from somatize_worker.protocol.base import Message

PAGE = Path(__file__).parents[3] / "docs" / "protocol.md"
TYPES = [
    name
    for name in protocol.__all__
    if isinstance(kind := getattr(protocol, name), type) and issubclass(kind, (Message, Enum))
]


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_on_the_page(name: str) -> None:
    assert re.search(rf"`{name}[`(]", PAGE.read_text()), f"{name} is not in {PAGE.name}"


@pytest.mark.parametrize("module", [protocol, keys])
def test_examples_in_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_every_message_type_is_exported() -> None:
    def subclasses(kind: type[Message]) -> list[type[Message]]:
        return [kind, *(deep for sub in kind.__subclasses__() for deep in subclasses(sub))]

    ours = [kind for kind in subclasses(Message) if kind.__module__.startswith("somatize_worker.protocol.")]
    assert {kind.__name__ for kind in ours} <= set(protocol.__all__)
