"""What a filter is, as a hash: its code and parameters, the same in every process and session.

Code of the user's own modules counts by content: bytecode, constants, defaults, closures, and the functions, classes
and constants it refers to, as far as it refers to them. Line numbers, comments, docstrings and the name of the module
do not count. Installed code counts by name and version. Parameters count by content; the order of sets and plain
mappings does not matter.

Every object's digest is SHA-256 over a tag and the digests of its parts, so it makes no difference which objects
happen to be shared. An object that leads back to itself is met again as "the n-th one begun".
"""

from __future__ import annotations

import functools
import hashlib
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np

from somatize_worker.errors import InvalidPipeline
from somatize_worker.pipeline.origins import (
    global_names,
    is_users,
    loaded,
    local_imports,
    mentioned,
    used_constants,
    version_of,
)
from somatize_worker.pipeline.reduction import reduced_form

_SKIPPED_MEMBERS: Final = frozenset(
    "__dict__ __weakref__ __doc__ __module__ __annotations__ __annotate__ __annotate_func__ __annotations_cache__ "
    "__firstlineno__ __static_attributes__ __slotnames__ __parameters__ __orig_bases__ __abstractmethods__ "
    "_abc_impl".split()
)
_HAS_DOCSTRING: Final = 0x4000000  # a code flag since Python 3.13


def fingerprint_of(obj: Any) -> str:
    """The fingerprint of a filter, or of any object: 64 hex digits.

    Raises:
        InvalidPipeline: something in it has no content that could be compared (an open file, a lock).
    """
    try:
        return _Walk({}, {}).digest(obj, type(obj).__name__).hex()
    except RecursionError:
        raise InvalidPipeline(f"{type(obj).__name__} is nested too deeply for a fingerprint; do not cache it") from None


def _hash(tag: str, *parts: bytes | memoryview) -> bytes:
    made = hashlib.sha256()
    for part in (tag.encode(), *parts):
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return made.digest()


def _plain(obj: Any) -> bytes | None:
    """The digest of what has no parts and no identity; None for everything else."""
    kind = type(obj)
    if kind is str:
        return _hash("str", obj.encode("utf-8", "surrogatepass"))
    if kind is bytes or kind is bytearray:
        return _hash(kind.__name__, bytes(obj))
    if kind is float:
        return _hash("float", obj.hex().encode())
    if kind is complex:
        return _hash("complex", obj.real.hex().encode(), obj.imag.hex().encode())
    if kind is bool or kind is int or obj is None or obj is ... or obj is NotImplemented:
        return _hash(kind.__name__, str(obj).encode())
    return None


