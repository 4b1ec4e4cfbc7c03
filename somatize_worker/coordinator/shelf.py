"""Where a client puts large values: its store, once that has turned out to be the cluster's."""

from __future__ import annotations

from typing import Any

from somatize_worker.ledger import Ledger
from somatize_worker.packing import Reference
from somatize_worker.ports import DataStore
from somatize_worker.stores.agreement import check_same


class Shelf:
    """Puts values into a store.

    Clients whose values are small never need the cluster's store, so nothing is asked for before the first large one.
    """

    def __init__(self, store: DataStore, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger
        self._is_same = False

    def put(self, value: Any, *, key: bytes | None = None) -> Reference:
        """Store a value where the workers find it.

        Raises:
            StoreMismatch: the workers use another store.
            StoreFull: no room.
        """
        if not self._is_same:
            agreed = self._ledger.agreed_store()
            if agreed is not None:
                check_same(self._store, agreed)
                self._is_same = True
        return self._store.put(value, key=key)
