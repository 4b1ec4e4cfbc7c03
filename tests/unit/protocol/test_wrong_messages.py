"""Wrong messages: the error names the place, what was expected, and what was found."""

from __future__ import annotations

import pickle
from typing import Any

import msgpack
import numpy as np
import pytest

from somatize_worker import protocol
from somatize_worker.errors import InvalidMessage, SomaError, Unrepresentable
from somatize_worker.protocol import CoordinatorToWorker as ToWorker
from somatize_worker.protocol import ExecutionPlan, SerializedPlan, Value

PLAN: dict[str, Any] = {"plan_id": "p", "plan": "Empty", "input": None, "metadata": {}}


def assign(**changed: Any) -> dict[str, Any]:
    return {"type": "AssignPlan", "plan": {**PLAN, **changed}}


def tensor(**changed: Any) -> dict[str, Any]:
    return {"type": "Tensor", "data": {"values": [1.0, 2.0], "shape": [2], **changed}}


@pytest.mark.parametrize(
    "kind, data, path, words",
    [
        (ToWorker, {"type": "Pong"}, "", ["Ping", "AssignPlan", "unknown variant 'Pong'"]),
        (ToWorker, {"plan_id": "p"}, "", ['an object with "type"']),
        (ToWorker, {"type": ["Ping"]}, "", ["Ping", "unknown variant ['Ping']"]),
        (ToWorker, [], "", ['an object with "type"', "[]"]),
        (ToWorker, None, "", ["null"]),
        (ToWorker, {"type": "GetState", "node_ids": []}, "plan_id", ["plan_id is missing"]),
        (ToWorker, {"type": "GetState", "plan_id": 3, "node_ids": []}, "plan_id", ["text", "3"]),
        (ToWorker, {"type": "GetState", "plan_id": "p", "node_ids": ["a", True]}, "node_ids[1]", ["text", "true"]),
        (ToWorker, {"type": "GetState", "plan_id": "p", "node_ids": "ab"}, "node_ids", ["a list", "'ab'"]),
        (ToWorker, {"type": "AssignPlan", "plan": 1}, "plan", ["an object", "1"]),
        (ToWorker, assign(plan={"Gpu": {}}), "plan.plan", ["Sequence", "Parallel", "'Gpu'"]),
        (ToWorker, assign(plan={"Execute": {}, "Cached": {}}), "plan.plan", ["only key"]),
        (ToWorker, assign(plan={"Sequence": ["Empty", {"Execute": {"node_id": None}}]}),
         "plan.plan.Sequence[1].Execute.node_id", ["text", "null"]),
        (ToWorker, assign(plan={"Branch": {"node_id": "b", "arms": [["yes", "Empty"], ["no"]]}}),
         "plan.plan.Branch.arms[1][1]", ["missing"]),
        (ToWorker, assign(plan={"Loop": {"node_id": "l", "body": "Empty", "max_iterations": -1}}),
         "plan.plan.Loop.max_iterations", ["at least 0", "-1"]),
        (ToWorker, assign(plan="Execute"), "plan.plan.Execute", ["missing"]),
        (ToWorker, assign(mode={"Fit": {"batch_size": 2.5}}), "plan.mode.Fit.batch_size", ["a whole number", "2.5"]),
        (ToWorker, assign(filters=[{"node_id": "a", "pickled_filter": "a&b"}]),
         "plan.filters[0].pickled_filter", ["base64", "'a&b'"]),
        (ToWorker, assign(filters=[{"node_id": "a", "pickled_filter": "", "trainable": "yes"}]),
         "plan.filters[0].trainable", ["true or false", "'yes'"]),
        (ToWorker, assign(input={"source": "Inline", "value": tensor(shape=[3])}),
         "plan.input.value.data.values", ["3 values, as shape [3] says", "2 values"]),
        (ToWorker, assign(input={"source": "Reference", "data_ref": {"type": "Ftp"}}),
         "plan.input.data_ref", ["Local, S3, Cached", "'Ftp'"]),
        (ToWorker, {"type": "SetState", "plan_id": "p", "states": {"n": {"type": "Bytes", "data": [0, 256]}}},
         "states.n.data[1]", ["0 to 255", "256"]),
        (Value, tensor(values=[1.0, "2"]), "data.values[1]", ["a number", "'2'"]),
        (Value, tensor(values=[True, 1.0]), "data.values[0]", ["a number", "true"]),
        (Value, tensor(values=[[1.0], [2.0]]), "data.values[0]", ["a number", "[1.0]"]),
        (Value, tensor(shape=[2, -1]), "data.shape", ["at least 0", "[2, -1]"]),
        (Value, tensor(shape=None), "data.shape", ["null"]),
        (Value, tensor(dtype="float31"), "data.dtype", ["float32", "'float31'"]),
        (Value, tensor(dtype="int8", values=[1, 300]), "data.values", ["fit dtype int8"]),
        (Value, tensor(dtype="uint8", values=[1.5, 2.0]), "data.values", ["whole numbers", "[1.5, 2.0]"]),
        (Value, tensor(dtype="float32", values=[1e300, 2.0]), "data.values", ["fit dtype float32"]),
        (Value, tensor(dtype="int16", values=[float("nan"), 1e400]), "data.values", ["whole numbers"]),
        (Value, tensor(dtype="int8", values=[10**400, 1.0]), "data.values", ["fit dtype int8"]),
        (Value, tensor(dtype="uint8", values=[-1.0, 2.0]), "data.values", ["fit dtype uint8"]),
        (Value, tensor(values=[10**400, 2.0]), "data.values", ["fit dtype float64"]),
        (Value, tensor(shape=[1] * 100 + [2]), "data.shape", ["numpy can hold"]),
        (Value, tensor(dtype="bool", values=[2, 1]), "data.values", ["only 0, 1"]),
        (Value, tensor(dtype="int64", values=[None, 1]), "data.values[0]", ["a number", "null"]),
        (Value, {"type": "Tensor", "data": {"values": []}}, "data.shape", ["missing"]),
        (Value, {"type": "Tensor"}, "data", ["missing"]),
        (Value, {"type": "Json"}, "data", ["missing"]),
        (protocol.CacheKey, [1, 2], "", ["32 bytes", "2 bytes"]),
        (protocol.Metric, {"name": "m", "value": "1", "step": 0, "timestamp": "2026-04-06T10:30:15Z"},
         "value", ["a number", "'1'"]),
        (protocol.Metric, {"name": "m", "value": 1, "step": 2**64, "timestamp": "2026-04-06T10:30:15Z"},
         "step", ["at most"]),
        (protocol.Metric, {"name": "m", "value": 1, "step": 0, "timestamp": "2026-04-06 10:30"},
         "timestamp", ["RFC 3339"]),
        (protocol.Metric, {"name": "m", "value": 1, "step": 0, "timestamp": 5}, "timestamp", ["RFC 3339", "5"]),
        (protocol.Event, {"event_type": "NodeStarted", "run_id": "r", "node_id": "n", "kind": "Magic"},
         "kind", ["Stateless", "'Magic'"]),
        (protocol.GpuInfo, ["a", 1, 2], "", ["at most 2 fields (name, memory_bytes)", "a list of 3"]),
    ],
)  # fmt: skip
def test_the_error_says_where_and_what(kind: Any, data: Any, path: str, words: list[str]) -> None:
    with pytest.raises(InvalidMessage) as caught:
        protocol.from_data(kind, data)
    assert caught.value.details["path"] == path
    assert kind.__name__ in str(caught.value)
    for word in [path, *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [
        (b"", "JSON"),
        (b'{"type": "Ping"', "line 1 column 16"),
        (b"{'type': 'Ping'}", "JSON"),
        (b'{"type": "Ping"} trailing', "Extra data"),
        (b'{"type": "\xff"}', "UTF-8"),
        ("[" * 100_000, "nested at most"),
        (b'{"type": "CancelPlan", "plan_id": "\\ud800"}', "valid Unicode"),
    ],
)
def test_what_is_no_json(text: bytes | str, words: str) -> None:
    with pytest.raises(InvalidMessage, match=words):
        protocol.from_json(ToWorker, text)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x81", b"\xc1", msgpack.packb({"type": "Ping"}) + b"\0", msgpack.packb(msgpack.ExtType(77, b"x"))],
)
def test_what_is_no_msgpack(data: bytes) -> None:
    with pytest.raises(InvalidMessage, match="expected MessagePack"):
        protocol.from_msgpack(ToWorker, data)


