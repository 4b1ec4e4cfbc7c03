"""Between messages and plain data, references and specs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from somatize_worker import packing, protocol
from somatize_worker.errors import InvalidMessage, Unrepresentable
from somatize_worker.packing import Reference
from somatize_worker.protocol import Bytes, CacheKey, Empty, Json, Tensor, Value

ARRAY = np.arange(4.0)
KEY = CacheKey.hash_data(b"x")
LOCAL = Reference(type="Local", path="a/b.npy")


@pytest.mark.parametrize(
    "value, plain",
    [
        (Tensor(ARRAY), ARRAY),
        (Json({"a": [1, None]}), {"a": [1, None]}),
        (Json("text"), "text"),
        (Bytes(b"raw"), b"raw"),
        (Empty(), None),
    ],
)
def test_values_and_plain_data(value: Value, plain: Any) -> None:
    assert protocol.value_to_plain(value) is plain or protocol.value_to_plain(value) == plain
    assert protocol.plain_to_value(plain) == value


def test_tensors_are_not_copied() -> None:
    assert protocol.value_to_plain(protocol.plain_to_value(ARRAY)) is ARRAY


@pytest.mark.parametrize("plain", [{1, 2}, LOCAL, {"a": LOCAL}, np.float64(1.0), (lambda: 1)])
def test_what_no_value_carries(plain: Any) -> None:
    with pytest.raises(Unrepresentable, match="load references first"):
        protocol.plain_to_value(plain)


@pytest.mark.parametrize(
    "data_ref, reference",
    [
        (protocol.LocalRef(path="a/b.npy"), LOCAL),
        (protocol.CachedRef(cache_key=KEY), Reference(type="Cached", cache_key=KEY.digest)),
        (protocol.S3Ref(bucket="b", key="k"), Reference(type="S3", bucket="b", key="k")),
        (protocol.S3Ref(bucket="b", key="k", region="r"), Reference(type="S3", bucket="b", key="k", region="r")),
        (
            protocol.StreamRef(endpoint="e", format=protocol.StreamFormat.ARROW),
            Reference(type="Stream", endpoint="e", format="arrow"),
        ),
        (protocol.ZarrRef(bucket="b", array_path="p"), Reference(type="Zarr", bucket="b", array_path="p")),
        (protocol.InlineRef(value=Json([1])), Reference(type="Inline", value=[1])),
    ],
)
def test_references(data_ref: protocol.DataRef, reference: Reference) -> None:
    made = protocol.dataref_to_reference(data_ref)
    assert made == reference
    assert protocol.reference_to_dataref(made) == data_ref
    assert packing.unpack(packing.pack(made)) == made


def test_references_that_are_none() -> None:
    with pytest.raises(InvalidMessage, match="Ftp"):
        protocol.reference_to_dataref(Reference(type="Ftp"))
    with pytest.raises(InvalidMessage, match="path"):
        protocol.reference_to_dataref(Reference(type="Local"))


def test_inputs_and_outputs() -> None:
    assert protocol.plain_to_input(None) is None
    assert protocol.input_to_plain(None) is None
    assert protocol.plain_to_output(None) == protocol.InlineOutput(value=Empty())
    for plain in (b"x", LOCAL, {"a": 1}):
        source = protocol.plain_to_input(plain)
        assert protocol.input_to_plain(source) == plain
        assert protocol.output_to_plain(protocol.plain_to_output(plain)) == plain
    inline = protocol.ReferenceInput(data_ref=protocol.InlineRef(value=Tensor(ARRAY)))
    assert protocol.input_to_plain(inline) is ARRAY


FULL = protocol.SerializedPlan(
    plan_id="p",
    plan=protocol.Sequence([protocol.Execute(node_id="a"), protocol.Cached(node_id="b", key=KEY)]),
    input=protocol.InlineInput(value=Tensor(ARRAY)),
    filters=(
        protocol.SerializedFilter(
            node_id="a", pickled_filter=b"\x80", state=Tensor(ARRAY), requirements=("numpy",), trainable=True
        ),
    ),
    mode=protocol.Fit(y=Tensor(ARRAY), batch_size=2),
    metadata={"edges": [["a", "b"]]},
)


def test_a_spec() -> None:
    spec = protocol.plan_to_spec(FULL)
    assert spec == {
        "plan_id": "p",
        "plan": {"Sequence": [{"Execute": {"node_id": "a"}}, {"Cached": {"node_id": "b", "key": list(KEY.digest)}}]},
        "mode": {"Fit": {"y": ARRAY, "batch_size": 2}},
        "input": ARRAY,
        "filters": [{"node_id": "a", "pickle": b"\x80", "state": ARRAY, "requirements": ["numpy"], "trainable": True}],
        "metadata": {"edges": [["a", "b"]]},
    }  # equal only because the arrays are the same objects
    assert protocol.spec_to_plan(spec) == FULL
    assert protocol.spec_to_plan(packing.unpack(packing.pack(spec))) == FULL


@pytest.mark.parametrize("metadata, kept", [(None, {}), ("note", {"metadata": "note"}), ([1], {"metadata": [1]})])
def test_metadata_that_is_no_object(metadata: Any, kept: Any) -> None:
    plan = protocol.SerializedPlan(plan_id="p", plan=protocol.EmptyPlan(), metadata=metadata)
    spec = protocol.plan_to_spec(plan)
    assert spec["metadata"] == kept
    assert (spec["mode"], spec["input"], spec["filters"]) == ("Forward", None, [])


def test_specs_that_are_none() -> None:
    spec = protocol.plan_to_spec(FULL)
    with pytest.raises(InvalidMessage, match="filters is missing"):
        protocol.spec_to_plan({key: part for key, part in spec.items() if key != "filters"})
    with pytest.raises(Unrepresentable, match="the list of filters is a reference"):
        protocol.spec_to_plan({**spec, "filters": LOCAL})
    with pytest.raises(Unrepresentable, match="the state of a is a reference"):
        protocol.spec_to_plan({**spec, "filters": [{**spec["filters"][0], "state": LOCAL}]})
    with pytest.raises(Unrepresentable, match="y is a reference"):
        protocol.spec_to_plan({**spec, "mode": {"Fit": {"y": LOCAL, "batch_size": None}}})
    with pytest.raises(InvalidMessage, match="'Train'"):
        protocol.spec_to_plan({**spec, "mode": "Train"})
    assert protocol.spec_to_plan({**spec, "input": LOCAL}).input == protocol.ReferenceInput(
        data_ref=protocol.LocalRef(path="a/b.npy")
    )


def test_messages_about_a_plans_end() -> None:
    result = {"output": LOCAL, "states": {"a": ARRAY}, "duration_ms": 7, "worker_id": "w"}
    message = protocol.plan_result_message("p", "succeeded", result)
    assert message == protocol.PlanResultMessage(
        worker_id="w",
        plan_id="p",
        result=protocol.Success(
            output=protocol.ReferenceOutput(data_ref=protocol.LocalRef(path="a/b.npy")),
            duration_ms=7,
            states={"a": Tensor(ARRAY)},
        ),
    )
    failed = protocol.plan_result_message("p", "failed", {"error": "OOM", "node_id": "a"})
    assert failed.result == protocol.Failed(error="OOM", duration_ms=0)
    odd = protocol.plan_result_message("p", "failed", {"error": "no file \udcff"}).result
    assert odd == protocol.Failed(error="no file \\udcff", duration_ms=0)
    assert protocol.plan_result_message("p", "cancelled", {}).result == protocol.Failed(
        error="cancelled", duration_ms=0
    )
    with pytest.raises(Unrepresentable, match="the state of 'a' is a reference"):
        protocol.plan_result_message("p", "succeeded", {"output": None, "states": {"a": LOCAL}})


def test_messages_about_a_jobs_end() -> None:
    done = {"output": "hi\n", "metrics": {"loss": 1}, "duration_ms": 7, "worker_id": "w"}
    assert protocol.job_result_message("j", "succeeded", done) == protocol.JobResult(
        worker_id="w", job_id="j", success=True, metrics={"loss": 1}, output="hi\n", duration_ms=7
    )
    failed = protocol.job_result_message("j", "failed", {"error": "exit code 1", "printed": "hi\n"})
    assert (failed.success, failed.output, failed.metrics) == (False, "hi\nexit code 1", None)
    assert protocol.job_result_message("j", "cancelled", {}).output == "cancelled"
