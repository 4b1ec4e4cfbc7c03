"""How a value lies in a server: a head, its first bytes, and the rest in parts of equal size."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from somatize_worker.stores.disk import Data, read_whole

HEAD_BYTES: Final = 64
_LAYOUT: Final = struct.Struct(">8s8sQQQQ")  # magic, suffix, then the numbers of Head in their order
_MAGIC: Final = b"SOMAVAL1"


@dataclass(frozen=True)
class Head:
    """Where a value's bytes are: ``lead_bytes`` right behind the head, then ``body_bytes`` in parts.

    ``nonce`` is the writer's, and part of the parts' names, so that two writers of one key cannot mix.
    """

    suffix: str
    lead_bytes: int
    body_bytes: int
    part_bytes: int
    nonce: int

    @property
    def nbytes(self) -> int:
        return self.lead_bytes + self.body_bytes

    @property
    def parts(self) -> int:
        return -(-self.body_bytes // self.part_bytes) if self.body_bytes else 0

    def part_nbytes(self, number: int) -> int:
        """Size of one part; the last may be shorter than the others."""
        return min(self.part_bytes, self.body_bytes - number * self.part_bytes)

    def pack(self) -> bytes:
        """:data:`HEAD_BYTES` bytes."""
        numbers = self.lead_bytes, self.body_bytes, self.part_bytes, self.nonce
        return _LAYOUT.pack(_MAGIC, self.suffix.encode(), *numbers).ljust(HEAD_BYTES, b"\0")

    @staticmethod
    def unpack(data: bytes) -> Head:
        """The head at the start of ``data``.

        Raises:
            ValueError: something else lies there.
        """
        if len(data) < HEAD_BYTES or not data.startswith(_MAGIC):
            raise ValueError("written by another version, or by something else")
        _, suffix, *numbers = _LAYOUT.unpack_from(data)
        return Head(suffix.rstrip(b"\0").decode(), *numbers)


def cut(chunks: Iterable[Data], size: int) -> Iterator[Data]:
    """The same bytes in pieces of exactly ``size`` (the last may be shorter); large chunks are not copied."""
    pending = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        while len(view):
            if not pending and len(view) >= size:
                yield view[:size]
                view = view[size:]
            else:
                take = size - len(pending)
                pending += view[:take]
                view = view[take:]
                if len(pending) == size:
                    yield bytes(pending)
                    pending.clear()
    if pending:
        yield bytes(pending)


def read_parts(descriptor: int, size: int, part_bytes: int) -> Iterator[bytes]:
    """The next ``size`` bytes of an open file, in parts."""
    for done in range(0, size, part_bytes):
        yield read_whole(descriptor, min(part_bytes, size - done))
