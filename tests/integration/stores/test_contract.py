"""What every store does. A new store is added to the fixture ``case`` and passes all of this."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from somatize_worker.errors import InvalidMessage, MissingData, StoreError, Unrepresentable, UnsafePath
from somatize_worker.packing import Reference, pack, unpack
from somatize_worker.stores import formats, offload, resolve
from tests.integration.stores.support import TTL_S, Case, open_spec
from tests.unit.stores.test_formats import ARRAYS, JSON, PACKED, assert_same

VALUES: dict[str, Any] = {**ARRAYS, **JSON, **PACKED, "bytes": b"\x00\xff" * 5_000, "no bytes": b""}
KEY = hashlib.sha256(b"a key").digest()
TABLE = np.arange(3_000, dtype="<f4").reshape(500, 6)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_what_is_put_is_got(case: Case, value: Any) -> None:
    reference = case.store.put(value)
    assert_same(case.store.get(reference), value)
    assert_same(open_spec(case.spec).get(unpack(pack(reference))), value)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_fetched_file_holds_the_value(case: Case, tmp_path: Path, value: Any) -> None:
    path = case.store.fetch(case.store.put(value), tmp_path)
    assert_same(formats.read(path), value)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_an_adopted_file_is_the_value(case: Case, value: Any) -> None:
    path = formats.write(case.store.workspace() / formats.new_name(), value)
    reference = case.store.adopt(path)
    assert_same(case.store.get(reference), value)
    assert not list(case.store.workspace().rglob("*.tmp"))


def test_other_tools_open_fetched_files(case: Case, tmp_path: Path) -> None:
    def fetched(value: Any) -> Path:
        return case.store.fetch(case.store.put(value), tmp_path)

    assert np.array_equal(np.load(fetched(TABLE)), TABLE)
    assert json.loads(fetched({"a": [1, "ñ"]}).read_text(encoding="utf-8")) == {"a": [1, "ñ"]}
    assert fetched(b"abc").read_bytes() == b"abc"
    assert math.isnan(msgpack.unpackb(fetched({"x": math.nan}).read_bytes())["x"])


def test_tensors_are_read_only(case: Case) -> None:
    for array in (TABLE, np.zeros(300_000), np.zeros(0)):
        value = case.store.get(case.store.put(array))
        assert type(value) is np.ndarray
        with pytest.raises(ValueError, match="read-only"):
            value[...] = 1


def test_changing_the_value_later_changes_nothing(case: Case) -> None:
    value = TABLE.copy()
    reference = case.store.put(value)
    value[:] = 0
    assert_same(case.store.get(reference), TABLE)


def test_another_process_gets_the_same(case: Case) -> None:
    reference = case.store.put(TABLE)
    fields = {**reference.fields}
    if "cache_key" in fields:
        fields["cache_key"] = fields["cache_key"].hex()
    assert case.ask("describe", fields) == ["float32", [500, 6], float(TABLE.sum())]


def test_unrepresentable_values_leave_nothing(case: Case) -> None:
    before = case.raw()
    for value in (np.array([object()]), {1, 2}, object()):
        with pytest.raises(Unrepresentable):
            case.store.put(value)
    assert case.raw() == before


# ── content keys ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_content_keys_lead_to_their_value(case: Case) -> None:
    assert case.store.find(KEY) is None
    reference = case.store.put(TABLE, key=KEY)
    assert reference == Reference(type="Cached", cache_key=KEY)
    assert case.store.find(KEY) == reference
    assert_same(case.store.get(reference), TABLE)
    assert case.store.find(bytes(32)) is None


@pytest.mark.parametrize("value", [TABLE, {"a": 1}, b"x" * 3_000, None, math.nan])
def test_the_first_value_under_a_key_stays(case: Case, value: Any) -> None:
    case.store.put(value, key=KEY)
    before = case.raw()
    for later in (np.zeros(500), "other"):
        case.store.put(later, key=KEY)
    assert case.raw() == before
    assert_same(case.store.get(Reference(type="Cached", cache_key=KEY)), value)


def test_adopting_under_a_key(case: Case) -> None:
    for value in (TABLE, TABLE + 1):
        path = formats.write(case.store.workspace() / formats.new_name(), value)
        assert case.store.adopt(path, key=KEY) == Reference(type="Cached", cache_key=KEY)
        assert not path.exists()
    assert_same(case.store.get(Reference(type="Cached", cache_key=KEY)), TABLE)


def test_keys_may_come_as_lists_of_integers(case: Case) -> None:
    case.store.put(TABLE, key=KEY)
    assert_same(case.store.get(Reference(type="Cached", cache_key=list(KEY))), TABLE)


@pytest.mark.parametrize("key", [b"short", "x" * 32, bytes(33)])
def test_bad_keys(case: Case, key: Any) -> None:
    for ask in (
        lambda: case.store.find(key),
        lambda: case.store.put(1, key=key),
        lambda: case.store.get(Reference(type="Cached", cache_key=key)),
    ):
        with pytest.raises(InvalidMessage, match="32 bytes"):
            ask()


def test_threads_share_a_store(case: Case) -> None:
    found: list[bool] = []

    def work(number: int) -> None:
        for _ in range(20):
            value = np.full(700, number)
            key = hashlib.sha256(bytes([number])).digest()
            found.append(np.array_equal(case.store.get(case.store.put(value)), value))
            found.append(np.array_equal(case.store.get(case.store.put(value, key=key)), value))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 160
    assert all(found)


# ── parts of a tensor ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "array", [ARRAYS[name] for name in ("float64", "0-d", "empty", "empty inside", "structured", "large", "big-endian")]
)
def test_metadata(case: Case, array: np.ndarray) -> None:
    assert case.store.info(case.store.put(array)) == formats.info_of(array)


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (37, 45), (499, 500), (490, 900), (900, 901), (0, 500)])
def test_rows(case: Case, start: int, stop: int) -> None:
    found = case.store.rows(case.store.put(TABLE), start, stop)
    assert_same(found, TABLE[start:stop])
    assert not found.flags.writeable


def test_rows_of_odd_shapes(case: Case) -> None:
    for array in (np.array(2.5), np.zeros((0, 3)), np.zeros((3, 0)), ARRAYS["structured"], ARRAYS["transposed"]):
        assert_same(case.store.rows(case.store.put(array), 0, 2), np.atleast_1d(np.ascontiguousarray(array))[:2])


def test_rows_with_a_very_long_header(case: Case) -> None:
    array = np.zeros(7, np.dtype([(f"field {number:04}", "<f4") for number in range(400)]))
    array["field 0399"] = np.arange(7)
    reference = case.store.put(array)
    assert_same(case.store.rows(reference, 2, 4), array[2:4])
    assert case.store.info(reference) == formats.info_of(array)


def test_rows_of_something_else(case: Case) -> None:
    for value in ({"a": 1}, b"abc" * 1_000, [math.nan], None):
        reference = case.store.put(value)
        with pytest.raises(StoreError, match="has no rows"):
            case.store.rows(reference, 0, 1)
        with pytest.raises(StoreError, match="has no rows"):
            case.store.info(reference)


def test_ranges_that_are_none(case: Case) -> None:
    reference = case.store.put(TABLE)
    for start, stop in ((-1, 2), (3, 2)):
        with pytest.raises(StoreError, match="no range"):
            case.store.rows(reference, start, stop)


# ── what is not there ────────────────────────────────────────────────────────────────────────────────────────────


def ask_all(case: Case, reference: Reference, folder: Path) -> list[Any]:
    return [
        lambda: case.store.get(reference),
        lambda: case.store.info(reference),
        lambda: case.store.rows(reference, 0, 1),
        lambda: case.store.fetch(reference, folder),
    ]


def test_missing_data_is_an_error_that_names_the_reference(case: Case, tmp_path: Path) -> None:
    gone = case.store.put(TABLE)
    case.store.delete(gone)
    for reference, named in (
        (gone, str(gone.fields.get("path", ""))),
        (Reference(type="Cached", cache_key=KEY), KEY.hex()),
    ):
        for ask in ask_all(case, reference, tmp_path):
            with pytest.raises(MissingData, match=r"expired.*SOMA_DATA_TTL_S.*deleted") as caught:
                ask()
            assert named in str(caught.value)
            assert caught.value.details["reference"]


def test_deleting(case: Case) -> None:
    for reference in (case.store.put(TABLE), case.store.put(TABLE, key=KEY), case.store.put({"a": 1})):
        case.store.delete(reference)
        case.store.delete(reference)
        with pytest.raises(MissingData):
            case.store.get(reference)
    assert case.raw() == set()
    assert case.store.find(KEY) is None
    assert_same(case.store.get(case.store.put(TABLE + 1, key=KEY)), TABLE + 1)


def test_a_value_in_use_outlives_its_entry(case: Case) -> None:
    array = np.arange(300_000.0)
    reference = case.store.put(array)
    value, rows = case.store.get(reference), case.store.rows(reference, 10, 20)
    case.store.delete(reference)
    assert_same(value, array)
    assert_same(rows, array[10:20])


def test_adopting_what_is_not_there(case: Case) -> None:
    with pytest.raises(MissingData, match="there is no file"):
        case.store.adopt(case.store.workspace() / "ab" / f"{'0' * 32}.npy")


@pytest.mark.parametrize("place", ["../outside.npy", "ab/../../outside.npy", "/{tmp}/outside.npy", "link.npy"])
def test_adopting_a_file_from_elsewhere(case: Case, tmp_path: Path, place: str) -> None:
    outside = formats.write(tmp_path / "outside", TABLE)
    link = case.store.workspace() / "link.npy"
    link.symlink_to(outside)
    with pytest.raises(UnsafePath, match="not a path below"):
        case.store.adopt(case.store.workspace() / place.format(tmp=str(tmp_path)[1:]), key=KEY)
    link.unlink()
    assert outside.exists()
    assert case.store.find(KEY) is None


def test_adopting_a_file_of_no_known_format(case: Case) -> None:
    path = case.store.workspace() / "x.pickle"
    path.write_bytes(b"x")
    with pytest.raises(StoreError, match="known formats are"):
        case.store.adopt(path)
    path.unlink()


def test_inline_values_pass_through(case: Case, tmp_path: Path) -> None:
    reference = Reference(type="Inline", value=TABLE)
    assert case.store.get(reference) is TABLE
    assert_same(case.store.rows(reference, 1, 3), TABLE[1:3])
    assert case.store.info(reference) == formats.info_of(TABLE)
    assert_same(formats.read(case.store.fetch(reference, tmp_path)), TABLE)
    case.store.delete(reference)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"type": "S3", "bucket": "b", "key": "k"}, "an object store"),
        ({"type": "Zarr", "bucket": "b", "array_path": "p"}, "a Zarr store"),
        ({"type": "Stream", "endpoint": "e", "format": "csv"}, "live stream"),
        ({"type": "Floppy"}, "unknown type"),
    ],
)
def test_references_that_another_store_serves(case: Case, tmp_path: Path, fields: dict[str, Any], named: str) -> None:
    reference = Reference(**fields)
    for ask in [*ask_all(case, reference, tmp_path), lambda: case.store.delete(reference)]:
        with pytest.raises(StoreError, match=named):
            ask()


# ── expiry ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_nobody_used_for_long_expires(case: Case) -> None:
    references = [case.store.put(TABLE), case.store.put({"a": 1}), case.store.put(TABLE, key=KEY)]
    case.age(TTL_S + 10)
    case.store.sweep()
    for reference in references:
        with pytest.raises(MissingData):
            case.store.get(reference)
    assert case.raw() == set()


def test_what_was_used_lately_stays(case: Case, tmp_path: Path) -> None:
    reference = case.store.put(TABLE, key=KEY)
    for use in [*ask_all(case, reference, tmp_path), lambda: case.store.find(KEY), lambda: case.store.put(1, key=KEY)]:
        case.age(TTL_S - 1_000)
        assert case.left_s() < 1_100
        use()
        assert case.left_s() > TTL_S - 100
    case.store.sweep()
    assert_same(case.store.get(reference), TABLE)


def test_sweeping_removes_nothing_that_is_new(case: Case) -> None:
    reference = case.store.put(TABLE)
    assert case.store.sweep() == 0
    assert_same(case.store.get(reference), TABLE)


# ── nested data ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_nested_data_go_out_and_come_back(case: Case) -> None:
    value = {"w": TABLE, "layers": [TABLE + 1, {"b": b"x" * 3_000}], "names": ["n" * 50] * 100, "n": math.inf}
    moved = offload(case.store, value, 1_000)
    assert isinstance(moved, Reference)
    assert_same(resolve(open_spec(case.spec), unpack(pack(moved))), value)
