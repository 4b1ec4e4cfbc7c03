"""Between messages and the data that a cluster works with.

*Plain data* is what values are inside a cluster: a numpy array, JSON-like data, bytes, or None for ``Empty``.
A *spec* is a plan as the ledger keeps it: a dict of plain data that :mod:`somatize_worker.packing` can pack, in which
a :class:`~somatize_worker.packing.Reference` may stand for any large value. Tensors are never copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from somatize_worker.errors import InvalidMessage, Unrepresentable
from somatize_worker.packing import Reference
from somatize_worker.protocol.assignments import ExecutionMode, Fit, Forward, SerializedFilter, SerializedPlan
from somatize_worker.protocol.data import (
    CachedRef,
    DataRef,
    InlineInput,
    InlineOutput,
    InlineRef,
    InputSource,
    OutputDelivery,
    ReferenceInput,
    ReferenceOutput,
)
from somatize_worker.protocol.plans import ExecutionPlan
from somatize_worker.protocol.values import Bytes, Empty, Json, Tensor, Value
from somatize_worker.protocol.wire import from_data, to_data


def value_to_plain(value: Value) -> Any:
    """The plain data in a value: array, JSON-like data, bytes, or None."""
    match value:
        case Tensor(array=array):
            return array
        case Json(data=data) | Bytes(data=data):
            return data
    return None


def plain_to_value(plain: Any) -> Value:
    """The value that carries plain data.

    Raises:
        Unrepresentable: no plain data (``values.to_plain`` makes it), or a reference, which must be resolved first.
    """
    if isinstance(plain, np.ndarray):
        return Tensor(plain)
    if plain is None:
        return Empty()
    if isinstance(plain, bytes):
        return Bytes(plain)
    try:
        return Json(plain)
    except InvalidMessage as error:
        raise Unrepresentable(
            f"no protocol value can carry this {type(plain).__qualname__} ({error.message}); "
            "convert objects with values.to_plain and load references first"
        ) from None


def reference_to_dataref(reference: Reference) -> DataRef:
    """The protocol's form of a packed reference.

    Raises:
        InvalidMessage: an unknown type of reference, or fields that it does not have.
    """
    fields = dict(reference.fields)
    if fields.get("type") == "Inline":
        return InlineRef(value=plain_to_value(fields.get("value")))
    return from_data(DataRef, fields)


def dataref_to_reference(data_ref: DataRef) -> Reference:
    """The packed form of a reference: the same fields, keys as bytes, a region only if there is one."""
    match data_ref:
        case InlineRef(value=value):
            return Reference(type="Inline", value=value_to_plain(value))
        case CachedRef(cache_key=key):
            return Reference(type="Cached", cache_key=key.digest)
    return Reference(**{name: field for name, field in to_data(data_ref).items() if field is not None})


def _carried(value: Value | None, data_ref: DataRef | None) -> Any:
    if isinstance(data_ref, InlineRef):
        return value_to_plain(data_ref.value)
    if data_ref is not None:
        return dataref_to_reference(data_ref)
    return None if value is None else value_to_plain(value)


def input_to_plain(source: InputSource | None) -> Any:
    """An input as plain data or a packed reference; None for no input."""
    match source:
        case InlineInput(value=value):
            return _carried(value, None)
        case ReferenceInput(data_ref=data_ref):
            return _carried(None, data_ref)
    return None


def plain_to_input(plain: Any) -> InputSource | None:
    """The input that carries plain data or a packed reference; None stays None."""
    if plain is None:
        return None
    if isinstance(plain, Reference):
        return ReferenceInput(data_ref=reference_to_dataref(plain))
    return InlineInput(value=plain_to_value(plain))


def output_to_plain(delivery: OutputDelivery) -> Any:
    """An output as plain data or a packed reference."""
    match delivery:
        case InlineOutput(value=value):
            return _carried(value, None)
        case ReferenceOutput(data_ref=data_ref):
            return _carried(None, data_ref)
    raise AssertionError(f"no such delivery: {delivery!r}")


def plain_to_output(plain: Any) -> OutputDelivery:
    """The output that carries plain data or a packed reference."""
    if isinstance(plain, Reference):
        return ReferenceOutput(data_ref=reference_to_dataref(plain))
    return InlineOutput(value=plain_to_value(plain))


def plan_to_spec(plan: SerializedPlan) -> dict[str, Any]:
    """A plan as the ledger keeps it.

    ``y``, ``input`` and each ``state`` become plain data or references (``Empty`` is None, as is an absent one);
    metadata that is no object goes under the key ``metadata`` of one, null becomes an empty one.
    """
    mode: Any = "Forward"
    if isinstance(plan.mode, Fit):
        mode = {"Fit": {"y": _carried(plan.mode.y, None), "batch_size": plan.mode.batch_size}}
    metadata = plan.metadata
    if not isinstance(metadata, dict):
        metadata = {} if metadata is None else {"metadata": metadata}
    return {
        "plan_id": plan.plan_id,
        "plan": to_data(plan.plan),
        "mode": mode,
        "input": input_to_plain(plan.input),
        "filters": [_filter_to_spec(item) for item in plan.filters],
        "metadata": metadata,
    }


def _filter_to_spec(item: SerializedFilter) -> dict[str, Any]:
    return {
        "node_id": item.node_id,
        "pickle": item.pickled_filter,
        "state": _carried(item.state, None),
        "requirements": list(item.requirements),
        "trainable": item.trainable,
    }


def spec_to_plan(spec: dict[str, Any]) -> SerializedPlan:
    """The protocol's form of a spec.

    Raises:
        InvalidMessage: a key that is missing or has a wrong value.
        Unrepresentable: references where the protocol has only values (``y``, states, the list of filters).
    """
    try:
        filters, mode = spec["filters"], spec["mode"]
        _no_reference(filters, "the list of filters")
        return SerializedPlan(
            plan_id=spec["plan_id"],
            plan=from_data(ExecutionPlan, spec["plan"]),
            input=plain_to_input(spec["input"]),
            filters=tuple(_filter_from_spec(item) for item in filters),
            mode=_mode_from_spec(mode),
            metadata=spec["metadata"],
        )
    except KeyError as error:
        raise InvalidMessage(f"not a valid plan spec: {error.args[0]} is missing", path=str(error.args[0])) from None


def _mode_from_spec(mode: Any) -> ExecutionMode:
    if not isinstance(mode, dict) or "Fit" not in mode:
        return from_data(ExecutionMode, mode) if mode != "Forward" else Forward()
    fit = mode["Fit"]
    return Fit(y=_optional(fit["y"], "y"), batch_size=fit["batch_size"])


def _filter_from_spec(item: dict[str, Any]) -> SerializedFilter:
    return SerializedFilter(
        node_id=item["node_id"],
        pickled_filter=item["pickle"],
        state=_optional(item["state"], f"the state of {item['node_id']}"),
        requirements=tuple(item["requirements"]),
        trainable=item["trainable"],
    )


def _optional(plain: Any, what: str) -> Value | None:
    _no_reference(plain, what)
    return None if plain is None else plain_to_value(plain)


def _no_reference(plain: Any, what: str) -> None:
    if isinstance(plain, Reference):
        raise Unrepresentable(f"{what} is a reference, which the protocol has no place for here: load it first")
