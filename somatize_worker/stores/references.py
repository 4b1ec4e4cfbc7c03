"""What a reference says, and what happens to references and large values that stand inside other data.

Needs no store of its own: whatever has ``get`` or ``put`` serves. Light, as filter hosts use it too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn, Protocol

import numpy as np

from somatize_worker.errors import InvalidMessage, StoreError, StoreMismatch
from somatize_worker.packing import Reference
from somatize_worker.values import nbytes

log = logging.getLogger("somatize.stores")

KEY_BYTES: Final = 32


class Getter(Protocol):
    """A store to read from."""

    def get(self, reference: Reference) -> Any: ...


class Putter(Protocol):
    """A store to write to."""

    def put(self, value: Any, *, key: bytes | None = None) -> Reference: ...


class Remover(Protocol):
    """A store to remove from."""

    def delete(self, reference: Reference) -> None: ...


def resolve(store: Getter, plain: Any) -> Any:
    """The data with every reference in it replaced by the value it leads to.

    Raises:
        MissingData: a reference leads nowhere.
    """
    if isinstance(plain, Reference):
        return resolve(store, store.get(plain))
    return _mapped(plain, lambda item: resolve(store, item))


def offload(store: Putter, plain: Any, limit: int) -> Any:
    """The data with what is larger than ``limit`` bytes put into the store, references in its place.

    Large arrays and bytes inside dicts and lists go one by one, each once however often it occurs; a container that
    is still too large after that goes as a whole. :func:`resolve` is the way back.

    Raises:
        StoreFull: the store has no room.
    """
    if isinstance(plain, Reference) or nbytes(plain) <= limit:
        return plain
    stored: dict[int, Reference] = {}

    def moved(item: Any) -> Any:
        if isinstance(item, (np.ndarray, bytes)):
            if nbytes(item) <= limit:
                return item
            if id(item) not in stored:  # `plain` keeps the item alive, so its id stays its own
                stored[id(item)] = store.put(item)
            return stored[id(item)]
        return _mapped(item, moved)

    rest = moved(plain)
    return rest if isinstance(rest, Reference) or nbytes(rest) <= limit else store.put(rest)


def clear(store: Remover, references: Iterable[Reference]) -> None:
    """Remove what nobody needs any more. What cannot be removed now is left to expire, and the log says so."""
    for reference in references:
        try:
            store.delete(reference)
        except (StoreError, OSError) as error:
            log.warning("%s is left to expire: %s", text(reference), error)


def _mapped(plain: Any, change: Callable[[Any], Any]) -> Any:
    """A container with its items changed; anything else, and a container in which nothing changed, as it is."""
    if isinstance(plain, dict):
        changed = {key: change(value) for key, value in plain.items()}
        return changed if any(changed[key] is not plain[key] for key in plain) else plain
    if isinstance(plain, list):
        items = [change(value) for value in plain]
        return items if any(new is not old for new, old in zip(items, plain, strict=True)) else plain
    return plain


# ── for the stores ───────────────────────────────────────────────────────────────────────────────────────────────


def checked_key(key: Any) -> bytes:
    """A content key as bytes.

    Raises:
        InvalidMessage: it is not 32 bytes (or a list of 32 integers from 0 to 255).
    """
    try:
        raw = bytes(key) if isinstance(key, (bytes, bytearray, memoryview, list, tuple)) else b""
    except (TypeError, ValueError):
        raw = b""
    if len(raw) != KEY_BYTES:
        raise InvalidMessage(f"{key!r:.100} is no cache key: it must be {KEY_BYTES} bytes, such as a SHA-256 digest")
    return raw


def cached(key: bytes) -> Reference:
    """The reference of a value under a content key."""
    return Reference(type="Cached", cache_key=key)


def field(reference: Reference, name: str) -> Any:
    """One field of a reference.

    Raises:
        InvalidMessage: the reference lacks it.
    """
    try:
        return reference.fields[name]
    except KeyError:
        raise InvalidMessage(f"{reference!r} has no field {name!r}, which its type needs") from None


def text(reference: Reference) -> str:
    """A reference as people read it, for messages: ``Local 'ab/abcd.npy'``, ``Cached 0f0f…``."""
    fields = reference.fields
    if reference.type == "Local":
        return f"Local {fields.get('path')!r}"
    if reference.type == "Cached":
        key = fields.get("cache_key")
        return f"Cached {key.hex() if isinstance(key, bytes) else key}"
    return repr(reference)


_ELSEWHERE: Final = {
    "S3": "an object store, which this version does not read",
    "Zarr": "a Zarr store, which this version does not read",
    "Stream": "a live stream (open_stream), which has no stored value",
}


def refuse(reference: Reference, url: str) -> NoReturn:
    """Raise the error that says why the store at ``url`` cannot serve a reference, and who could.

    Raises:
        StoreMismatch: another kind of store of this cluster wrote it.
        StoreError: no store that is open here serves its type.
    """
    kind = reference.type
    if kind == "Local":
        raise StoreMismatch(
            f"{text(reference)} is a file in a shared folder, but the store in use is {url!r}: give every client and "
            "worker the same SOMA_STORE=file:///… , or submit the data again",
            store=url,
        )
    if kind in _ELSEWHERE:
        raise StoreError(
            f"the store {url!r} cannot serve {reference!r}: its type {kind} needs {_ELSEWHERE[kind]}; "
            "put the data into the cluster's own store and refer to that",
            store=url,
        )
    raise StoreError(
        f"{reference!r} has the unknown type {kind!r}; known are Local, Cached, Inline, {', '.join(_ELSEWHERE)}",
        store=url,
    )