class _Walk:
    """One fingerprint being made. Digests are remembered by identity, and objects kept alive meanwhile."""

    def __init__(self, begun: dict[int, int], done: dict[int, bytes], modules: Iterable[int] = ()) -> None:
        self._begun, self._done, self._open = begun, done, set(modules)
        self._alive: list[Any] = []

    def digest(self, obj: Any, path: str) -> bytes:
        """The digest of an object; ``path`` says in error messages where it was found."""
        plain = _plain(obj)
        if plain is not None:
            return plain
        key = id(obj)
        if key in self._done:
            return self._done[key]
        if key in self._begun:
            return _hash("again", str(self._begun[key]).encode())
        self._begun[key] = len(self._begun)
        self._alive.append(obj)
        made = self._content(obj, path)
        self._done[key] = made
        return made

    def _content(self, obj: Any, path: str) -> bytes:
        method = _BY_TYPE.get(type(obj))
        if method is not None:
            return method(self, obj, path)
        for kinds, method in _BY_BASE:
            if isinstance(obj, kinds):
                return method(self, obj, path)
        if hasattr(obj, "untyped_storage"):
            return self._tensor(obj, path)
        return self._instance(obj, path)

    def _apart(self, obj: Any, path: str) -> bytes:
        """A digest that does not depend on what else is met at this level, for things without an order."""
        return _plain(obj) or _Walk(dict(self._begun), dict(self._done), self._open).digest(obj, path)

    def _named(self, tag: str, parts: Iterable[tuple[str, Any]], path: str) -> bytes:
        """Digest of parts under names, which are sorted."""
        pairs = sorted(parts, key=lambda pair: pair[0])
        return _hash(tag, *(half for name, part in pairs for half in (name.encode(), self.digest(part, path + name))))

    # --- data ------------------------------------------------------------------------------------------------

    def _sequence(self, obj: Iterable[Any], path: str) -> bytes:
        parts = [self.digest(item, f"{path}[{index}]") for index, item in enumerate(obj)]
        return _hash(type(obj).__name__, *parts)

    def _set(self, obj: Iterable[Any], path: str) -> bytes:
        return _hash(type(obj).__name__, *sorted(self._apart(item, f"{path}[{item!r:.30}]") for item in obj))

    def _mapping(self, obj: Mapping[Any, Any], path: str) -> bytes:
        keyed = sorted(((self._apart(key, f"{path} key"), key) for key in obj), key=lambda pair: pair[0])
        return _hash(
            "dict", *(half for made, key in keyed for half in (made, self.digest(obj[key], f"{path}[{key!r}]")))
        )

    def _array(self, obj: Any, path: str) -> bytes:
        array = np.asarray(obj)
        shape = repr(array.shape).encode()
        if array.dtype.names:  # a structure may have padding, whose bytes mean nothing
            return _hash("struct", *(self._array(array[name], path) for name in array.dtype.names))
        if array.dtype.hasobject:
            return _hash("objects", shape, self._sequence(array.ravel().tolist(), path))
        data = np.ascontiguousarray(array).reshape(-1)
        return _hash("array", array.dtype.str.encode(), shape, data.view(np.uint8).data if data.size else b"")

    def _tensor(self, obj: Any, path: str) -> bytes:
        import torch

        data = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        facts = (obj.dtype, tuple(obj.shape), obj.requires_grad)
        return _hash("tensor", *(str(fact).encode() for fact in facts), data.data if data.size else b"")

    # --- code ------------------------------------------------------------------------------------------------

    def _code(self, code: types.CodeType, path: str) -> bytes:
        numbers = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & ~_HAS_DOCSTRING)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        constants = [(index, code.co_consts[index]) for index in used_constants(code)]
        return _hash(
            "code",
            code.co_code,
            getattr(code, "co_exceptiontable", b""),
            repr(numbers).encode(),
            repr(names).encode(),
            *(self.digest(constant, f"{path}.{code.co_name}") for _, constant in constants),
            repr([index for index, _ in constants]).encode(),
        )

    def _function(self, function: types.FunctionType, path: str) -> bytes:
        if not is_users(function.__module__) and _is_reachable(function):
            return _installed("function", function.__module__, function.__qualname__)
        code, path = function.__code__, f"{path}.{function.__name__}"
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        return _hash(
            "function",
            self._code(code, path),
            self.digest(function.__defaults__, path),
            self.digest(function.__kwdefaults__, path),
            self._named("closure", ((f".{name}", _content_of(cell)) for name, cell in cells), path),
            self._globals(function, path),
            self._named("attributes", ((f".{k}", v) for k, v in vars(function).items() if k != "__wrapped__"), path),
        )

    def _globals(self, function: types.FunctionType, path: str) -> bytes:
        """What the function refers to beyond itself: globals, and modules that it imports when it runs."""
        space, names = function.__globals__, mentioned(function.__code__)
        parts = []
        for name in global_names(function.__code__):
            if name in space:
                parts += [name.encode(), self._referred(space[name], names, f"{path} → {name}")]
        for name in local_imports(function.__code__, space.get("__package__")):
            module = loaded(name)
            if module is not None:
                parts += [name.encode(), self._referred(module, names, f"{path} → {name}")]
        return _hash("globals", *parts)

    def _referred(self, obj: Any, names: frozenset[str], path: str) -> bytes:
        """A global; of a module of the user's only what code with these names and texts in it can reach."""
        if not isinstance(obj, types.ModuleType) or not is_users(obj.__name__):
            return self.digest(obj, path)
        if id(obj) in self._open:
            return _hash("again", obj.__name__.encode())
        self._open.add(id(obj))
        reached = sorted(name for name in names & vars(obj).keys() if not name.startswith("__"))
        parts = [
            half
            for name in reached
            for half in (name.encode(), self._referred(vars(obj)[name], names, f"{path}.{name}"))
        ]
        self._open.discard(id(obj))
        return _hash("module", *parts)

    def _module(self, module: types.ModuleType, path: str) -> bytes:
        if not is_users(module.__name__):
            return _installed("module", module.__name__, "")
        content = ((f".{name}", part) for name, part in vars(module).items() if not name.startswith("__"))
        return self._named("module", content, path)

    def _class(self, cls: type, path: str) -> bytes:
        if not is_users(cls.__module__) and _is_reachable(cls):
            return _installed("class", cls.__module__, cls.__qualname__)
        members = ((f".{k}", v) for k, v in vars(cls).items() if k not in _SKIPPED_MEMBERS)
        return _hash(
            "class",
            cls.__name__.encode(),
            self._sequence((type(cls), *cls.__bases__), path),
            self._named("members", members, path),
        )

    def _method(self, method: types.MethodType, path: str) -> bytes:
        return _hash("method", self.digest(method.__func__, path), self.digest(method.__self__, path))

    def _builtin(self, function: Any, path: str) -> bytes:
        owner = getattr(function, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType):
            return _hash("bound", function.__name__.encode(), self.digest(owner, path))
        home = getattr(function, "__objclass__", None)
        if home is not None:  # a method or slot of a class, which is part of that class's own content
            return _hash("descriptor", home.__name__.encode(), function.__name__.encode())
        name = getattr(function, "__qualname__", None) or function.__name__
        return _installed("function", getattr(function, "__module__", None) or "builtins", name)

    def _property(self, obj: property, path: str) -> bytes:
        return _hash("property", *(self.digest(part, path) for part in (obj.fget, obj.fset, obj.fdel)))

    def _wrapper(self, obj: Any, path: str) -> bytes:
        """``staticmethod``, ``classmethod``, ``cached_property``, ``lru_cache``: the function inside."""
        inner = obj.func if isinstance(obj, functools.cached_property) else obj.__wrapped__
        return _hash(type(obj).__name__, self.digest(inner, path))

    def _nothing(self, obj: Any, path: str) -> bytes:
        """What holds no content of its own: weak references and caches made of them."""
        return _hash(type(obj).__name__)

    # --- everything else -------------------------------------------------------------------------------------

    def _instance(self, obj: Any, path: str) -> bytes:
        """An object as pickle sees it: how to make it, and its state."""
        try:
            reduced = reduced_form(obj)
        except Exception as error:  # user code may raise anything
            raise InvalidPipeline(
                f"{path} is a {type(obj).__module__}.{type(obj).__qualname__}, whose content cannot be compared "
                f"({error}): leave it out of what __getstate__ returns, or do not cache this step",
                path=path,
            ) from error
        if isinstance(reduced, str):
            return _installed("global", getattr(obj, "__module__", "") or type(obj).__module__, reduced)
        make, arguments, *rest = reduced
        state, items, pairs = (*rest, None, None, None)[:3]
        return _hash(
            "instance",
            self.digest(make, path),
            self.digest(tuple(arguments), path),
            self._state(state, path),
            self.digest(None if items is None else list(items), path),
            self.digest(None if pairs is None else list(pairs) if isinstance(obj, OrderedDict) else dict(pairs), path),
        )

    def _state(self, state: Any, path: str) -> bytes:
        if isinstance(state, dict) and all(isinstance(key, str) for key in state):
            return self._named("state", ((f".{key}", value) for key, value in state.items()), path)
        return self.digest(state, path)


