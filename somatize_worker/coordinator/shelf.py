"""Where a client puts large values: its store, once that has turned out to be the cluster's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from somatize_worker.ledger import Ledger
from somatize_worker.packing import Reference
from somatize_worker.pipeline import CompiledPipeline
from somatize_worker.ports import DataStore
from somatize_worker.stores.agreement import check_same
from somatize_worker.submission import content_key

_Keys = dict[str, tuple[Any, bytes]]


class Shelf:
    """Puts values into a store.

    Clients whose values are small never need the cluster's store, so nothing is asked for before the first large one.
    """

    def __init__(self, store: DataStore, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger
        self._is_same = False
        self._state_keys: WeakKeyDictionary[CompiledPipeline, _Keys] = WeakKeyDictionary()

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

    def state_key(self, compiled: CompiledPipeline) -> Callable[[str, Any], bytes]:
        """Gives the content keys of a pipeline's states; each state is looked through once, not for every plan."""
        known = self._state_keys.setdefault(compiled, {})

        def key(node_id: str, state: Any) -> bytes:
            if node_id not in known or known[node_id][0] is not state:
                known[node_id] = state, content_key(state)
            return known[node_id][1]

        return key
