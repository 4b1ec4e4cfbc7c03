"""Which part of an object keeps it from being pickled, and what its owner can do about it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from somatize_worker.pipeline.origins import global_names, is_users
from somatize_worker.pipeline.reduction import reduced_form

_MOST_TRIALS: Final = 500
_HARMLESS: Final = (bool, int, float, complex, str, bytes, type(None), np.ndarray, np.generic)

_REMEDIES: Final = (
    (("lock", "condition", "event", "semaphore", "thread", "queue", "future", "executor", "local"),
     "Locks, threads and queues belong to one process: create them inside fit or forward, on first use"),
    (("wrapper", "buffered", "fileio", "_io.", "socket", "ssl"),
     "Open files and sockets belong to one process: keep the path or address, and open it inside fit or forward"),
    (("connection", "cursor", "engine", "session", "client", "pool", "redis"),
     "Connections belong to one process: keep the address, and connect inside fit or forward"),
    (("generator", "iterator", "coroutine", "frame", "traceback"),
     "What is in the middle of running cannot travel: make a list of it, or create it inside fit or forward"),
)  # fmt: skip


def remedy(culprit: Any) -> str:
    """A sentence or two that say what to do about an object that does not pickle."""
    kind = f"{type(culprit).__module__}.{type(culprit).__name__}".lower()
    fitting = (advice for words, advice in _REMEDIES if any(word in kind for word in words))
    return f"{next(fitting, 'Create it inside fit or forward')}, or leave it out of what __getstate__ returns."


def find_culprit(root: Any, name: str, sendable: Callable[[Any], bool]) -> tuple[str, Any]:
    """The innermost part of ``root`` that is not ``sendable``, with the path that leads to it.

    Args:
        root: an object known not to be sendable.
        name: what the path starts with.
        sendable: the test; called at most a few hundred times.
    """
    path, found, seen, trials = name, root, {id(root)}, 0
    while True:
        for suffix, part in _parts(found):
            if isinstance(part, _HARMLESS) or id(part) in seen:
                continue
            trials += 1
            if trials > _MOST_TRIALS:
                return path, found
            if not sendable(part):
                path, found = path + suffix, part
                seen.add(id(part))
                break
        else:
            return path, found


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """What an object is made of, as far as pickling follows it: (how the path goes on, part)."""
    if isinstance(obj, Mapping) and type(obj).__module__ in ("builtins", "collections"):
        yield from ((f"[{key!r}]", value) for key, value in obj.items())
    elif isinstance(obj, (list, tuple, set, frozenset)):
        yield from ((f"[{index}]", item) for index, item in enumerate(obj))
    elif isinstance(obj, types.FunctionType):
        yield from _function_parts(obj)
    elif isinstance(obj, types.MethodType):
        yield ".__self__", obj.__self__
        yield ".__func__", obj.__func__
    elif isinstance(obj, functools.partial):
        yield from ((".func", obj.func), (".args", obj.args), (".keywords", obj.keywords))
    elif isinstance(obj, type):
        if is_users(obj.__module__):
            yield from ((f".{key}", value) for key, value in vars(obj).items() if not key.startswith("__weakref"))
            yield from ((f".{base.__name__}", base) for base in obj.__bases__)
    elif isinstance(obj, (classmethod, staticmethod)):
        yield "", obj.__func__
    elif isinstance(obj, property):
        yield from (("", part) for part in (obj.fget, obj.fset, obj.fdel))
    elif isinstance(obj, types.ModuleType):
        if is_users(obj.__name__):
            yield from ((f".{key}", value) for key, value in vars(obj).items() if not key.startswith("__"))
    else:
        yield from _instance_parts(obj)


def _function_parts(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            yield f" → variable {name}", cell.cell_contents
        except ValueError:  # not bound yet
            continue
    for name in global_names(function.__code__):
        if name in function.__globals__:
            yield f" → global {name}", function.__globals__[name]
    yield from ((f" → default {index}", value) for index, value in enumerate(function.__defaults__ or ()))
    yield from ((f" → default {name}", value) for name, value in (function.__kwdefaults__ or {}).items())
    yield from ((f".{name}", value) for name, value in vars(function).items())


def _instance_parts(obj: Any) -> Iterator[tuple[str, Any]]:
    try:
        reduced = reduced_form(obj)
    except Exception:  # it is not its parts that do not pickle, it is the object: the path ends here
        return
    if not isinstance(reduced, tuple):
        return
    _, arguments, *rest = reduced
    states = rest[0] if rest else None
    for state in states if isinstance(states, tuple) else (states,):
        if isinstance(state, Mapping):
            yield from ((f".{key}", value) for key, value in state.items())
        elif state is not None:
            yield ".__getstate__()", state
    yield from ((f".__reduce__()[{index}]", part) for index, part in enumerate(arguments) if part is not type(obj))
    yield "", type(obj)
    for items in rest[1:3]:
        if items is not None:
            yield from ((f"[{index}]", item) for index, item in enumerate(items))
