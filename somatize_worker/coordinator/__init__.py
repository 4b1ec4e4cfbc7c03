"""The client: hand out plans, watch them, collect results."""

from somatize_worker.coordinator.coordinator import Coordinator
from somatize_worker.coordinator.handles import PlanHandle, RunResult
from somatize_worker.coordinator.jobs import JobHandle
from somatize_worker.coordinator.registry import WorkerInfo

__all__ = ["Coordinator", "JobHandle", "PlanHandle", "RunResult", "WorkerInfo"]
