"""From a plan's spec to a submission for the ledger: the one way in, for coordinators and for workers alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from somatize_worker import protocol
from somatize_worker.jobs.validation import check_job
from somatize_worker.ledger import Submission
from somatize_worker.packing import pack
from somatize_worker.ports import DataStore
from somatize_worker.settings import Settings
from somatize_worker.stores import offload


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a plan is to be run; ``None`` means the setting's default.

    ``timeout_s`` counts from the first start, over all attempts. ``priority`` is Celery's on Redis: 0 goes first, 9
    last. ``retries`` are for failures of the plan itself: a dead host, or an exception whose type or base is listed
    in ``retry_on`` (qualified names); the first waits ``retry_delay_s``, each further one twice as long.
    """

    timeout_s: float | None = None
    priority: int = 5
    retries: int = 0
    retry_on: tuple[str, ...] = ()
    retry_delay_s: float = 0.5
    max_attempts: int | None = None

    def fields(self, settings: Settings) -> dict[str, Any]:
        """The submission's fields that this decides."""
        timeout_s = settings.plan_timeout_s if self.timeout_s is None else self.timeout_s
        retry = {"retries": self.retries, "on": list(self.retry_on), "delay_s": self.retry_delay_s, "factor": 2.0}
        return {
            "timeout_ms": int(timeout_s * 1000),
            "priority": self.priority,
            "retry": retry if self.retries else None,
            "max_attempts": self.max_attempts or settings.max_attempts,
        }


def code_digest(filters: Iterable[Mapping[str, Any]]) -> tuple[str, tuple[str, ...]]:
    """Which warm host fits: a digest over the filters' pickles and requirements, and those requirements."""
    digest = hashlib.sha256()
    requirements: set[str] = set()
    for entry in filters:
        digest.update(len(entry["pickle"]).to_bytes(8, "little"))
        digest.update(entry["pickle"])
        requirements.update(entry["requirements"])
    digest.update("\n".join(sorted(requirements)).encode())
    return digest.hexdigest(), tuple(sorted(requirements))


def offload_spec(spec: dict[str, Any], store: DataStore, limit: int) -> dict[str, Any]:
    """The spec with its large values (input, targets, states, filters) moved to the store."""
    spec = {**spec, "input": offload(store, spec["input"], limit)}
    if isinstance(spec["mode"], dict):
        fit = spec["mode"]["Fit"]
        spec["mode"] = {"Fit": {**fit, "y": offload(store, fit["y"], limit)}}
    if isinstance(spec["filters"], list):
        filters = [{**entry, "state": offload(store, entry["state"], limit)} for entry in spec["filters"]]
        size = sum(len(entry["pickle"]) for entry in filters)
        if size > limit:
            packed = pack(filters)
            spec["filters"] = store.put(packed, key=hashlib.sha256(packed).digest())
        else:
            spec["filters"] = filters
    return spec


def message_submission(
    plan: protocol.SerializedPlan,
    *,
    queue: str,
    store: DataStore,
    settings: Settings,
    policy: Policy,
    options: Mapping[str, Any] | None = None,
    aliases: tuple[str, ...] = (),
) -> Submission:
    """A submission for a plan that came as a protocol message.

    Raises:
        InvalidMessage, InvalidPipeline: the plan cannot run as written (nested too deep, a node without a filter).
    """
    protocol.check_plan(plan, settings.max_plan_depth)
    digest = hashlib.sha256(protocol.to_packed(plan)).hexdigest()
    spec = protocol.plan_to_spec(plan)
    code, requirements = code_digest(spec["filters"])
    soma = {**(spec["metadata"].get("soma") or {}), **(options or {})}
    spec["metadata"] = {**spec["metadata"], "soma": soma}
    return Submission(
        plan_id=plan.plan_id,
        spec=pack(offload_spec(spec, store, settings.inline_limit_bytes)),
        queue=queue,
        digest=digest,
        summary=str(soma.get("summary") or _summary(spec)),
        code=code,
        requirements=requirements,
        aliases=aliases,
        **policy.fields(settings),
    )


def job_submission(
    job: protocol.PythonPipelineJob,
    *,
    queue: str,
    settings: Settings,
    policy: Policy | None = None,
    aliases: tuple[str, ...] = (),
) -> Submission:
    """A submission for a Python job.

    Raises:
        InvalidJob: a file path, a requirement line or a size that is refused.
    """
    check_job(job, settings)
    packed = pack(json.loads(protocol.to_json(job)))
    policy = policy or Policy(timeout_s=settings.job_timeout_s)
    return Submission(
        plan_id=job.job_id,
        spec=packed,
        queue=queue,
        kind="job",
        digest=hashlib.sha256(packed).hexdigest(),
        summary=f"job {job.entry_point}",
        aliases=aliases,
        **policy.fields(settings),
    )


def _summary(spec: Mapping[str, Any]) -> str:
    nodes = [entry["node_id"] for entry in spec["filters"]]
    shown = " → ".join(nodes[:4]) + (f" → … ({len(nodes)} nodes)" if len(nodes) > 4 else "")
    mode = "forward" if spec["mode"] == "Forward" else "fit"
    return f"{mode} {shown or json.dumps(spec['plan'])[:60]}"
