"""The content-addressed cache: under which keys the outputs and states of nodes lie.

Keys are those of the protocol's ``CacheKey``: SHA-256 over parts, each part preceded by its length as 8 little-endian
bytes. A node's configuration is its fingerprint, or else the digest of its pickle. An output that a cached node made
is named by its key, so that what depends on it is found without reading it.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from somatize_worker.errors import Unrepresentable
from somatize_worker.values import to_plain


def of_parts(*parts: bytes) -> bytes:
    """The key of these parts, in this order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


NO_STATE: Final = of_parts(b"")
"""What stands for the state of a filter without one."""


def for_state(config: bytes, data: bytes) -> bytes:
    """The key of the state that a filter with this configuration has after fitting on this data."""
    return of_parts(config, data)


def for_output(config: bytes, state: bytes, input: bytes) -> bytes:
    """The key of what a filter with this configuration and state makes of this input."""
    return of_parts(config, state, input)


def for_data(x: bytes, y: bytes | None, batch_size: int | None) -> bytes:
    """The key of what a filter is fitted on."""
    if y is None and batch_size is None:
        return x
    return of_parts(x, y or b"", str(batch_size).encode())


#: Names of the values in some data: where (keys and indices), and the key.
Names = list[list[Any]]


class Digests:
    """Digests of values by their content, or by where they came from. One for each plan.

    A value must have the same digest wherever the plan goes on, in this process or another one: its name travels along,
    as :meth:`names_in` and :meth:`take_names` have it.
    """

    def __init__(self) -> None:
        self._named: dict[int, tuple[weakref.ref[Any], bytes]] = {}

    def name(self, value: Any, key: bytes) -> None:
        """``value`` is what lies under ``key``. Remembered for arrays and other objects; small data are as fast to
        digest again."""
        try:
            self._named[id(value)] = (weakref.ref(value), key)
        except TypeError:
            return

    def names_in(self, value: Any) -> Names:
        """The names of a value, or of the parts of a list or dict."""
        return list(self._names_in(value, ())) if self._named else []

    def _names_in(self, value: Any, place: tuple[Any, ...]) -> Iterator[list[Any]]:
        key = self._name_of(value)
        if key is not None:
            yield [list(place), key]
        elif type(value) is dict:
            for name, part in value.items():
                yield from self._names_in(part, (*place, name))
        elif type(value) in (list, tuple):
            for index, part in enumerate(value):
                yield from self._names_in(part, (*place, index))

    def take_names(self, value: Any, names: Names) -> None:
        """``value`` has come from another process, or from the journal, with these names."""
        for place, key in names:
            part = value
            for step in place:
                part = part[step]
            self.name(part, key)

    def of(self, value: Any) -> bytes | None:
        """The digest; None for an object that no protocol value can carry."""
        try:
            return self._of(value)
        except Unrepresentable:
            return None

    def _name_of(self, value: Any) -> bytes | None:
        known, key = self._named.get(id(value), (None, b""))
        if known is not None and known() is value:
            return key
        base = value.base if isinstance(value, np.ndarray) else None
        if isinstance(base, np.ndarray) and base.shape == value.shape and base.strides == value.strides:
            known, key = self._named.get(id(base), (None, b""))
            if known is not None and known() is base:
                return key
        return None

    def _of(self, value: Any) -> bytes:
        key = self._name_of(value)
        if key is not None:
            return key
        if type(value) is dict and all(type(name) is str for name in value):
            parts = [
                part
                for name in sorted(value)
                for part in (name.encode("utf-8", "surrogatepass"), self._of(value[name]))
            ]
            return of_parts(b"dict", *parts)
        if type(value) in (list, tuple):
            return self._of_items(value)
        return _of_leaf(value)

    def _of_items(self, items: Any) -> bytes:
        digest = hashlib.sha256(b"list")
        for item in items:
            digest.update(self._of(item))
        return digest.digest()


def _of_leaf(value: Any) -> bytes:
    plain = to_plain(value)
    if isinstance(plain, np.ndarray):
        return _of_array(plain)
    if isinstance(plain, bytes):
        return of_parts(b"bytes", plain)
    if isinstance(plain, (dict, list)):  # an object that was none of these before
        return Digests()._of(plain)
    return of_parts(type(plain).__name__.encode(), repr(plain).encode("utf-8", "surrogatepass"))


def _of_array(array: np.ndarray[Any, Any]) -> bytes:
    about = repr((np.lib.format.dtype_to_descr(array.dtype), array.shape)).encode()
    digest = hashlib.sha256(b"array" + len(about).to_bytes(8, "little") + about)
    if array.size:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()


def configuration(node_id: str, pickle: bytes, fingerprints: Mapping[str, str]) -> bytes:
    """The key of a node's code and parameters."""
    fingerprint = fingerprints.get(node_id)
    return of_parts(pickle) if fingerprint is None else bytes.fromhex(fingerprint)
