"""Values as files: what comes back is what was written, and other tools can read it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from somatize_worker.errors import MissingData, StoreError, Unrepresentable
from somatize_worker.packing import Reference
from somatize_worker.stores import formats, npy

STRUCTURED = np.dtype([("id", ">i4"), ("at", "<M8[us]"), ("xyz", "<f4", (3,)), ("名", [("ok", "?"), ("text", "U5")])])

ARRAYS = {
    "float64": np.linspace(-1, 1, 60).reshape(3, 4, 5),
    "nan and inf": np.array([np.nan, np.inf, -np.inf, -0.0]),
    "0-d": np.array(3.5),
    "empty": np.empty((0, 7), np.int16),
    "empty inside": np.empty((7, 0, 2), np.float32),
    "one byte": np.array([1], np.uint8),
    "bool": np.array([[True, False], [False, True]]),
    "half": np.arange(5, dtype=np.float16),
    "long double": np.arange(5, dtype=np.longdouble),
    "complex": np.array([1 + 2j, complex(np.nan, 1)]),
    "big-endian": np.arange(10, dtype=">i8"),
    "datetime": np.array(["2024-02-29", "NaT"], "M8[ns]"),
    "timedelta": np.arange(3).astype("m8[3s]"),
    "text": np.array(["añb", "", "日本"]),
    "fixed bytes": np.array([b"a", b"bc"]),
    "void": np.array([b"abc", b"def"]).view("V3"),
    "structured": np.zeros((2, 3), STRUCTURED),
    "aligned": np.zeros(4, np.dtype([("a", "u1"), ("b", "f8")], align=True)),
    "Fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "reversed": np.arange(10)[::-2],
    "broadcast": np.broadcast_to(np.float32(2), (3, 4)),
    "large": np.arange(300_000.0).reshape(1000, 300),
    "large Fortran": np.asfortranarray(np.arange(150_000.0).reshape(300, 500)),
}

JSON: dict[str, Any] = {
    "null": None,
    "bool": True,
    "integer": -7,
    "64 bits": (1 << 64) - 1,
    "float": 0.1,
    "whole float": 1.0,
    "negative zero": -0.0,
    "text": "añb 日本 \u0000 \N{GRINNING FACE}",
    "lone surrogate": "\ud800",
    "list": [1, [2.5, [None, "x"]], {}],
    "dict": {"a": {"b": [1, 2, 3]}, "": False},
}

PACKED: dict[str, Any] = {
    "nan": math.nan,
    "infinity in a list": [1.0, -math.inf],
    "beyond 64 bits": {"n": 1 << 70, "m": -(1 << 63) - 1},
    "bytes inside": [b"\x00\xff", "x"],
    "array inside": {"w": np.arange(6.0).reshape(2, 3), "n": 1},
    "integer keys": {1: "a"},
    "reference inside": [Reference(type="Local", path="ab/x.npy")],
}


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float) and math.isnan(expected):
        assert math.isnan(found)
    else:
        assert found == expected
        assert str(found) == str(expected)


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays_keep_dtype_shape_and_bytes(tmp_path: Path, array: np.ndarray) -> None:
    path = formats.write(tmp_path / "value", array)
    assert path == tmp_path / "value.npy"
    found = formats.read(path)
    assert_same(found, array)
    assert not found.flags.writeable
    assert found.flags.c_contiguous
    assert_same(np.load(path), np.ascontiguousarray(array).reshape(array.shape))


@pytest.mark.parametrize("value", JSON.values(), ids=JSON)
def test_json_like_data_is_json(tmp_path: Path, value: Any) -> None:
    path = formats.write(tmp_path / "value", value)
    assert path.suffix == ".json"
    assert_same(formats.read(path), value)
    assert_same(json.loads(path.read_bytes()), value)


@pytest.mark.parametrize("value", PACKED.values(), ids=PACKED)
def test_what_json_cannot_carry_is_packed(tmp_path: Path, value: Any) -> None:
    path = formats.write(tmp_path / "value", value)
    assert path.suffix == ".msgpack"
    assert_same(formats.read(path), value)


@pytest.mark.parametrize("value", [b"", b"\x00\xff" * 1000, bytearray(b"abc"), memoryview(b"abc")])
def test_bytes_are_themselves(tmp_path: Path, value: Any) -> None:
    path = formats.write(tmp_path / "value", value)
    assert path.suffix == ".bin"
    assert path.read_bytes() == bytes(value)
    assert_same(formats.read(path), bytes(value))


@given(hnp.arrays(hnp.scalar_dtypes() | hnp.array_dtypes(), hnp.array_shapes(min_dims=0, min_side=0)))
def test_any_array_survives(array: np.ndarray) -> None:
    encoded = formats.encode(array)
    data = b"".join([encoded.head, *encoded.chunks()])
    assert len(data) == encoded.nbytes
    assert_same(formats.decode(".npy", data), array)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    )
)
def test_any_json_like_data_survives(value: Any) -> None:
    encoded = formats.encode(value)
    assert_same(formats.decode(encoded.suffix, b"".join(encoded.chunks())), value)


def test_subclasses_of_arrays_become_arrays(tmp_path: Path) -> None:
    found = formats.read(formats.write(tmp_path / "value", np.arange(4).view(np.recarray)))
    assert type(found) is np.ndarray


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.array([object()]), "dtype object"),
        (np.zeros(2, np.dtype({"names": ["a", "b"], "formats": ["f4", "f4"], "offsets": [0, 2]})), "overlapping"),
        ({"a": {1, 2}}, "set"),
        ([object()], "object"),
        (lambda: 0, "function"),
    ],
)
def test_what_no_format_holds_is_named(tmp_path: Path, value: Any, named: str) -> None:
    with pytest.raises(Unrepresentable, match=named):
        formats.write(tmp_path / "value", value)
    assert list(tmp_path.iterdir()) == []


def test_endless_nesting_is_an_error(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(Unrepresentable, match="nested"):
        formats.write(tmp_path / "value", endless)


def test_large_arrays_are_mapped_and_outlive_their_file(tmp_path: Path) -> None:
    array = np.arange(formats.MAPPED_FROM_BYTES // 8 + 100.0)
    path = formats.write(tmp_path / "value", array)
    found = formats.read(path)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) in maps.read_text()
    path.unlink()
    part = found[10:20]
    del found
    assert part.tolist() == list(range(10, 20))
    del part
    if maps.exists():
        assert str(path) not in maps.read_text()


def test_mapped_arrays_hold_no_descriptor(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    path = formats.write(tmp_path / "value", np.zeros(formats.MAPPED_FROM_BYTES))
    before = len(os.listdir(descriptors))
    arrays = [formats.read(path) for _ in range(50)]
    assert len(os.listdir(descriptors)) == before
    assert all(array[0] == 0 for array in arrays)


def test_writing_replaces_but_does_not_touch_what_is_in_use(tmp_path: Path) -> None:
    old = np.zeros(formats.MAPPED_FROM_BYTES)
    path = formats.write(tmp_path / "value", old)
    in_use = formats.read(path)
    formats.write(tmp_path / "value", old + 1)
    assert in_use.max() == 0
    assert formats.read(path).min() == 1
    assert [item.name for item in tmp_path.iterdir()] == ["value.npy"]


def test_files_and_folders_are_private(tmp_path: Path) -> None:
    path = formats.write(tmp_path / formats.new_name(), 1)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_names_are_fresh_and_spread_over_folders() -> None:
    names = {formats.new_name() for _ in range(1000)}
    assert len(names) == 1000
    assert len({name.split("/")[0] for name in names}) > 100


@pytest.mark.parametrize("shape", [(5, 3), (0, 3), (4,), (2, 0), ()])
def test_metadata_and_rows(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape), dtype=">f4").reshape(shape)
    path = formats.write(tmp_path / "value", array)
    info = formats.info(path)
    assert (info.total_rows, info.shape_tail, info.dtype) == (shape[0] if shape else 1, shape[1:], ">f4")
    assert formats.info_of(array) == info
    assert_same(formats.rows(path, 1, 3), np.atleast_1d(array)[1:3])
    assert_same(formats.rows(path, 0, 100), np.atleast_1d(array))
    assert formats.rows(path, 100, 200).shape[0] == 0


@pytest.mark.parametrize("bounds", [(-1, 2), (3, 2)])
def test_a_range_that_is_none(tmp_path: Path, bounds: tuple[int, int]) -> None:
    path = formats.write(tmp_path / "value", np.arange(5))
    with pytest.raises(StoreError, match="no range"):
        formats.rows(path, *bounds)


@pytest.mark.parametrize(("value", "kind"), [({"a": 1}, "JSON"), (b"x", "bytes"), ([math.nan], "packed data")])
def test_rows_of_something_else(tmp_path: Path, value: Any, kind: str) -> None:
    path = formats.write(tmp_path / "value", value)
    for ask in (lambda: formats.rows(path, 0, 1), lambda: formats.info(path)):
        with pytest.raises(StoreError, match=f"holds {kind}, which has no rows"):
            ask()


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    fortran = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    np.save(tmp_path / "fortran.npy", fortran)
    assert np.array_equal(formats.read(tmp_path / "fortran.npy"), fortran)
    assert np.array_equal(formats.rows(tmp_path / "fortran.npy", 1, 2), fortran[1:2])
    (tmp_path / "pretty.json").write_text('{\n  "a": [1, NaN]\n}')
    assert_same(formats.read(tmp_path / "pretty.json"), {"a": [1, math.nan]})


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.npy", tmp_path / "none" / "x.json", formats.write(tmp_path / "file", 1) / "x.npy"):
        for ask in (formats.read, formats.info, lambda path: formats.rows(path, 0, 1)):
            with pytest.raises(MissingData, match="there is no file"):
                ask(path)


def test_things_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    for name in ("folder.npy", "pipe.npy"):
        with pytest.raises(StoreError, match="not a regular file"):
            formats.read(tmp_path / name)


def damaged_files() -> dict[str, tuple[str, bytes]]:
    good = b"".join([npy.header(np.dtype("f8"), (1000,)), bytes(8000)])
    objects = good.replace(b"'<f8'", b"'|O' ")
    return {
        "empty": (".npy", b""),
        "truncated": (".npy", good[:-1]),
        "truncated header": (".npy", good[:40]),
        "text": (".npy", b"hello, world, how are you?"),
        "objects": (".npy", objects),
        "code in the header": (".npy", good.replace(b"(1000,)", b"exit() ")),
        "negative shape": (".npy", good.replace(b"(1000,)", b"(-100,)")),
        "huge header": (".npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100)),
        "huge shape": (".npy", good.replace(b"(1000,), }    ", b"(10000000,),} ")),
        "bad json": (".json", b'{"a": '),
        "bad encoding": (".json", b'"\xff\xfe\xfd"'),
        "nested json": (".json", b"[" * 100_000),
        "bad msgpack": (".msgpack", b"\x93\x01"),
        "bad tensor": (".msgpack", b"\xc7\x04\x01abcd"),
        "no tensor": (".msgpack", b"\xd4\x01\x90"),
        "unknown extension": (".msgpack", b"\xd4\x63\x00"),
        "unknown suffix": (".pickle", b"x"),
    }


@pytest.mark.parametrize("case", damaged_files().values(), ids=damaged_files())
def test_damaged_files_are_errors_that_name_the_file(tmp_path: Path, case: tuple[str, bytes]) -> None:
    suffix, content = case
    path = tmp_path / f"value{suffix}"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="cannot be read") as caught:
        formats.read(path)
    assert str(path) in str(caught.value)


def test_a_large_truncated_file_is_an_error_not_a_signal(tmp_path: Path) -> None:
    path = formats.write(tmp_path / "value", np.zeros(formats.MAPPED_FROM_BYTES))
    os.truncate(path, path.stat().st_size - 4096)
    with pytest.raises(StoreError, match="cannot be read"):
        formats.read(path)
