"""Any object that may be a step, as a filter: ``fit(x, y=None) -> state`` and ``forward(x, state) -> output``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from somatize_worker.errors import InvalidPipeline
from somatize_worker.pipeline.function_adapter import FunctionFilter
from somatize_worker.pipeline.sklearn_adapter import SklearnFilter, is_estimator, sklearn_filter
from somatize_worker.pipeline.torch_adapter import TorchFilter, is_module

ACCEPTED: Final = (
    "a step is an object with fit(x, y) and forward(x, state), a function of one argument, a scikit-learn estimator "
    "or a torch.nn.Module"
)


def adapt(obj: Any) -> Any:
    """The filter for an object: itself if it is one, else an adapter around it.

    Raises:
        InvalidPipeline: the object cannot be a step: what it is, what is accepted, and a hint.
    """
    if isinstance(obj, type):
        name = obj.__name__
        converts = not any(hasattr(obj, method) for method in ("fit", "forward"))
        hint = f", or lambda x: {name}(x) to call it with each input" if converts else ""
        raise InvalidPipeline(f"{name} is a class, not an object: write {name}(...){hint}", given=repr(obj))
    if isinstance(obj, (FunctionFilter, SklearnFilter, TorchFilter)):
        return obj
    if is_module(obj):
        return _checked(obj) if callable(getattr(obj, "fit", None)) else TorchFilter(obj)
    if callable(getattr(obj, "forward", None)):
        return _checked(obj)
    if is_estimator(obj):
        return sklearn_filter(obj)
    if callable(obj):
        return FunctionFilter(obj)
    raise InvalidPipeline(
        f"{_shown(obj)} ({type(obj).__name__}) cannot be a step: {ACCEPTED}{_hint(obj)}",
        given=type(obj).__name__,
    )


def kind_of(obj: Any) -> str:
    """``trainable`` or ``stateless``: the filter's ``_kind``, else whether it has ``fit``.

    Raises:
        InvalidPipeline: ``_kind`` is something else.
    """
    kind = getattr(obj, "_kind", None)
    if kind is None:
        return "trainable" if callable(getattr(obj, "fit", None)) else "stateless"
    if kind not in ("trainable", "stateless"):
        raise InvalidPipeline(f'{name_of(obj)}._kind is {kind!r}; it should be "trainable" or "stateless"')
    return str(kind)


def name_of(obj: Any) -> str:
    """The name that a filter's node id is derived from: the class's, the function's, the estimator's."""
    if isinstance(obj, (FunctionFilter, SklearnFilter, TorchFilter)):
        return obj.name
    return type(obj).__name__


def wrapped(obj: Any) -> Any:
    """What an adapter stands for; other filters stand for themselves."""
    if isinstance(obj, FunctionFilter):
        return obj.function
    if isinstance(obj, SklearnFilter):
        return obj.estimator
    return obj.module if isinstance(obj, TorchFilter) else obj


def _checked(obj: Any) -> Any:
    """A filter that someone wrote: find out now whether its methods can be called as they will be."""
    name = type(obj).__name__
    for method, arguments in (("forward", "x, state"), ("fit", "x, y")):
        function = getattr(obj, method, None)
        if function is None:
            continue
        if getattr(function, "is_missing", False):
            raise InvalidPipeline(f"{name} has no {method} method: def {method}(self, {arguments}): ...")
        if inspect.iscoroutinefunction(function):
            raise InvalidPipeline(f"{name}.{method} is async; filters are called without an event loop: make it plain")
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # written in C: it does not say
            continue
        if not (_takes(signature, 2) or _takes(signature, 1)):
            raise InvalidPipeline(
                f"{name}.{method}{signature} cannot be called as {method}({arguments}), nor as {method}(x). "
                f"A filter has fit(self, x, y=None) and forward(self, x, state).",
            )
    return obj


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _shown(obj: Any) -> str:
    text = repr(obj)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(obj: Any) -> str:
    if isinstance(obj, np.ndarray):
        return ". Data is not part of a pipeline: pass it to fit or forward."
    if isinstance(obj, Mapping):
        return ". For branches that get the same input, use fork(name=step, ...)."
    if isinstance(obj, Sequence) and not isinstance(obj, str):
        return ". For steps one after the other, use pipeline(*steps)."
    if callable(getattr(obj, "fit", None)):
        return ". It has fit, but neither forward, transform nor predict."
    return ""
