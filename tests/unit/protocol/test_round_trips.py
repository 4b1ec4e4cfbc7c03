"""Any message survives every wire form."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from somatize_worker import protocol
from somatize_worker.errors import InvalidMessage
from somatize_worker.protocol.base import Message
from tests.unit.protocol.strategies import STRUCTS, UNIONS, Messages

#: What every form can carry; what only MessagePack can (NaN, infinities); what only the packed form can.
ANY_FORM = Messages(finite=True, any_dtype=False, bits=64)
MSGPACK = Messages(finite=False, any_dtype=False, bits=64)
PACKED = Messages(finite=False, any_dtype=True, bits=80)

EVERY = pytest.mark.parametrize("kind", [*UNIONS, *STRUCTS], ids=lambda kind: kind.__name__)
QUICK = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@EVERY
@QUICK
@given(data=st.data())
def test_any_message_survives_json_msgpack_maps_and_msgpack_arrays(kind: type[Message], data: Any) -> None:
    message = data.draw(ANY_FORM.of(kind))
    text = protocol.to_json(message)
    assert json.loads(text) == protocol.to_data(message)
    assert protocol.from_json(kind, text) == message
    assert protocol.from_json(kind, text.decode()) == message
    assert protocol.from_data(kind, protocol.to_data(message)) == message
    assert protocol.from_msgpack(kind, protocol.to_msgpack(message)) == message
    assert protocol.from_msgpack(kind, protocol.to_msgpack(message, compact=True)) == message
    tree = protocol.to_data(message)
    if isinstance(tree, dict) and len(tree) != 1:  # one key: a variant's name, beside which none may stand
        assert protocol.from_data(kind, {**tree, "added_later": [1, {"x": None}]}) == message


@EVERY
@QUICK
@given(data=st.data())
def test_what_is_not_finite_survives_msgpack_and_any_array_the_packed_form(kind: type[Message], data: Any) -> None:
    message = data.draw(MSGPACK.of(kind))
    assert protocol.from_msgpack(kind, protocol.to_msgpack(message)) == message
    assert protocol.from_msgpack(kind, protocol.to_msgpack(message, compact=True)) == message
    message = data.draw(PACKED.of(kind))
    assert protocol.from_msgpack(kind, protocol.to_packed(message)) == message


@QUICK
@given(data=st.data())
def test_every_prefix_of_a_message_is_an_error_and_nothing_else(data: Any) -> None:
    message = data.draw(ANY_FORM.of(protocol.CoordinatorToWorker))
    for whole, read in (
        (protocol.to_json(message), protocol.from_json),
        (protocol.to_msgpack(message), protocol.from_msgpack),
        (protocol.to_packed(message), protocol.from_msgpack),
    ):
        cut = data.draw(st.integers(0, len(whole) - 1))
        with pytest.raises(InvalidMessage):
            read(protocol.CoordinatorToWorker, whole[:cut])


@settings(max_examples=150, deadline=None, database=None)
@given(data=st.binary(max_size=60) | ANY_FORM.of(protocol.Event).map(protocol.to_msgpack))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    for read in (protocol.from_json, protocol.from_msgpack):
        for kind in (protocol.CoordinatorToWorker, protocol.Value, protocol.ExecutionPlan):
            with suppress(InvalidMessage):
                read(kind, data)


def test_the_compact_form_is_arrays_throughout() -> None:
    plan = protocol.Sequence([protocol.Execute(node_id="a"), protocol.EmptyPlan()])
    begin = protocol.StreamBegin(
        stream_id="s", plan_id="p", plan=protocol.SerializedPlan(plan_id="p", plan=plan, mode=protocol.Fit())
    )
    assert msgpack.unpackb(protocol.to_msgpack(begin, compact=True)) == [
        "StreamBegin", "s", "p", None,
        ["p", {"Sequence": [{"Execute": ["a"]}, "Empty"]}, None, [], {"Fit": [None, None]}, {}],
    ]  # fmt: skip
