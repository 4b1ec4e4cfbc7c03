"""Real messages of a peer: read from every form, written back the same."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from somatize_worker import protocol
from somatize_worker.protocol.base import Message

EXAMPLES = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "data" / "protocol-examples.jsonl").read_text().splitlines()
]
EVERY = pytest.mark.parametrize("example", EXAMPLES, ids=[example["name"] for example in EXAMPLES])


def kind_of(example: dict[str, Any]) -> type[Message]:
    kind: type[Message] = getattr(protocol, example["type"])
    return kind


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 29
    assert sum("msgpack_base64" in example for example in EXAMPLES) == 2


@EVERY
def test_json_text_is_read_and_written_back(example: dict[str, Any]) -> None:
    message = protocol.from_json(kind_of(example), json.dumps(example["json"]))
    assert json.loads(protocol.to_json(message)) == example["json"]


@EVERY
def test_parsed_json_is_read_and_written_back(example: dict[str, Any]) -> None:
    message = protocol.from_data(kind_of(example), example["json"])
    assert protocol.to_data(message) == example["json"]


@EVERY
def test_msgpack_in_both_forms(example: dict[str, Any]) -> None:
    message = protocol.from_data(kind_of(example), example["json"])
    named = protocol.to_msgpack(message)
    assert msgpack.unpackb(named) == example["json"]
    assert protocol.from_msgpack(kind_of(example), named) == message
    assert protocol.from_msgpack(kind_of(example), protocol.to_msgpack(message, compact=True)) == message
    assert protocol.from_msgpack(kind_of(example), protocol.to_packed(message)) == message


@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if "msgpack_base64" in e], ids=lambda example: str(example["name"])
)
def test_the_peers_msgpack_byte_for_byte(example: dict[str, Any]) -> None:
    theirs = base64.b64decode(example["msgpack_base64"])
    message = protocol.from_msgpack(protocol.StreamMessage, theirs)
    assert message == protocol.from_data(protocol.StreamMessage, example["json"])
    assert protocol.to_msgpack(message) == theirs


def test_the_compact_form_of_a_chunk() -> None:
    compact = msgpack.packb(["ChunkData", "s1", 0, ["Tensor", [[1.0], [1]]]])
    message = protocol.from_msgpack(protocol.StreamMessage, compact)
    assert protocol.to_data(message) == {
        "type": "ChunkData",
        "stream_id": "s1",
        "chunk_index": 0,
        "value": {"type": "Tensor", "data": {"values": [1.0], "shape": [1]}},
    }
    assert protocol.to_msgpack(message, compact=True) == compact


def test_optional_fields_may_be_absent() -> None:
    plan = protocol.from_json(protocol.SerializedPlan, {"plan_id": "p", "plan": "Empty"})
    assert (plan.input, plan.filters, plan.mode, plan.metadata) == (None, (), protocol.Forward(), {})
    item = protocol.from_json(protocol.SerializedFilter, {"node_id": "n", "pickled_filter": ""})
    assert (item.state, item.requirements, item.trainable) == (None, (), False)
    assert protocol.from_data(protocol.ExecutionMode, {"Fit": {}}) == protocol.Fit()
    success = {"status": "Success", "output": {"delivery": "Inline", "value": {"type": "Empty"}}, "duration_ms": 1}
    result = protocol.from_data(protocol.PlanResult, success)
    assert isinstance(result, protocol.Success)
    assert result.states == {}
    assert protocol.from_data(protocol.DataRef, {"type": "S3", "bucket": "b", "key": "k"}) == protocol.S3Ref(
        bucket="b", key="k"
    )
    loop = protocol.from_data(protocol.ExecutionPlan, {"Loop": {"node_id": "l", "body": "Empty"}})
    assert isinstance(loop, protocol.Loop)
    assert loop.max_iterations is None


def test_optional_fields_are_written_as_null() -> None:
    plan = protocol.SerializedPlan(plan_id="p", plan=protocol.EmptyPlan(), mode=protocol.Fit())
    assert protocol.to_data(plan) == {
        "plan_id": "p",
        "plan": "Empty",
        "input": None,
        "filters": [],
        "mode": {"Fit": {"y": None, "batch_size": None}},
        "metadata": {},
    }
    assert protocol.to_data(protocol.S3Ref(bucket="b", key="k"))["region"] is None


@pytest.mark.parametrize("body", ["Forward", {"Forward": None}, {"Forward": {}}, {"Forward": []}])
def test_unit_variants_in_every_form_that_serde_reads(body: Any) -> None:
    assert protocol.from_data(protocol.ExecutionMode, body) == protocol.Forward()
