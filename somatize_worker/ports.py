"""Interfaces with several implementations. An implementation imports this file, never another implementation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from somatize_worker.packing import Reference


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor's metadata: number of rows, shape of one row, and numpy dtype string (``"<f8"``)."""

    total_rows: int
    shape_tail: tuple[int, ...]
    dtype: str


class DataStore(Protocol):
    """Where large values lie. A *value* is plain data: a numpy array, JSON-like data, bytes, or None.

    Every method raises :class:`~somatize_worker.errors.MissingData` for a reference that leads nowhere and
    :class:`~somatize_worker.errors.StoreFull` when there is no room, leaving nothing partial behind.
    """

    url: str

    def put(self, value: Any, *, key: bytes | None = None) -> Reference:
        """Store a value; with ``key`` (32 bytes) under that content key, once, else under a new name."""
        ...

    def get(self, reference: Reference) -> Any:
        """The value. Tensors may be read-only views of the store's own memory."""
        ...

    def find(self, key: bytes) -> Reference | None:
        """The reference of what was put under a content key, if it is there."""
        ...

    def info(self, reference: Reference) -> TensorInfo:
        """A tensor's metadata, without loading it."""
        ...

    def rows(self, reference: Reference, start: int, stop: int) -> Any:
        """Rows ``start`` to ``stop`` (exclusive) of a tensor, without loading the rest."""
        ...

    def delete(self, reference: Reference) -> None:
        """Remove a value; nothing happens if it is gone already."""
        ...

    def fetch(self, reference: Reference, folder: Path) -> Path:
        """A file on this machine with the value, in the formats of ``stores.formats``; made in ``folder`` if the
        store has no such file of its own. Uses memory in small parts, whatever the value's size."""
        ...

    def adopt(self, path: Path, *, key: bytes | None = None) -> Reference:
        """Take over a file written by ``stores.formats`` in :meth:`workspace`: it is no longer the caller's. A store
        may keep it where it is."""
        ...

    def workspace(self) -> Path:
        """A folder on this machine in which files that :meth:`adopt` will take can be written cheaply."""
        ...

    def sweep(self) -> int:
        """Remove what has expired and what crashed writers left behind; returns how many entries went."""
        ...
