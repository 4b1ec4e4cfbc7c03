"""Where code comes from: the user's own modules, or what is installed; and what a code object refers to.

The user's own modules (files outside the standard library and ``site-packages``, and ``__main__``) travel by value
and are fingerprinted by content. Installed ones travel by name and are fingerprinted by name and version.
"""

from __future__ import annotations

import dis
import importlib
import importlib.metadata
import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, ModuleType
from typing import Final

OWN_PACKAGE: Final = __name__.partition(".")[0]
_GLOBAL_OPS: Final = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL"})
_INSTALL_FOLDERS: Final = ("site-packages", "dist-packages")


@lru_cache(maxsize=1)
def _installed_roots() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    roots = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib") if name in paths}
    roots.update(site.getsitepackages())
    roots.add(site.getusersitepackages())
    return tuple(os.path.realpath(root) + os.sep for root in sorted(roots))


@lru_cache(maxsize=4096)
def is_installed_path(path: str) -> bool:
    """Whether a file or folder belongs to the standard library or to an installed distribution."""
    real = os.path.realpath(path)
    if any(part in _INSTALL_FOLDERS for part in real.split(os.sep)):
        return True
    return any((real + os.sep).startswith(root) for root in _installed_roots())


def _place(module: ModuleType) -> str | None:
    """The module's file, or a namespace package's first folder; None for what is built in."""
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return file
    folders = list(getattr(module, "__path__", ()))
    return str(folders[0]) if folders else None


def owner(name: str) -> str:
    """The package that decides where a module comes from: the outermost one that is more than a namespace."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count])
        if getattr(sys.modules.get(prefix), "__file__", None) is not None:
            return prefix
    return name if len(parts) > 1 and name in sys.modules else parts[0]


def is_users(name: str | None) -> bool:
    """Whether the module of that name is the user's own, so that no worker can be expected to have it.

    A module that is not loaded under its name (a notebook cell, code that itself arrived by value) counts as the
    user's: there is nothing that another process could import.
    """
    if not name or name == "__main__":
        return True
    top = name.partition(".")[0]
    if top == OWN_PACKAGE or top in sys.stdlib_module_names:
        return False
    module = sys.modules.get(owner(name))
    if module is None:
        return True
    place = _place(module)
    if place is None:
        return getattr(module, "__spec__", None) is None
    return not is_installed_path(place)


@lru_cache(maxsize=1024)
def version_of(name: str) -> str:
    """The version of the distribution that holds a module; the Python version for the standard library."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    declared = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(declared, str):
        return declared
    try:
        return importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        found = importlib.metadata.packages_distributions().get(top, [])
        return ", ".join(f"{dist} {importlib.metadata.version(dist)}" for dist in sorted(set(found)))


def _walk(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _walk(const)


@lru_cache(maxsize=4096)
def global_names(code: CodeType) -> tuple[str, ...]:
    """The global names that a code object and the code within it use, sorted."""
    found: set[str] = set()
    for part in _walk(code):
        found.update(str(step.argval) for step in dis.get_instructions(part) if step.opname in _GLOBAL_OPS)
    return tuple(sorted(found))


@lru_cache(maxsize=4096)
def mentioned(code: CodeType) -> frozenset[str]:
    """Every name and string constant in a code object: which attributes of a module it may use."""
    found: set[str] = set()
    for part in _walk(code):
        found.update(part.co_names)
        found.update(const for const in part.co_consts if isinstance(const, str))
    return frozenset(found)


@lru_cache(maxsize=4096)
def used_constants(code: CodeType) -> tuple[int, ...]:
    """Indices of the constants that a code object loads: a docstring is a constant that it does not load."""
    return tuple(sorted({step.arg or 0 for step in dis.get_instructions(code) if step.opcode in dis.hasconst}))


@lru_cache(maxsize=4096)
def _imports(code: CodeType) -> tuple[tuple[int, str, tuple[str, ...]], ...]:
    """Import statements inside a code object as (level, module, names)."""
    found = []
    for part in _walk(code):
        before: list[object] = []
        for step in dis.get_instructions(part):
            if step.opname == "IMPORT_NAME":
                level, names = (before[-2], before[-1]) if len(before) > 1 else (0, None)
                wanted = tuple(names) if isinstance(names, tuple) else ()
                found.append((level if isinstance(level, int) else 0, str(step.argval), wanted))
            if step.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
                before.append(step.argval)
    return tuple(dict.fromkeys(found))


def local_imports(code: CodeType, package: str | None) -> list[str]:
    """Names of the user's own modules that the code imports when it runs (``def f(): from mine import g``).

    Some of the names may be attributes of modules (``mine.g``): what ``from`` imports is known only by trying.

    Args:
        code: a function's code.
        package: the function's ``__package__``, against which relative imports are resolved.
    """
    names: list[str] = []
    for level, target, wanted in _imports(code):
        if level:
            if not package:
                continue
            base = package.rsplit(".", level - 1)[0] if level > 1 else package
            target = f"{base}.{target}" if target else base
        top = target.partition(".")[0]
        if not _leads_to_users(target):
            continue
        names.append(target)
        names.extend(f"{target}.{name}" for name in wanted)
        if not wanted:  # "import a.b" binds a, through which all of it can be reached
            names.append(top)
    return list(dict.fromkeys(names))


def loaded(name: str) -> ModuleType | None:
    """The module of that name, imported if need be; None if it does not import here, or is no module at all."""
    if name not in sys.modules:
        try:
            importlib.import_module(name)
        except ImportError:  # say, it needs a library that only the worker has
            return None
    return sys.modules.get(name)


def _leads_to_users(name: str) -> bool:
    """Whether an imported name leads to a module of the user's, loaded or not."""
    top = name.partition(".")[0]
    if top == OWN_PACKAGE or top in sys.stdlib_module_names:
        return False
    if top in sys.modules:
        return is_users(name)
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module whose __spec__ is None: made at run time, nothing to find
        return False
    if spec is None:
        return False
    folders = list(spec.submodule_search_locations or ())
    place = spec.origin if spec.has_location else (folders[0] if folders else None)
    return place is not None and not is_installed_path(place)
