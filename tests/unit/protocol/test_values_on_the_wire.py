"""Values: tensors of every kind, JSON data with arrays inside, and the choices made where wire forms lose something."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgpack
import numpy as np
import pydantic
import pytest

from somatize_worker import packing, protocol
from somatize_worker.errors import InvalidMessage
from somatize_worker.protocol import Bytes, Empty, Json, Tensor, Value


def read_tensor(**data: Any) -> np.ndarray:
    value = protocol.from_data(Value, {"type": "Tensor", "data": data})
    assert isinstance(value, Tensor)
    return value.array


@pytest.mark.parametrize(
    "array, data",
    [
        (np.array([[1.0, -2.5], [3.0, 1e-20]]), {"values": [1.0, -2.5, 3.0, 1e-20], "shape": [2, 2]}),
        (np.array(7.0), {"values": [7.0], "shape": []}),
        (np.zeros((0, 3)), {"values": [], "shape": [0, 3]}),
        (np.array([1, -2], np.int8), {"values": [1, -2], "shape": [2], "dtype": "int8"}),
        (np.array([2**64 - 1], np.uint64), {"values": [2**64 - 1], "shape": [1], "dtype": "uint64"}),
        (np.array([True, False]), {"values": [1, 0], "shape": [2], "dtype": "bool"}),
        (np.array([0.1], np.float32), {"values": [float(np.float32(0.1))], "shape": [1], "dtype": "float32"}),
        (np.array([1.5], np.float16), {"values": [1.5], "shape": [1], "dtype": "float16"}),
        (np.arange(6.0).reshape(2, 3).T, {"values": [0.0, 3.0, 1.0, 4.0, 2.0, 5.0], "shape": [3, 2]}),
        (np.array([1.0, 2.0], ">f8"), {"values": [1.0, 2.0], "shape": [2]}),
    ],
    ids=lambda value: str(value.dtype) + str(value.shape) if isinstance(value, np.ndarray) else "",
)
def test_tensors(array: np.ndarray, data: dict[str, Any]) -> None:
    written = protocol.to_data(Tensor(array))
    assert written == {"type": "Tensor", "data": data}
    assert json.loads(protocol.to_json(Tensor(array)))["data"]["values"] == data["values"]
    back = read_tensor(**data)
    assert back.shape == array.shape
    assert np.array_equal(back, array)
    assert back.dtype == array.dtype.newbyteorder("=")


def test_a_tensor_holds_the_array_itself() -> None:
    array = np.arange(3.0)
    assert Tensor(array).array is array
    tensor = protocol.InlineInput(value=Tensor(array)).value
    assert isinstance(tensor, Tensor)
    assert tensor.array is array
    assert tensor.shape == (3,)
    assert tensor.dtype == np.float64


def test_null_among_a_peers_numbers_is_nan() -> None:
    assert np.array_equal(read_tensor(values=[1, None], shape=[2]), [1.0, np.nan], equal_nan=True)
    event = {"event_type": "StudyCompleted", "study_id": "s", "best_trial_id": "t", "best_value": None}
    assert np.isnan(protocol.from_data(protocol.Event, event).best_value)  # type: ignore[attr-defined]


def test_nan_tokens_that_python_writes_are_read() -> None:
    text = '{"type": "Tensor", "data": {"values": [NaN, -Infinity], "shape": [2]}}'
    value = protocol.from_json(Value, text)
    assert value == Tensor(np.array([np.nan, -np.inf]))


def test_whole_numbers_where_a_peer_writes_integers_as_floats() -> None:
    assert read_tensor(values=[1.0, 2.0], shape=[2], dtype="int32").dtype == np.int32
    assert read_tensor(values=[True, 0.0], shape=[2], dtype="bool").tolist() == [True, False]


def test_packed_tensors_are_views_of_the_message() -> None:
    packed = protocol.to_packed(protocol.ChunkData(stream_id="s", chunk_index=1, value=Tensor(np.arange(1000.0))))
    message = protocol.from_msgpack(protocol.StreamMessage, packed)
    assert isinstance(message, protocol.ChunkData)
    assert isinstance(message.value, Tensor)
    assert not message.value.array.flags.writeable
    assert not message.value.array.flags.owndata
    assert len(packed) < 8200


def test_nan_and_infinities_survive_msgpack() -> None:
    value = Tensor(np.array([np.nan, np.inf, -np.inf, -0.0]))
    assert protocol.from_msgpack(Value, protocol.to_msgpack(value)) == value


def test_bytes() -> None:
    assert protocol.to_data(Bytes(b"\0\xff")) == {"type": "Bytes", "data": [0, 255]}
    for data in ([0, 255], (0, 255), b"\0\xff", bytearray(b"\0\xff")):
        assert protocol.from_data(Value, {"type": "Bytes", "data": data}) == Bytes(b"\0\xff")


def test_json_null_is_a_value_and_empty_is_none() -> None:
    assert protocol.to_data(Json(None)) == {"type": "Json", "data": None}
    assert protocol.from_data(Value, {"type": "Json", "data": None}) == Json(None)
    assert protocol.to_data(Empty()) == {"type": "Empty"}
    assert protocol.from_data(Value, {"type": "Empty", "data": None}) == Empty()


def test_arrays_inside_json_data() -> None:
    inside = {"left": np.arange(2, dtype=np.int32), "right": [{"deep": np.array(1.5)}], "raw": b"\1"}
    value = Json(inside)
    assert protocol.to_data(value)["data"] == {
        "left": {"type": "Tensor", "data": {"values": [0, 1], "shape": [2], "dtype": "int32"}},
        "right": [{"deep": {"type": "Tensor", "data": {"values": [1.5], "shape": []}}}],
        "raw": {"type": "Bytes", "data": [1]},
    }
    assert protocol.from_json(Value, protocol.to_json(value)) == value
    assert value.data["left"] is inside["left"]


def test_objects_that_only_look_tagged_stay_objects() -> None:
    data = [{"type": "Tensor", "data": "mine"}, {"type": "Bytes", "data": [1], "more": 2}, {"type": 3, "data": [1]}]
    assert Json(data).data == data


def test_json_data_is_copied_and_made_plain() -> None:
    class Text(str):
        pass

    data: dict[Any, Any] = {Text("k"): (1, Text("v"))}
    value = Json(data)
    data["later"] = 1
    assert value.data == {"k": [1, "v"]}
    assert type(next(iter(value.data))) is str
    assert type(value.data["k"][1]) is str


@pytest.mark.parametrize("data", [{1: 2}, {1, 2}, object(), np.float64(1), [packing.Reference(type="Local")], "\ud800"])
def test_what_is_no_json_data(data: Any) -> None:
    with pytest.raises(InvalidMessage, match="not a valid Json"):
        Json(data)


def test_equality_is_by_content() -> None:
    nan = Tensor(np.array([np.nan]))
    assert nan == Tensor(np.array([np.nan]))
    assert Tensor(np.zeros(2)) != Tensor(np.zeros(2, np.float32))
    assert Tensor(np.zeros((2, 1))) != Tensor(np.zeros((1, 2)))
    assert Tensor(np.array([0.0])) != Tensor(np.array([-0.0]))
    assert Json({"a": [np.zeros(2)]}) == Json({"a": [np.zeros(2)]})
    assert Json(1) != Json(True)
    assert Json(1) != Json(1.0)
    assert Json([float("nan")]) == Json([float("nan")])
    assert Json([]) != Bytes(b"")
    assert protocol.Tag("a") != protocol.WorkerId("a")


def test_hashes() -> None:
    plan = protocol.Remote(node_id="r", target=protocol.Tag("gpu"), plan=protocol.Sequence([]))
    assert {plan: 1}[protocol.Remote(node_id="r", target=protocol.Tag("gpu"), plan=protocol.Sequence([]))] == 1
    a, b = (protocol.StudyCompleted(study_id="s", best_trial_id="t", best_value=float("nan")) for _ in "ab")
    assert a == b
    assert hash(a) == hash(b)
    for message in (Tensor(np.zeros(2)), Json({}), protocol.SetState(plan_id="p", states={})):
        with pytest.raises(TypeError, match="cannot be hashed: it holds"):
            hash(message)


@pytest.mark.parametrize(
    "text, time",
    [
        ("2026-04-06T10:30:15.123456Z", datetime(2026, 4, 6, 10, 30, 15, 123456, UTC)),
        ("2026-04-06T10:30:15.120Z", datetime(2026, 4, 6, 10, 30, 15, 120000, UTC)),
        ("2026-04-06T10:30:15Z", datetime(2026, 4, 6, 10, 30, 15, 0, UTC)),
    ],
)
def test_times(text: str, time: datetime) -> None:
    metric = protocol.Metric(name="m", value=1.0, step=0, timestamp=time)
    assert protocol.to_data(metric)["timestamp"] == text
    assert protocol.from_data(protocol.Metric, protocol.to_data(metric)).timestamp == time


@pytest.mark.parametrize(
    "text", ["2026-04-06T12:30:15.123456789+02:00", "2026-04-06t10:30:15.123456z", "2026-04-06 10:30:15.1234560Z"]
)
def test_times_as_other_peers_write_them(text: str) -> None:
    data = {"name": "m", "value": 1, "step": 0, "timestamp": text}
    read = protocol.from_data(protocol.Metric, data).timestamp
    assert read == datetime(2026, 4, 6, 10, 30, 15, 123456, UTC)
    assert read.utcoffset() == timedelta(0)


def test_times_need_a_zone() -> None:
    with pytest.raises(InvalidMessage, match="a time without a zone"):
        protocol.Metric(name="m", value=1.0, step=0, timestamp=datetime(2026, 4, 6))  # noqa: DTZ001
    there = datetime(2026, 4, 6, 12, tzinfo=timezone(timedelta(hours=2)))
    assert protocol.Metric(name="m", value=1.0, step=0, timestamp=there).timestamp == datetime(
        2026, 4, 6, 10, tzinfo=UTC
    )


def test_unions_are_annotations() -> None:
    class Mine(pydantic.BaseModel):
        target: protocol.RemoteTarget
        value: protocol.Value | None = None

    mine = Mine.model_validate({"target": {"Tag": "gpu"}, "value": {"type": "Bytes", "data": [1]}})
    assert mine.target == protocol.Tag("gpu")
    assert mine.value == Bytes(b"\1")
    assert mine.model_dump() == {"target": {"Tag": "gpu"}, "value": {"type": "Bytes", "data": [1]}}
    assert isinstance(mine.target, protocol.RemoteTarget)
    match mine.target:
        case protocol.Tag(tag=name):
            assert name == "gpu"
        case _:
            pytest.fail("not a Tag")


def test_models_dump_their_wire_form() -> None:
    message = protocol.GetState(plan_id="p", node_ids=("a",))
    assert message.model_dump() == {"type": "GetState", "plan_id": "p", "node_ids": ["a"]}
    assert message.model_dump_json().encode() == protocol.to_json(message)
    assert protocol.CoordinatorToWorker.model_validate(message.model_dump()) == message


def test_text_is_utf_8_and_not_escaped() -> None:
    assert protocol.to_json(protocol.CancelPlan(plan_id="größe 🐍")) == (
        '{"type":"CancelPlan","plan_id":"größe 🐍"}'.encode()
    )


def test_msgpack_byte_strings_where_bytes_are_expected() -> None:
    named = {"node_id": "n", "pickled_filter": b"\x80\x04", "state": {"type": "Bytes", "data": b"\1"}}
    item = protocol.from_msgpack(protocol.SerializedFilter, msgpack.packb(named))
    assert item == protocol.SerializedFilter(node_id="n", pickled_filter=b"\x80\x04", state=Bytes(b"\1"))
    assert protocol.to_data(item)["pickled_filter"] == "gAQ="
