"""Whether a store is the one that the rest of the cluster uses: folders are known by markers, others by their URL."""

from __future__ import annotations

import re
from typing import Final

from somatize_worker.errors import StoreMismatch
from somatize_worker.ports import DataStore
from somatize_worker.stores.files import FileStore

_MARKER: Final = re.compile(r"[0-9a-f]{32}")


def identity(store: DataStore) -> str:
    """What all members of a cluster have to agree on."""
    return store.marker() if isinstance(store, FileStore) else store.url


def check_same(store: DataStore, agreed: str) -> None:
    """Make sure that a store is the cluster's.

    Raises:
        StoreMismatch: it is another one.
    """
    if identity(store) == agreed:
        return
    is_folder = _MARKER.fullmatch(agreed) is not None
    if is_folder and isinstance(store, FileStore):
        store.check_marker(agreed)
    there = "in a shared folder" if is_folder else f"in {agreed!r}"
    raise StoreMismatch(
        f"large values go to {store.url!r} here, but the cluster keeps them {there}: give every worker and client the "
        "same SOMA_STORE",
        store=store.url,
        expected=agreed,
    )