def test_packed_tensors_that_lie_about_themselves() -> None:
    for head in (["|O", [1]], ["<f8", [1000]], ["nonsense", [1]], ["<f8"], 5, ["<f8", [-1]]):
        body = msgpack.packb(head) + b"\0" * 40
        packed = msgpack.packb({"type": "Tensor", "data": msgpack.ExtType(1, body)})
        with pytest.raises(InvalidMessage):
            protocol.from_msgpack(Value, packed)


def test_several_faults_are_told_together() -> None:
    data = assign(plan_id=1, plan=2, filters=3, mode=4)
    with pytest.raises(InvalidMessage, match=r"plan\.plan_id.*plan\.plan:.*plan\.filters.*and 1 more"):
        protocol.from_data(ToWorker, data)


def test_large_offenders_are_shortened() -> None:
    for data in ({"type": "Shutdown", "reason": ["x" * 10_000] * 1000}, {"type": "x" * 100_000}):
        with pytest.raises(InvalidMessage) as caught:
            protocol.from_data(ToWorker, data)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("variant", ["Sequence", "Parallel"])
def test_a_plan_nested_100_000_deep(variant: str) -> None:
    plan: Any = "Empty"
    for _ in range(100_000):
        plan = {variant: [plan]}
    with pytest.raises(InvalidMessage, match=f"nested at most {protocol.MAX_PLAN_DEPTH} deep") as caught:
        protocol.from_data(ToWorker, assign(plan=plan))
    assert len(str(caught.value)) < 1000


