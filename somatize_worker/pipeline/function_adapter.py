"""Plain callables as stateless filters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from somatize_worker.errors import InvalidPipeline


def callable_name(function: Any) -> str:
    """A short name for a callable: ``normalise``, ``lambda``, ``partial`` resolved to what it wraps."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    return str(name).strip("<>")


class FunctionFilter:
    """A stateless filter that calls ``function(x)``.

    Raises:
        InvalidPipeline: the function cannot be called with exactly one argument, or is a coroutine function.
    """

    _kind = "stateless"
    _stream_mode = "fixed"
    _cacheable: bool | None = None
    _differentiable = False

    def __init__(self, function: Callable[[Any], Any]) -> None:
        _check(function)
        self.function = function
        self.name = callable_name(function)

    def fit(self, x: Any, y: Any = None) -> None:
        """Nothing to learn."""

    def forward(self, x: Any, state: Any = None) -> Any:
        """``function(x)``; the state is not used."""
        return self.function(x)

    def __repr__(self) -> str:
        return self.name


def _check(function: Callable[..., Any]) -> None:
    name = callable_name(function)
    called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
        raise InvalidPipeline(f"{name} is an async function; a step is called without an event loop: make it plain")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # many built-in functions do not say
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise InvalidPipeline(
            f"{name}{signature} cannot be a step: a step is called with one argument, the output of the step before "
            f"({error}). Give defaults to the others, or bind them with functools.partial.",
        ) from None
