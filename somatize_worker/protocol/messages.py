"""The messages between coordinators and workers."""

from __future__ import annotations

from somatize_worker.protocol.assignments import PlanResult, SerializedPlan
from somatize_worker.protocol.base import Internal, Message, OneOf
from somatize_worker.protocol.events import Event
from somatize_worker.protocol.fields import Count, Flag, Float, Instant, JsonData, SmallCount, Text
from somatize_worker.protocol.jobs import PythonPipelineJob
from somatize_worker.protocol.values import Value


class GpuInfo(Message):
    """One GPU; ``memory_bytes`` is its whole memory."""

    name: Text
    memory_bytes: Count


class Capabilities(Message):
    """What a worker has. ``tags`` are the queues that it serves."""

    cpu_cores: Count
    ram_bytes: Count
    gpus: tuple[GpuInfo, ...]
    python_envs: tuple[Text, ...]
    tags: tuple[Text, ...]


class LoadMetrics(Message):
    """How busy a worker is; usages are fractions from 0 to 1."""

    cpu_usage: Float
    memory_usage: Float
    gpu_usage: tuple[Float, ...]
    active_plans: Count
    queue_depth: Count
    timestamp: Instant


class WorkerToCoordinator(OneOf, tagging=Internal("type")):
    """A message from a worker."""


class Register(WorkerToCoordinator):
    """A worker announces itself."""

    worker_id: Text
    capabilities: Capabilities


class Heartbeat(WorkerToCoordinator):
    """A worker is alive, and so busy."""

    worker_id: Text
    load: LoadMetrics


class EventMessage(WorkerToCoordinator, name="Event"):
    """Something happened in a plan."""

    worker_id: Text
    plan_id: Text
    event: Event


class PlanResultMessage(WorkerToCoordinator, name="PlanResult"):
    """A plan ended."""

    worker_id: Text
    plan_id: Text
    result: PlanResult


class JobProgress(WorkerToCoordinator):
    """How far a Python job is: ``step`` of ``total``."""

    worker_id: Text
    job_id: Text
    phase: Text
    step: SmallCount
    total: SmallCount
    metrics: JsonData


class JobResult(WorkerToCoordinator):
    """A Python job ended; ``output`` is what it printed, ``duration_ms`` is in milliseconds."""

    worker_id: Text
    job_id: Text
    success: Flag
    metrics: JsonData
    output: Text
    duration_ms: Count


class StateResult(WorkerToCoordinator):
    """The answer to ``GetState``: each filter's state."""

    worker_id: Text
    plan_id: Text
    states: dict[Text, Value]


class GradientsResult(WorkerToCoordinator):
    """The answer to ``GetGradients``: each filter's gradients."""

    worker_id: Text
    plan_id: Text
    gradients: dict[Text, Value]


class CoordinatorToWorker(OneOf, tagging=Internal("type")):
    """A message to a worker."""


class Registered(CoordinatorToWorker):
    """The worker is known now."""

    worker_id: Text


class AssignPlan(CoordinatorToWorker):
    """Run this plan."""

    plan: SerializedPlan


class AssignPythonJob(CoordinatorToWorker):
    """Run this Python job."""

    job: PythonPipelineJob


class CancelPlan(CoordinatorToWorker):
    """Stop this plan or job."""

    plan_id: Text


class StatusRequest(CoordinatorToWorker):
    """How busy are you?"""


class Ping(CoordinatorToWorker):
    """Are you there?"""


class Shutdown(CoordinatorToWorker):
    """Finish what runs, then exit."""

    reason: Text


class GetState(CoordinatorToWorker):
    """Send the states of these filters."""

    plan_id: Text
    node_ids: tuple[Text, ...]


class SetState(CoordinatorToWorker):
    """Load these states into the filters."""

    plan_id: Text
    states: dict[Text, Value]


class GetGradients(CoordinatorToWorker):
    """Send the gradients of these filters."""

    plan_id: Text
    node_ids: tuple[Text, ...]


class ApplyGradients(CoordinatorToWorker):
    """Apply these gradients to the filters."""

    plan_id: Text
    gradients: dict[Text, Value]
