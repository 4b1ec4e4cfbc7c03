"""``CacheKey``: the content key of a state or an output."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, Final, Self

from pydantic import model_validator

from somatize_worker.errors import InvalidMessage
from somatize_worker.protocol.base import Message, typed_init
from somatize_worker.protocol.fields import Octets
from somatize_worker.protocol.problems import fault, shorten

KEY_BYTES: Final = 32


class CacheKey(Message):
    """SHA-256 over parts, each part preceded by its length as 8 little-endian bytes.

    A list of 32 numbers on the wire; as text 64 hexadecimal digits (``str(key)``, :meth:`from_hex`).

    >>> str(CacheKey.hash_data(b"training_data"))
    'efe40c7ddcb01b86570fbf0bfd9a7a32864af09b59371dddefc239a8fa2d9983'
    """

    newtype: ClassVar[bool] = True
    digest: Octets

    @typed_init
    def __init__(self, digest: bytes) -> None:
        self._fill(digest=digest)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        """A key's wire form is the digest's alone."""
        if not isinstance(data, dict):
            return {"digest": data}
        return data

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if len(self.digest) != KEY_BYTES:
            raise fault(f"{KEY_BYTES} bytes", f"{len(self.digest)} bytes")
        return self

    @classmethod
    def of_parts(cls, *parts: bytes) -> CacheKey:
        """The key of these parts, in this order."""
        digest = hashlib.sha256()
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return cls(digest.digest())

    @classmethod
    def hash_data(cls, data: bytes) -> CacheKey:
        """The key of some data."""
        return cls.of_parts(data)

    @classmethod
    def for_state(cls, config: CacheKey, data: CacheKey) -> CacheKey:
        """The key of the state that a filter with this configuration has after fitting on this data."""
        return cls.of_parts(config.digest, data.digest)

    @classmethod
    def for_output(cls, config: CacheKey, state: CacheKey, input: CacheKey) -> CacheKey:
        """The key of what a filter with this configuration and state makes of this input."""
        return cls.of_parts(config.digest, state.digest, input.digest)

    @classmethod
    def from_hex(cls, text: str) -> CacheKey:
        """The key whose text form this is.

        Raises:
            InvalidMessage: not 64 hexadecimal digits.
        """
        try:
            digest = bytes.fromhex(text)
        except ValueError:
            raise InvalidMessage(
                f"not a valid CacheKey: expected 64 hexadecimal digits, found {shorten(text)}"
            ) from None
        return cls(digest)

    def __str__(self) -> str:
        return self.digest.hex()

    def __repr__(self) -> str:
        return f"CacheKey({self})"

    def __bytes__(self) -> bytes:
        return self.digest
