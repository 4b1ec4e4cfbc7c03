"""References and large values inside other data."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from somatize_worker.errors import InvalidMessage, MissingData, StoreError, StoreMismatch
from somatize_worker.packing import Reference
from somatize_worker.stores import clear, offload, references, resolve


class Shelf:
    """A store of a dict, for what needs no more."""

    def __init__(self) -> None:
        self.values: dict[Reference, Any] = {}

    def put(self, value: Any, *, key: bytes | None = None) -> Reference:
        reference = Reference(type="Local", path=str(len(self.values)))
        self.values[reference] = value
        return reference

    def get(self, reference: Reference) -> Any:
        if reference.type == "Inline":
            return reference.fields["value"]
        if reference not in self.values:
            raise MissingData(f"nothing behind {reference}")
        return self.values[reference]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


BIG = np.zeros(1000)


def test_small_values_stay(shelf: Shelf) -> None:
    for value in (None, 1, "x", b"x", [1, 2], {"a": np.zeros(3)}):
        assert offload(shelf, value, 1000) is value
    assert shelf.values == {}


def test_a_large_value_becomes_a_reference(shelf: Shelf) -> None:
    for value in (BIG, b"x" * 2000, "x" * 2000, list(range(2000))):
        moved = offload(shelf, value, 1000)
        assert isinstance(moved, Reference)
        assert resolve(shelf, moved) is value


def test_references_are_left_alone(shelf: Shelf) -> None:
    reference = Reference(type="Local", path="x" * 5000)
    assert offload(shelf, reference, 10) is reference


def test_large_arrays_inside_go_one_by_one(shelf: Shelf) -> None:
    value = {"a": BIG, "b": [BIG + 1, {"c": b"y" * 2000}], "small": np.zeros(2), "n": 1}
    moved = offload(shelf, value, 1000)
    assert moved["a"].type == moved["b"][0].type == moved["b"][1]["c"].type == "Local"
    assert moved["small"] is value["small"]
    assert len(shelf.values) == 3
    back = resolve(shelf, moved)
    assert back["a"] is BIG
    assert np.array_equal(back["b"][0], BIG + 1)
    assert back["b"][1]["c"] == b"y" * 2000
    assert isinstance(value["a"], np.ndarray), "the caller's data are not changed"


def test_an_array_that_occurs_twice_is_stored_once(shelf: Shelf) -> None:
    moved = offload(shelf, {"a": BIG, "b": [BIG]}, 1000)
    assert moved["a"] == moved["b"][0]
    assert len(shelf.values) == 1


def test_many_small_arrays_go_as_a_whole(shelf: Shelf) -> None:
    value = [np.full(10, n) for n in range(500)]
    moved = offload(shelf, value, 1000)
    assert isinstance(moved, Reference)
    assert resolve(shelf, moved) is value


def test_a_container_still_too_large_goes_with_references_in_it(shelf: Shelf) -> None:
    value = {"big": BIG, "text": ["x" * 100] * 100}
    moved = offload(shelf, value, 1000)
    assert isinstance(moved, Reference)
    assert isinstance(shelf.values[moved]["big"], Reference)
    assert resolve(shelf, moved)["big"] is BIG


def test_resolving_leaves_alone_what_holds_no_reference(shelf: Shelf) -> None:
    value = {"a": [1, {"b": BIG}]}
    assert resolve(shelf, value) is value


def test_inline_references_resolve_to_their_value(shelf: Shelf) -> None:
    assert resolve(shelf, [Reference(type="Inline", value={"a": 1})]) == [{"a": 1}]


def test_a_missing_reference_inside_is_an_error(shelf: Shelf) -> None:
    with pytest.raises(MissingData, match="gone"):
        resolve(shelf, {"a": [Reference(type="Local", path="gone")]})


@pytest.mark.parametrize("key", [bytes(range(32)), bytearray(range(32)), list(range(32))])
def test_keys_of_32_bytes(key: Any) -> None:
    assert references.checked_key(key) == bytes(range(32))


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), [256] * 32, ["a"] * 32, "a" * 32, 32, None])
def test_what_is_no_key(key: Any) -> None:
    with pytest.raises(InvalidMessage, match="32 bytes"):
        references.checked_key(key)


@pytest.mark.parametrize(
    ("reference", "error", "named"),
    [
        (Reference(type="Local", path="ab/x.npy"), StoreMismatch, "SOMA_STORE=file:///"),
        (Reference(type="S3", bucket="b", key="k"), StoreError, "an object store"),
        (Reference(type="Zarr", bucket="b", array_path="p"), StoreError, "a Zarr store"),
        (Reference(type="Stream", endpoint="e", format="csv"), StoreError, "live stream"),
        (Reference(type="Floppy"), StoreError, "unknown type 'Floppy'"),
    ],
)
def test_types_that_another_store_serves(reference: Reference, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named) as caught:
        references.refuse(reference, "redis")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_how_references_read_in_messages() -> None:
    assert references.text(Reference(type="Local", path="ab/x.npy")) == "Local 'ab/x.npy'"
    assert references.text(references.cached(bytes(32))) == f"Cached {'00' * 32}"
    assert references.text(Reference(type="Cached", cache_key=[300])) == "Cached [300]"
    assert "b" in references.text(Reference(type="S3", bucket="b", key="k"))


def test_a_reference_that_lacks_a_field() -> None:
    with pytest.raises(InvalidMessage, match="no field 'path'"):
        references.field(Reference(type="Local"), "path")


class Sealed:
    """A store that can remove nothing but one value."""

    def __init__(self) -> None:
        self.removed: list[Reference] = []

    def delete(self, reference: Reference) -> None:
        if reference.type != "Local":
            raise StoreError("read-only")
        if reference.fields["path"] == "theirs":
            raise PermissionError("not ours")
        self.removed.append(reference)


def test_what_cannot_be_removed_is_left_and_said(caplog: pytest.LogCaptureFixture) -> None:
    store, mine = Sealed(), Reference(type="Local", path="mine")
    clear(store, [Reference(type="Floppy"), Reference(type="Local", path="theirs"), mine])
    assert store.removed == [mine]
    assert [record.getMessage() for record in caplog.records] == [
        "Reference(type='Floppy') is left to expire: read-only",
        "Local 'theirs' is left to expire: not ours",
    ]
