"""How a value is cut for a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from somatize_worker.stores.parts import HEAD_BYTES, Head, cut


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(1, 40))
def test_cutting_changes_nothing_but_the_borders(chunks: list[bytes], size: int) -> None:
    pieces = [bytes(piece) for piece in cut(chunks, size)]
    assert b"".join(pieces) == b"".join(chunks)
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(0 < len(piece) <= size for piece in pieces)


def test_large_chunks_are_not_copied() -> None:
    data = bytearray(100)
    pieces = list(cut([data], 40))
    data[50] = 7
    assert pieces[1][10] == 7


@given(
    st.sampled_from([".npy", ".json", ".bin", ".msgpack"]),
    st.integers(0, 1 << 62),
    st.integers(0, 1 << 62),
    st.integers(1, 1 << 40),
    st.integers(0, (1 << 64) - 1),
)
def test_heads_survive(suffix: str, lead: int, body: int, part: int, nonce: int) -> None:
    head = Head(suffix, lead, body, part, nonce)
    data = head.pack()
    assert len(data) == HEAD_BYTES
    assert Head.unpack(data + b"more") == head


@pytest.mark.parametrize("data", [b"", bytes(HEAD_BYTES), b"SOMAVAL1", b"SOMAVAL9" + bytes(56)])
def test_something_else_is_no_head(data: bytes) -> None:
    with pytest.raises(ValueError, match="another version"):
        Head.unpack(data)


def test_sizes_of_parts() -> None:
    head = Head(".npy", 128, 2_500, 1_000, 1)
    assert head.nbytes == 2_628
    assert [head.part_nbytes(number) for number in range(head.parts)] == [1_000, 1_000, 500]
    assert Head(".bin", 10, 0, 1_000, 0).parts == 0
