"""Hypothesis strategies for every message type, made from the declarations themselves."""

from __future__ import annotations

from datetime import UTC
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from somatize_worker import protocol
from somatize_worker.protocol import fields
from somatize_worker.protocol.base import Message, OneOf

UNIONS: list[type[OneOf]] = [
    protocol.CoordinatorToWorker,
    protocol.WorkerToCoordinator,
    protocol.StreamMessage,
    protocol.DataRef,
    protocol.InputSource,
    protocol.OutputDelivery,
    protocol.PlanResult,
    protocol.Event,
    protocol.Value,
    protocol.ExecutionPlan,
    protocol.ExecutionMode,
    protocol.RemoteTarget,
    protocol.StreamMode,
]
STRUCTS: list[type[Message]] = [
    protocol.CacheKey,
    protocol.Capabilities,
    protocol.GpuInfo,
    protocol.LoadMetrics,
    protocol.Metric,
    protocol.PipelineFile,
    protocol.PlanSummary,
    protocol.PythonPipelineJob,
    protocol.SerializedFilter,
    protocol.SerializedPlan,
]

TEXT = st.text(max_size=8)
_SIZES = {fields.Count: 2**64 - 1, fields.SmallCount: 2**32 - 1}
_TIMES = st.datetimes(timezones=st.just(UTC))
_ANY_DTYPES = ["complex64", "complex128", "<U4", "S3", "datetime64[ms]", "timedelta64[s]"]


def floats(finite: bool, width: int = 64) -> st.SearchStrategy[float]:
    """Numbers; also NaN and the infinities unless ``finite``."""
    some = st.floats(allow_nan=False, allow_infinity=False, width=width)  # type: ignore[arg-type]
    return some if finite else some | st.sampled_from([float("nan"), float("inf"), float("-inf")])


@st.composite
def arrays(draw: st.DrawFn, finite: bool, any_dtype: bool) -> np.ndarray:
    """Arrays of up to three dimensions, of none and of no elements too."""
    names = sorted(fields.TENSOR_DTYPES) + (_ANY_DTYPES if any_dtype else [])
    dtype = np.dtype(draw(st.sampled_from(names)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    elements = floats(finite, dtype.itemsize * 8) if dtype.kind == "f" else None
    return draw(hnp.arrays(dtype, shape, elements=elements))


def json_data(finite: bool, any_dtype: bool, bits: int) -> st.SearchStrategy[Any]:
    """Free JSON data, with arrays and byte strings inside."""
    numbers = st.integers(-(2 ** (bits - 1)), 2**bits - 1)
    leaves: st.SearchStrategy[Any] = st.none() | st.booleans() | numbers | floats(finite) | TEXT | st.binary(max_size=4)
    leaves |= arrays(finite, any_dtype)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=6,
    )


class Messages:
    """Strategies for messages that one wire form can carry."""

    def __init__(self, *, finite: bool, any_dtype: bool, bits: int) -> None:
        self._special = {
            fields.Text: TEXT,
            fields.Flag: st.booleans(),
            fields.Float: floats(finite),
            fields.Instant: _TIMES,
            fields.Base64: st.binary(max_size=12),
            fields.Octets: st.binary(max_size=12),
            fields.Array: arrays(finite, any_dtype),
            fields.JsonData: json_data(finite, any_dtype, bits),
            **{kind: st.integers(0, most) for kind, most in _SIZES.items()},
        }
        self._made: dict[type[Message], st.SearchStrategy[Any]] = {}

    def of(self, kind: type[Message]) -> st.SearchStrategy[Any]:
        """Messages of a kind: any variant, if it is a union."""
        if kind is protocol.CacheKey:
            return st.binary(min_size=32, max_size=32).map(protocol.CacheKey)
        if kind not in self._made:
            self._made[kind] = st.deferred(lambda: self._build(kind))
        return self._made[kind]

    def _build(self, kind: type[Message]) -> st.SearchStrategy[Any]:
        if issubclass(kind, OneOf) and not kind.variant:
            if kind is protocol.ExecutionPlan:
                return self._plans()
            return st.one_of([self.of(variant) for variant in kind.variants.values()])
        hints = get_type_hints(kind, include_extras=True)
        declared = {name: self._field(hints[name]) for name in kind.model_fields}
        return st.fixed_dictionaries(declared).map(lambda values: kind(**values))

    def _plans(self) -> st.SearchStrategy[Any]:
        variants = protocol.ExecutionPlan.variants
        nested = {protocol.Sequence, protocol.Parallel, protocol.Loop, protocol.Branch, protocol.Remote}
        leaves = st.one_of([self.of(kind) for kind in variants.values() if kind not in nested])
        counts = st.none() | st.integers(0, 2**64 - 1)

        def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
            some = st.lists(inner, max_size=3)
            arms = st.lists(st.tuples(TEXT, inner), max_size=2)
            return st.one_of(
                some.map(protocol.Sequence),
                some.map(protocol.Parallel),
                st.builds(protocol.Loop, node_id=TEXT, body=inner, max_iterations=counts),
                st.builds(protocol.Branch, node_id=TEXT, arms=arms),
                st.builds(protocol.Remote, node_id=TEXT, target=self.of(protocol.RemoteTarget), plan=inner),
            )

        return st.recursive(leaves, around, max_leaves=5)

    def _field(self, hint: Any) -> st.SearchStrategy[Any]:
        if hint in self._special:
            return self._special[hint]
        origin, inner = get_origin(hint), get_args(hint)
        if origin in (Union, UnionType):
            return st.one_of([st.none() if part is NoneType else self._field(part) for part in inner])
        if origin is tuple and inner[-1] is Ellipsis:
            return st.lists(self._field(inner[0]), max_size=3).map(tuple)
        if origin is dict:
            return st.dictionaries(self._field(inner[0]), self._field(inner[1]), max_size=3)
        if issubclass(hint, Enum):
            return st.sampled_from(list(hint))
        return self.of(hint)