def _installed(kind: str, module: str, name: str) -> bytes:
    return _hash(f"installed {kind}", module.encode(), name.encode(), version_of(module).encode())


def _is_reachable(obj: Any) -> bool:
    """Whether the object is what its module and qualified name lead to (and not made while running)."""
    found: Any = sys.modules.get(obj.__module__)
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is not bound yet
        return NotImplemented


_Method = Callable[[_Walk, Any, str], bytes]
_BY_TYPE: Final[dict[type, _Method]] = {
    tuple: _Walk._sequence,
    list: _Walk._sequence,
    dict: _Walk._mapping,
    types.MappingProxyType: _Walk._mapping,
    types.CodeType: _Walk._code,
    types.FunctionType: _Walk._function,
    types.MethodType: _Walk._method,
    property: _Walk._property,
    functools.cached_property: _Walk._wrapper,
    staticmethod: _Walk._wrapper,
    classmethod: _Walk._wrapper,
    functools._lru_cache_wrapper: _Walk._wrapper,
}
_BY_BASE: Final[tuple[tuple[Any, _Method], ...]] = (
    (type, _Walk._class),
    (types.ModuleType, _Walk._module),
    ((set, frozenset), _Walk._set),
    ((np.ndarray, np.generic), _Walk._array),
    (
        (
            types.BuiltinFunctionType,
            types.MethodDescriptorType,
            types.WrapperDescriptorType,
            types.MethodWrapperType,
            types.GetSetDescriptorType,
            types.MemberDescriptorType,
            types.ClassMethodDescriptorType,
        ),
        _Walk._builtin,
    ),
    (
        (weakref.ReferenceType, weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet),
        _Walk._nothing,
    ),
)
