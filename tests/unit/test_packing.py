"""Plain data survives packing exactly: kinds, dtypes, shapes, NaN and infinities included."""

from __future__ import annotations

import math
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from somatize_worker.packing import BIG_INTEGER, REFERENCE, TENSOR, Reference, pack, unpack

REFERENCES = st.one_of(
    st.builds(lambda path: Reference(type="Local", path=path), st.text()),
    st.builds(lambda key: Reference(type="Cached", cache_key=key), st.binary(min_size=32, max_size=32)),
)
DTYPES = st.one_of(
    hnp.scalar_dtypes(),
    hnp.unicode_string_dtypes(),
    hnp.byte_string_dtypes(),
    hnp.datetime64_dtypes(),
    hnp.timedelta64_dtypes(),
    hnp.nested_dtypes(subtype_strategy=hnp.scalar_dtypes(), max_itemsize=64),
)
ARRAYS = hnp.arrays(dtype=DTYPES, shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.floats(width=32), REFERENCES
)
PLAIN = st.recursive(
    LEAVES | ARRAYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal in kind and content, NaN being itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


@given(PLAIN)
def test_round_trip(value: Any) -> None:
    assert same(unpack(pack(value)), value)


@given(ARRAYS)
def test_arrays_come_back_as_read_only_views(array: np.ndarray[Any, Any]) -> None:
    again = unpack(pack(array))
    assert same(again, array)
    assert not again.flags.writeable or again.size == 0
    assert again.flags.c_contiguous


@given(st.integers(min_value=-(2**20_000), max_value=2**20_000))
@settings(max_examples=30)
def test_integers_of_any_size(number: int) -> None:
    assert unpack(pack([number, {"n": number}])) == [number, {"n": number}]


@pytest.mark.parametrize("exponent", [63, 64, 65, 127, 128, 20_000])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_integers_at_the_borders(exponent: int, sign: int, more: int) -> None:
    assert unpack(pack(sign * 2**exponent + more)) == sign * 2**exponent + more


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(()),
        np.zeros((0, 3), dtype=np.float32),
        np.array([math.nan, math.inf, -math.inf, -0.0]),
        np.arange(24).reshape(2, 3, 4)[:, ::-1, ::2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
        np.array([1 + 2j], dtype=np.complex64),
        np.array([0.5], dtype=np.longdouble),
        np.array(["ü", ""]),
        np.zeros(2, dtype=[("a", "<f4", (2, 3)), ("b", [("c", "<U3"), ("d", "<i2")])]),
        np.zeros(2, dtype=[(("a title", "a"), "<f4")]),
        np.zeros(1, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        np.zeros(1, dtype=[(f"field{index}", "<f8") for index in range(1_000)]),
        np.broadcast_to(np.float64(7), (3, 2)),
    ],
    ids=lambda array: f"{array.dtype.str}{list(array.shape)}",
)
def test_arrays_that_are_easily_lost(array: np.ndarray[Any, Any]) -> None:
    again = unpack(pack({"x": [array]}))["x"][0]
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes(order="C")


def test_a_tensor_is_aligned_for_its_dtype() -> None:
    assert all(unpack(pack([1] * count + [np.arange(5.0)]))[-1].flags.aligned for count in range(20))


def test_tuples_and_other_keys() -> None:
    assert unpack(pack((1, (2, 3)))) == [1, [2, 3]]
    assert unpack(pack({1: "a", b"k": "b"})) == {1: "a", b"k": "b"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1, 2}, "set"),
        (object(), "object"),
        (np.float32(1), "float32"),
        (np.array([None, "x"], dtype=object), "Python objects"),
        (np.zeros(1, dtype=[("a", "O")]), "Python objects"),
        (np.ma.array([1, 2], mask=[False, True]), "mask"),
    ],
)
def test_what_cannot_travel_is_named(value: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        pack({"deep": [value]})


def _extension(code: int, *parts: Any, tail: bytes = b"") -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(code, b"".join(map(msgpack.packb, parts)) + tail))
    return packed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        pack([1, 2, 3])[:-1],
        pack(1) + pack(2),
        _extension(TENSOR),
        _extension(TENSOR, 5),
        _extension(TENSOR, ["<f8", [200]], tail=b"\0" * 100),
        _extension(TENSOR, ["<f8", [-1]], tail=b"\0" * 100),
        _extension(TENSOR, ["|O", [2]], tail=b"\0" * 100),
        _extension(TENSOR, [[["a", "|O"]], [1]], tail=b"\0" * 100),
        _extension(TENSOR, ["no dtype", [1]], tail=b"\0" * 100),
        _extension(TENSOR, ["i4,(", [1]], tail=b"\0" * 100),
        _extension(REFERENCE, [1]),
        _extension(REFERENCE),
        _extension(99, 1),
    ],
)
def test_damaged_bytes_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a packed value: [A-Z]"):
        unpack(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_value_error(data: bytes) -> None:
    try:
        unpack(data)
    except ValueError:
        return


@given(st.binary(max_size=100))
def test_any_tensor_payload_is_a_value_or_a_value_error(data: bytes) -> None:
    for code in (TENSOR, REFERENCE, BIG_INTEGER):
        try:
            unpack(msgpack.packb(msgpack.ExtType(code, data)))
        except ValueError:
            continue


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_nesting_has_an_end() -> None:
    assert str(unpack(pack(_nested(500)))) == str(_nested(500))
    with pytest.raises(ValueError, match="recursion"):
        pack(_nested(2_000))
    with pytest.raises(ValueError, match="StackError"):
        unpack(b"\x91" * 2_000 + b"\x01")


@given(REFERENCES, REFERENCES)
def test_references_compare_by_their_fields(one: Reference, other: Reference) -> None:
    assert (one == other) == (one.fields == other.fields)
    assert hash(one) == hash(Reference(**one.fields))
    assert one.type in repr(one)