def test_msgpack_nested_100_000_deep() -> None:
    with pytest.raises(InvalidMessage):
        protocol.from_msgpack(ExecutionPlan, b"\x81\xa8Sequence\x91" * 100_000 + b"\xa5Empty")


def test_data_nested_too_deep() -> None:
    data: Any = 1
    for _ in range(protocol.MAX_DATA_DEPTH + 1):
        data = {"a": [data]} if isinstance(data, int) else [data]
    with pytest.raises(InvalidMessage, match="nested at most 200 deep"):
        protocol.from_data(Value, {"type": "Json", "data": data})


def test_a_variant_asked_for_by_name() -> None:
    assert protocol.from_json(protocol.Ping, b'{"type":"Ping"}') == protocol.Ping()
    with pytest.raises(InvalidMessage, match="expected the variant Ping, found the variant Shutdown"):
        protocol.from_json(protocol.Ping, b'{"type":"Shutdown","reason":"r"}')


def test_constructors_refuse_what_the_wire_refuses() -> None:
    with pytest.raises(InvalidMessage, match="plan_id: expected text, found 3"):
        protocol.CancelPlan(plan_id=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidMessage, match="plan_id is missing"):
        SerializedPlan(plan=protocol.EmptyPlan())  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"CancelPlan has no field plan; its fields: plan_id"):
        protocol.CancelPlan(plan_id="p", plan="p")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="RemoteTarget is a union: make one of its variants, Tag, WorkerId"):
        protocol.RemoteTarget()
    with pytest.raises(InvalidMessage, match="an array of Python objects"):
        protocol.Tensor(np.array([object()]))


def test_messages_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        protocol.CancelPlan(plan_id="p").plan_id = "q"  # type: ignore[misc]


def test_the_errors_survive_pickle_and_json() -> None:
    with pytest.raises(InvalidMessage) as caught:
        protocol.from_data(ToWorker, {"type": "Pong"})
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert SomaError.from_dict(caught.value.to_dict()).details == caught.value.details


@pytest.mark.parametrize(
    "message, path, words",
    [
        (protocol.InlineInput(value=protocol.Tensor(np.array([np.nan]))), "value.data", "NaN or infinity"),
        (protocol.Json({"a": [1.0, float("inf")]}), "data.a[1]", "no JSON number"),
        (protocol.Json([{"a": np.array([np.inf])}]), "data[0].a", "numpy.nan_to_num"),
        (protocol.StudyCompleted(study_id="s", best_trial_id="t", best_value=float("nan")), "best_value", "nan"),
        (protocol.SetState(plan_id="p", states={"n": protocol.Tensor(np.array([1j]))}), "states.n.data", "complex128"),
        (protocol.Tensor(np.array(["a"])), "data", r"\.tolist\(\)"),
    ],
)
def test_what_json_cannot_carry(message: Any, path: str, words: str) -> None:
    with pytest.raises(Unrepresentable, match=words) as caught:
        protocol.to_json(message)
    assert caught.value.details["path"] == path
    assert protocol.from_msgpack(type(message), protocol.to_packed(message)) == message


def test_what_msgpack_cannot_carry() -> None:
    with pytest.raises(Unrepresentable, match="64 bits"):
        protocol.to_msgpack(protocol.Json(2**64))
    assert protocol.from_json(Value, protocol.to_json(protocol.Json(2**64))) == protocol.Json(2**64)
    with pytest.raises(Unrepresentable, match="complex64"):
        protocol.to_msgpack(protocol.Tensor(np.zeros(2, "complex64")))


def test_plans_too_deep_to_write() -> None:
    plan: ExecutionPlan = protocol.EmptyPlan()
    for _ in range(100_000):
        plan = protocol.Sequence([plan])
    for write in (protocol.to_json, protocol.to_msgpack, protocol.to_packed):
        with pytest.raises(Unrepresentable, match="nested too deep"):
            write(plan)
