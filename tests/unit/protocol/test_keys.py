"""Content keys."""

from __future__ import annotations

import hashlib

import pytest

from somatize_worker import protocol
from somatize_worker.errors import InvalidMessage
from somatize_worker.protocol import CacheKey

KNOWN = "efe40c7ddcb01b86570fbf0bfd9a7a32864af09b59371dddefc239a8fa2d9983"


def test_a_known_key() -> None:
    key = CacheKey.hash_data(b"training_data")
    assert str(key) == KNOWN
    assert CacheKey.from_hex(KNOWN) == key == CacheKey.from_hex(KNOWN.upper())
    assert bytes(key) == key.digest == bytes.fromhex(KNOWN)
    assert protocol.to_data(key) == list(bytes.fromhex(KNOWN))
    assert repr(key) == f"CacheKey({KNOWN})"


def test_each_part_is_preceded_by_its_length() -> None:
    config, state, data = (CacheKey.hash_data(name) for name in (b"c", b"s", b"d"))
    length = (32).to_bytes(8, "little")
    expected = hashlib.sha256(length + config.digest + length + data.digest).digest()
    assert CacheKey.for_state(config, data).digest == expected
    expected = hashlib.sha256(length + config.digest + length + state.digest + length + data.digest).digest()
    assert CacheKey.for_output(config, state, data).digest == expected


def test_parts_cannot_be_shifted() -> None:
    assert CacheKey.of_parts(b"ab", b"c") != CacheKey.of_parts(b"a", b"bc")
    assert CacheKey.of_parts(b"") != CacheKey.of_parts()


def test_keys_are_dict_keys() -> None:
    assert {CacheKey.hash_data(b"a"): 1}[CacheKey.hash_data(b"a")] == 1


@pytest.mark.parametrize("text", ["", "zz", KNOWN[:-2], KNOWN + "00"])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(InvalidMessage, match="CacheKey"):
        CacheKey.from_hex(text)
