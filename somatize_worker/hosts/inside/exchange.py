"""Values between this process and the store: small ones travel inline, large ones as files and references.

The same large array is written once, however often it leaves: as a journal entry, a child's input, an output.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from somatize_worker.errors import MissingData, StoreError
from somatize_worker.packing import Reference
from somatize_worker.stores import formats
from somatize_worker.stores.references import resolve
from somatize_worker.values import nbytes

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]


class Outside(Protocol):
    """What the interpreter needs of the world. Stored means: plain data, or a reference to plain data."""

    def load(self, stored: Any) -> Any:
        """The plain data behind something stored. Arrays are read-only."""
        ...

    def export(self, plain: Any) -> Any:
        """Plain data made ready to travel: as it is, or as a reference if it is large."""
        ...

    def find(self, key: bytes) -> Any | None:
        """What lies in the cache under a content key, stored; None if there is nothing."""
        ...

    def keep(self, key: bytes, plain: Any) -> Any:
        """Put plain data into the cache; how it is stored there."""
        ...

    def is_large(self, plain: Any) -> bool:
        """Whether plain data travels as a reference."""
        ...

    def is_local(self, stored: Any) -> bool:
        """Whether something loaded lay on this machine."""
        ...

    def is_own(self, stored: Any) -> bool:
        """Whether it is a reference to what was stored here, for this plan alone."""
        ...

    def user_code_runs(self) -> None:
        """Arrays that were exported may be other values from now on, unless they are read-only."""
        ...


class Exchange:
    """The :class:`Outside` of a filter host: files in the store's folder, and questions to the worker."""

    def __init__(self, ask: Ask, folder: Path, inline_limit: int) -> None:
        self._ask = ask
        self._folder = folder
        self._inline_limit = inline_limit
        self._known: dict[int, tuple[Callable[[], Any], Reference]] = {}
        self._fresh: tuple[Any, Reference] | None = None
        self._paths: dict[Reference, Path] = {}
        #: The files that were written here and are nobody's but this plan's.
        self.written: set[Reference] = set()

    def load(self, stored: Any) -> Any:
        """See :class:`Outside`. References may also stand inside lists and dicts.

        Raises:
            MissingData: a reference leads nowhere.
        """
        return resolve(self, stored)

    def get(self, stored: Reference) -> Any:
        """What a reference leads to.

        Raises:
            MissingData: nothing.
        """
        path = self._paths.get(stored)
        if path is None:
            answer = self._ask("fetch", {"reference": stored})
            if "path" not in answer:
                raise MissingData(answer.get("missing") or f"no data behind {stored!r}", reference=repr(stored))
            path = self._paths[stored] = Path(answer["path"])
        value = formats.read(path)
        self._remember(value, stored)
        return value

    def export(self, plain: Any) -> Any:
        """See :class:`Outside`.

        Raises:
            StoreFull: no room for the file.
        """
        if not self.is_large(plain):
            return plain
        known = self.reference_of(plain)
        return self.write(plain) if known is None else known

    def write(self, plain: Any) -> Reference:
        """A new file with the value, in the store's folder."""
        path = formats.write(self._folder / formats.new_name(), plain)
        reference = Reference(type="Local", path=path.relative_to(self._folder).as_posix())
        self._paths[reference] = path
        self.written.add(reference)
        self._remember(plain, reference)
        return reference

    def find(self, key: bytes) -> Any | None:
        """See :class:`Outside`."""
        return self._question("find", {"key": key})

    def keep(self, key: bytes, plain: Any) -> Any:
        """See :class:`Outside`. A large value gets a file of its own: the worker moves it to its place in the cache."""
        if not self.is_large(plain):
            return self._question("keep", {"key": key, "value": plain})
        written = self.write(plain)
        reference = self._question("keep", {"key": key, "reference": written})
        del self._paths[written]
        self.written.discard(written)
        self._remember(plain, reference)
        return reference

    def _question(self, what: str, payload: dict[str, Any]) -> Any:
        answer = self._ask(what, payload)
        if "reference" not in answer:
            raise StoreError(answer.get("missing") or f"the worker could not {what} something in the cache")
        return answer["reference"]

    def is_large(self, plain: Any) -> bool:
        """See :class:`Outside`."""
        return not isinstance(plain, Reference) and nbytes(plain) > self._inline_limit

    def is_local(self, stored: Any) -> bool:
        """See :class:`Outside`."""
        path = self._paths.get(stored) if isinstance(stored, Reference) else None
        return path is not None and path.is_relative_to(self._folder)

    def is_own(self, stored: Any) -> bool:
        """See :class:`Outside`."""
        return isinstance(stored, Reference) and stored in self.written

    # ── which values have a reference already ────────────────────────────────────────────────────────────────────

    def reference_of(self, value: Any) -> Reference | None:
        """Where a value, or the array of which it is a plain view, lies already."""
        candidates = [value]
        if isinstance(value, np.ndarray) and isinstance(value.base, np.ndarray):
            base = value.base
            if base.shape == value.shape and base.dtype == value.dtype and base.strides == value.strides:
                candidates.append(base)
        for candidate in candidates:
            if self._fresh is not None and self._fresh[0] is candidate:
                return self._fresh[1]
            alive, reference = self._known.get(id(candidate), (None, None))
            if alive is not None and alive() is candidate:
                return reference
        return None

    def _remember(self, value: Any, reference: Reference) -> None:
        if isinstance(value, np.ndarray) and not value.flags.writeable:
            self._known[id(value)] = (weakref.ref(value), reference)
        elif isinstance(value, bytes):
            self._known[id(value)] = (lambda: value, reference)
        else:
            self._fresh = (value, reference)

    def user_code_runs(self) -> None:
        """See :class:`Outside`."""
        self._fresh = None

    def forget(self) -> None:
        """The plan is over: let go of all values."""
        self._fresh = None
        self._known.clear()
