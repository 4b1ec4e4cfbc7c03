"""A plan with everything that it needs to run, and what comes back."""

from __future__ import annotations

from pydantic import Field

from somatize_worker.protocol.base import External, Internal, Message, OneOf
from somatize_worker.protocol.data import InputSource, OutputDelivery
from somatize_worker.protocol.fields import Base64, Count, Flag, JsonData, Text
from somatize_worker.protocol.plans import ExecutionPlan
from somatize_worker.protocol.values import Value


class SerializedFilter(Message):
    """A filter as cloudpickle wrote it; base64 text on the wire."""

    node_id: Text
    pickled_filter: Base64
    state: Value | None = None
    requirements: tuple[Text, ...] = ()
    trainable: Flag = False


class ExecutionMode(OneOf, tagging=External()):
    """What to do with the plan."""


class Fit(ExecutionMode):
    """Fit each trainable filter in order, then forward; ``batch_size`` rows at a time if given."""

    y: Value | None = None
    batch_size: Count | None = None


class Forward(ExecutionMode):
    """Only forward, with the states given."""


class SerializedPlan(Message):
    """A plan, its input, its filters and how to run it."""

    plan_id: Text
    plan: ExecutionPlan
    input: InputSource | None = None
    filters: tuple[SerializedFilter, ...] = ()
    mode: ExecutionMode = Field(default_factory=Forward)
    metadata: JsonData = Field(default_factory=dict)


class PlanResult(OneOf, tagging=Internal("status")):
    """How a plan ended."""


class Success(PlanResult):
    """The output, and after a fit each fitted filter's state. ``duration_ms`` is in milliseconds."""

    output: OutputDelivery
    duration_ms: Count
    states: dict[Text, Value] = Field(default_factory=dict)


class Failed(PlanResult):
    """What went wrong."""

    error: Text
    duration_ms: Count
