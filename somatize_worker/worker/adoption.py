"""Files that a host wrote become entries of the store, each once, however often the host refers to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from somatize_worker.packing import Reference, pack, unpack
from somatize_worker.ports import DataStore
from somatize_worker.stores import clear
from somatize_worker.stores.files import FileStore


class Adoption:
    """One run's files. A file store has them in place already: then nothing is looked at."""

    def __init__(self, store: DataStore) -> None:
        self._store = store
        self._in_place = isinstance(store, FileStore)
        self._adopted: dict[str, Reference] = {}

    def adopt(self, plain: Any) -> Any:
        """The same data, with references into the store."""
        if self._in_place:
            return plain
        if isinstance(plain, Reference):
            return self._reference(plain) if plain.type == "Local" else plain
        if isinstance(plain, dict):
            return {key: self.adopt(value) for key, value in plain.items()}
        if isinstance(plain, list):
            return [self.adopt(value) for value in plain]
        return plain

    def adopt_packed(self, entry: bytes) -> bytes:
        """:meth:`adopt` for packed data."""
        return entry if self._in_place else pack(self.adopt(unpack(entry)))

    def keep(self, reference: Reference, key: bytes) -> Reference:
        """Move a file to its place in the cache."""
        return self._store.adopt(self._store.workspace() / reference.fields["path"], key=key)

    def discard(self, references: Iterable[Reference]) -> None:
        """Remove files that nobody needs any more."""
        clear(self._store, (self._adopted.get(one.fields.get("path", ""), one) for one in references))

    def _reference(self, reference: Reference) -> Reference:
        path = reference.fields["path"]
        if path not in self._adopted:
            self._adopted[path] = self._store.adopt(self._store.workspace() / path)
        return self._adopted[path]
