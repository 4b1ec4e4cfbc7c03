"""A function's parameters as the job's process reads them, without the cost of importing ``inspect``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from somatize_worker.hosts.inside.job import _parameters

SIGNATURES = [
    "",
    "a",
    "a, b=1",
    "a, /",
    "a, /, b",
    "a, b=1, /, c=2, *, d, e=3",
    "a=1, b=2",
    "*args",
    "**kwargs",
    "a, *args, b, c=1, **kwargs",
    "*, b",
    "*, b=None, **kwargs",
    "a, b, c=None, /, *rest, größe",
]


@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("body", ["pass", "x = y = 1; return [x for x in (y, 2)]", "yield 1"])
def test_plain_functions_read_as_inspect_reads_them(signature: str, body: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def f({signature}): {body}", namespace)
    assert_same(namespace["f"])


class Trainer:
    def __init__(self, lr: float) -> None:
        self.lr = lr

    def fit(self, data: Any, *, epochs: int = 1) -> None: ...

    @classmethod
    def run(cls, data: Any) -> None: ...

    def __call__(self, data: Any) -> None: ...


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def plain(data: Any, lr: float = 0.1) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        plain,
        wrapped(plain),
        functools.partial(plain, lr=1),
        Trainer,
        Trainer.run,
        Trainer(1).fit,
        Trainer(1),
        lambda x: x,
    ],
)
def test_other_callables_too(function: Callable[..., Any]) -> None:
    assert_same(function)


def assert_same(function: Callable[..., Any]) -> None:
    expected = {
        name: (one.kind.name, one.default is one.empty and not one.kind.name.startswith("VAR_"))
        for name, one in inspect.signature(function).parameters.items()
    }
    found = _parameters(function)
    assert {name: (kind, needed and not kind.startswith("VAR_")) for name, (kind, needed) in found.items()} == expected
    positional = [name for name, (kind, _) in expected.items() if kind.startswith("POSITIONAL")]
    assert list(found)[: len(positional)] == positional
