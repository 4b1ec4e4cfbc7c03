"""From a plan's spec to a submission for the ledger: the one way in, for coordinators and for workers alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from somatize_worker import protocol
from somatize_worker.errors import InvalidMessage, InvalidPipeline
from somatize_worker.jobs.validation import check_job
from somatize_worker.ledger import Submission
from somatize_worker.packing import Reference, pack, unpack
from somatize_worker.settings import Settings
from somatize_worker.stores.references import Putter, offload
from somatize_worker.values import nbytes

_NEVER_S: Final = 3.2e9
"""A hundred years."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a plan is to be run; ``None`` means the setting's default.

    ``timeout`` (seconds) counts from the first start, over all attempts; time in a queue does not count; 0 is none.
    ``priority`` is Celery's on Redis: 0 goes first, 9 last, in four steps (0 to 2, 3 to 5, 6 to 8, 9). ``retries`` are
    for failures of the plan itself: a dead host, or an exception whose type or base is listed in ``retry_on`` (types
    or qualified names); the first waits ``retry_delay`` seconds, each further one twice as long. ``max_attempts`` is
    how often the worker itself may die.

    Raises:
        InvalidPipeline: a value that makes no sense.
    """

    timeout: float | None = None
    priority: int = 5
    retries: int = 0
    retry_on: Sequence[type[BaseException] | str] = ()
    retry_delay: float = 0.5
    max_attempts: int | None = None

    def __post_init__(self) -> None:
        wrong = [
            (self.timeout is not None and not 0 <= self.timeout < _NEVER_S, "timeout", self.timeout, "seconds"),
            (self.priority not in range(10), "priority", self.priority, "a number from 0 (first) to 9 (last)"),
            (self.retries < 0, "retries", self.retries, "a number of at least 0"),
            (not 0 <= self.retry_delay < _NEVER_S, "retry_delay", self.retry_delay, "seconds"),
            (self.max_attempts is not None and self.max_attempts < 1, "max_attempts", self.max_attempts, "at least 1"),
        ]
        for is_wrong, name, value, wanted in wrong:
            if is_wrong:
                raise InvalidPipeline(f"{name}={value!r} is not usable: it should be {wanted}")
        if self.retry_on and not self.retries:
            raise InvalidPipeline(
                f"retry_on={', '.join(self._names())} without retries would retry nothing: say how often, as retries=3"
            )

    def fields(self, settings: Settings) -> dict[str, Any]:
        """The submission's fields that this decides."""
        timeout_s = settings.plan_timeout_s if self.timeout is None else self.timeout
        retry = {"retries": self.retries, "on": self._names(), "delay_s": self.retry_delay, "factor": 2.0}
        return {
            "timeout_ms": int(timeout_s * 1000),
            "priority": self.priority,
            "retry": retry if self.retries else None,
            "max_attempts": self.max_attempts or settings.max_attempts,
        }

    def _names(self) -> list[str]:
        return [kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}" for kind in self.retry_on]


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


class _Owned:
    """Notes what is put into a store for one plan alone."""

    def __init__(self, store: Putter) -> None:
        self._store = store
        self.references: list[Reference] = []

    def put(self, value: Any, *, key: bytes | None = None) -> Reference:
        reference = self._store.put(value, key=key)
        if key is None:
            self.references.append(reference)
        return reference


def content_key(value: Any) -> bytes:
    """The key under which plain data lie once, however often they are put."""
    kind, data = (b"bytes", value) if isinstance(value, bytes) else (b"data", pack(value))
    digest = hashlib.sha256(kind)
    digest.update(data)
    return digest.digest()


def offload_spec(
    spec: dict[str, Any], store: Putter, limit: int, *, state_key: Callable[[str, Any], bytes] | None = None
) -> dict[str, Any]:
    """The spec with its large values (input, targets, states, filters) moved to the store.

    Input and targets are the plan's own, listed as ``owned``: they go when it has ended. States and filters are
    shared by all plans that have the same.

    Args:
        state_key: gives the content key of a node's state (node id, state), if it is known already.
    """
    own = _Owned(store)
    spec = {**spec, "input": offload(own, spec["input"], limit)}
    if isinstance(spec["mode"], dict):
        fit = spec["mode"]["Fit"]
        spec["mode"] = {"Fit": {**fit, "y": offload(own, fit["y"], limit)}}
    if own.references:
        spec["owned"] = own.references
    if isinstance(spec["filters"], list):
        filters = []
        for entry in spec["filters"]:
            state = entry["state"]
            if not isinstance(state, Reference) and nbytes(state) > limit:
                key = content_key(state) if state_key is None else state_key(entry["node_id"], state)
                entry = {**entry, "state": store.put(state, key=key)}
            filters.append(entry)
        if sum(map(len, {entry["pickle"] for entry in filters})) > limit:
            packed = pack(filters)
            spec["filters"] = store.put(packed, key=content_key(packed))
            spec["requirements"] = {entry["node_id"]: entry["requirements"] for entry in filters}
        else:
            spec |= shared_pickles(filters)
    return spec


def owned(spec: bytes) -> list[Reference]:
    """What was stored for a plan alone, from its packed spec."""
    if b"owned" not in spec:  # which spares reading a large spec for this alone
        return []
    return unpack(spec).get("owned") or []


def shared_pickles(filters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The spec's ``filters``, and ``pickles`` where several nodes have the same one: entries then have its place."""
    places = {pickle: place for place, pickle in enumerate(dict.fromkeys(entry["pickle"] for entry in filters))}
    if len(places) == len(filters):
        return {"filters": filters}
    return {"filters": [{**entry, "pickle": places[entry["pickle"]]} for entry in filters], "pickles": list(places)}


def message_submission(
    plan: protocol.SerializedPlan,
    *,
    queue: str,
    store: Putter,
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
    given = spec["metadata"].get("soma") or {}
    if not isinstance(given, dict):
        raise InvalidMessage(f'plan {plan.plan_id!r}: metadata["soma"] holds options, as an object, not {given!r:.80}')
    soma = {**given, **(options or {})}
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
    store: Putter,
    settings: Settings,
    policy: Policy,
    aliases: tuple[str, ...] = (),
) -> Submission:
    """A submission for a Python job; a large one (sources, params and input data) lies in the store meanwhile.

    Raises:
        InvalidJob: a file path, a requirement line or a size that is refused.
    """
    check_job(job, settings)
    packed = pack(json.loads(protocol.to_json(job)))
    digest = hashlib.sha256(packed)
    if policy.timeout is None:
        policy = replace(policy, timeout=settings.job_timeout_s)
    large = len(packed) > settings.inline_limit_bytes
    return Submission(
        plan_id=job.job_id,
        spec=pack(store.put(packed, key=digest.digest())) if large else packed,
        queue=queue,
        kind="job",
        digest=digest.hexdigest(),
        summary=f"job {job.entry_point}" + (f" of {job.pipeline_id}" if job.pipeline_id else ""),
        aliases=aliases,
        **policy.fields(settings),
    )


def _summary(spec: Mapping[str, Any]) -> str:
    nodes = [entry["node_id"] for entry in spec["filters"]]
    shown = " → ".join(nodes[:4]) + (f" → … ({len(nodes)} nodes)" if len(nodes) > 4 else "")
    mode = "forward" if spec["mode"] == "Forward" else "fit"
    return f"{mode} {shown or json.dumps(spec['plan'])[:60]}"
