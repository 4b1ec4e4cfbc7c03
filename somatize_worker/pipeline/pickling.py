"""Filters as bytes: cloudpickle, with the user's own modules by value and installed ones by name.

A worker needs the libraries that a filter uses, never the user's own source files. Three things are added to
cloudpickle: a module of the user's is registered for by-value pickling when one of its objects is first met (so no
dump has to look through all loaded modules); modules that refer to each other are handled; and modules that a
function imports only when it runs travel along and are put in place before the filter is used.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
from collections.abc import Iterable
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import cloudpickle

from somatize_worker.errors import InvalidPipeline
from somatize_worker.pipeline.culprit import find_culprit, remedy
from somatize_worker.pipeline.origins import is_users, loaded, local_imports, owner

_decided: set[str] = set()
_lock = threading.Lock()
_NOT_CARRIED = ("__builtins__", "__cached__", "__loader__", "__spec__", "__file__", "__path__")


def trust(name: str | None) -> None:
    """See to it that objects of the module with this name are pickled by value if the module is the user's own."""
    if name is None or name in _decided:
        return
    with _lock:
        module = sys.modules.get(owner(name))
        if module is None:
            return  # not loaded under its name: cloudpickle takes it by value anyway, and it may be loaded later
        if is_users(name) and name != "__main__":
            cloudpickle.register_pickle_by_value(module)
        _decided.add(name)


def trust_loaded() -> None:
    """:func:`trust` for every module loaded since the last call; for pickles that other code makes."""
    for name in set(sys.modules) - _decided:
        trust(name)


class _Pickler(cloudpickle.Pickler):
    """cloudpickle's, and a note of the modules that the pickled functions import when they run."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=cloudpickle.DEFAULT_PROTOCOL)
        self.imported: dict[str, None] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ModuleType):
            trust(obj.__name__)
            return _reduce_module(obj) if is_users(obj.__name__) else NotImplemented
        if isinstance(obj, (FunctionType, type, TypeVar)):
            trust(getattr(obj, "__module__", None))
        if isinstance(obj, FunctionType) and is_users(obj.__module__):
            self.imported.update(dict.fromkeys(local_imports(obj.__code__, obj.__globals__.get("__package__"))))
        return super().reducer_override(obj)


def _new_module(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__dict__["__builtins__"] = sys.modules["builtins"]
    return module


def _fill_module(module: ModuleType, content: dict[str, Any]) -> None:
    module.__dict__.update(content)


def _reduce_module(module: ModuleType) -> tuple[Any, ...]:
    content = {key: value for key, value in vars(module).items() if key not in _NOT_CARRIED}
    if hasattr(module, "__path__"):
        content["__path__"] = []
    return _new_module, (module.__name__,), content, None, None, _fill_module


def _arrive(modules: dict[str, ModuleType | None], obj: Any) -> Any:
    """Put carried modules where ``import`` finds them, then hand out what was pickled with them."""
    for name, module in modules.items():
        present = sys.modules.get(name)
        if getattr(present, "__spec__", None) is not None:
            continue  # imported from its own file: this is the process that it came from
        if module is None:  # only there so that the names below it can be reached
            module = present or _new_module(name)
            module.__path__ = list(getattr(module, "__path__", []))
        sys.modules[name] = module
        # What this process pickles in turn (states, results) goes to processes that cannot import it either.
        cloudpickle.register_pickle_by_value(module)
    for name in modules:
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    return obj


class _Carrier:
    """An object together with modules that its functions import at run time."""

    def __init__(self, obj: Any, names: Iterable[str]) -> None:
        modules: dict[str, ModuleType | None] = {}
        for name in sorted(names):
            parts = name.split(".")
            for count in range(1, len(parts)):
                modules.setdefault(".".join(parts[:count]), None)
            modules[name] = sys.modules[name]
        self.obj, self.modules = obj, dict(sorted(modules.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self.modules, self.obj)


def _dump(obj: Any) -> tuple[bytes, dict[str, None]]:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(obj)
    return buffer.getvalue(), pickler.imported


def dumps(obj: Any, *, what: str = "") -> bytes:
    """The object as bytes that ``pickle.loads`` reads in a process that cannot import the user's modules.

    That process needs this package, and the installed libraries that the object uses.

    Args:
        obj: a filter, or anything else.
        what: how an error message calls it (a step's name); default: its class.

    Raises:
        InvalidPipeline: something in it cannot be pickled: which attribute, and what to do.
    """
    try:
        data, imported = _dump(obj)
        carried = {name for name in imported if loaded(name) is not None}
        while carried:
            data, imported = _dump(_Carrier(obj, carried))
            more = {name for name in imported if loaded(name) is not None} - carried
            if not more:
                break
            carried |= more
    except MemoryError:
        raise
    except Exception as error:  # user code (__getstate__, __reduce__) may raise anything
        raise _unsendable(obj, what or type(obj).__name__, error) from error
    return data


def loads(data: bytes) -> Any:
    """What :func:`dumps` was given. Runs code from the bytes: only for pickles from people you trust."""
    return pickle.loads(data)


def _sendable(obj: Any) -> bool:
    try:
        _dump(obj)
    except Exception:  # the question is only whether
        return False
    return True


def _unsendable(obj: Any, what: str, error: Exception) -> InvalidPipeline:
    path, culprit = find_culprit(obj, what, _sendable)
    kind = f"{type(culprit).__module__}.{type(culprit).__qualname__}".removeprefix("builtins.")
    found = f"{path} is a {kind}" if culprit is not obj else f"it is a {kind}"
    return InvalidPipeline(
        f"step {what!r} cannot be sent to a worker: {found}, which does not pickle "
        f"({type(error).__name__}: {error}). {remedy(culprit)}",
        step=what,
        path=path,
        type=kind,
    )


def requirements_of(obj: Any) -> list[str]:
    """What an object declares to need installed: its ``requirements`` (lines as in ``requirements.txt``).

    Nothing is guessed from imports. A step without the attribute needs nothing beyond the worker's own environment.

    Raises:
        InvalidPipeline: ``requirements`` is there but is neither text nor a list of text.
    """
    declared = getattr(obj, "requirements", None)
    if declared is None:
        return []
    lines = declared.splitlines() if isinstance(declared, str) else declared
    if not isinstance(lines, (list, tuple)) or not all(isinstance(line, str) for line in lines):
        raise InvalidPipeline(
            f"{type(obj).__name__}.requirements is {declared!r}; it should be a list of requirement lines "
            f'such as ["pandas>=2.1"]',
        )
    return [line.strip() for line in lines if line.strip()]
