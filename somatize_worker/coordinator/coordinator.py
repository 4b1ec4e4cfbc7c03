"""The coordinator: pipelines and protocol messages in, handles out."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from celery import Celery

from somatize_worker import protocol, requirements
from somatize_worker.coordinator.handles import PlanHandle
from somatize_worker.coordinator.jobs import JobHandle
from somatize_worker.coordinator.mapping import Mapper
from somatize_worker.coordinator.registry import WorkerInfo
from somatize_worker.coordinator.session import Session
from somatize_worker.coordinator.shelf import Shelf
from somatize_worker.errors import InvalidPipeline, PlanConflict, SomaError
from somatize_worker.ledger import Ledger, Record, Submission
from somatize_worker.packing import pack
from somatize_worker.pipeline import CompiledPipeline, Target, compile_once
from somatize_worker.ports import DataStore
from somatize_worker.settings import Settings
from somatize_worker.stores import clear
from somatize_worker.submission import Policy, job_submission, message_submission, offload_spec, owned
from somatize_worker.values import to_plain

Place = str | protocol.Tag | protocol.WorkerId


class Coordinator:
    """Hands out plans and jobs, watches them, collects results.

    ``url`` is the Redis or Valkey server (default: ``SOMA_REDIS_URL``); other settings come from ``SOMA_*`` variables
    or from ``settings``. One coordinator serves any number of threads. Use it as a context manager, or :meth:`close`.

    Raises:
        ServerUnreachable: no server answers at the URL (within seconds).
    """

    def __init__(self, url: str | None = None, *, settings: Settings | None = None) -> None:
        settings = settings or Settings.from_env()
        self.settings = replace(settings, redis_url=url) if url else settings
        self.session = Session(self.settings)
        self._shelf = Shelf(self.session.store, self.session.ledger)

    @property
    def ledger(self) -> Ledger:
        """The plans' records."""
        return self.session.ledger

    @property
    def store(self) -> DataStore:
        """Where large values lie."""
        return self.session.store

    @property
    def app(self) -> Celery:
        """The Celery application, for ``control``, ``inspect`` and ``AsyncResult``."""
        return self.session.app

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections. Plans go on; :meth:`plan` finds them again from anywhere."""
        self.session.close()

    # ── pipelines ────────────────────────────────────────────────────────────────────────────────────────────────

    def fit(self, pipeline: Any, x: Any, y: Any = None, *, batch_size: int | None = None, **options: Any) -> PlanHandle:
        """Train a pipeline: each trainable step in order on the output of the one before; returns at once.

        Args:
            pipeline: steps chained with ``>>`` and ``|``, or a single one (filter, estimator, module, function).
            x: the input: an array of shape (rows, ...), JSON-like data or bytes.
            y: targets, of shape (rows, ...).
            batch_size: rows at a time, for steps that learn in parts (``partial_fit``).
            options: as for :meth:`forward`.
        """
        return self.submit(pipeline, "fit", x, y=y, batch_size=batch_size, **options)

    def forward(self, pipeline: Any, x: Any, **options: Any) -> PlanHandle:
        """Run a fitted or stateless pipeline on ``x``; returns at once.

        Args:
            pipeline: as for :meth:`fit`, or a fitted one (``result.pipeline``).
            x: the input.
            options:
                on: tag (or ``protocol.WorkerId``) for steps that name none; default ``"cpu"``.
                plan_id: an id of your own; the same id with the same content is the same plan.
                timeout, priority, retries, retry_on, retry_delay, max_attempts: see
                    :class:`~somatize_worker.submission.Policy`.
                wait: queue the plan even if no live worker serves its tags yet.
                spread: fan the branches of ``|`` out over workers. cache: reuse outputs computed before.
                events: False to run without events. metadata: JSON-like data kept with the plan.

        Raises:
            NoWorker: nobody serves a tag that the plan needs.
            InvalidPipeline, Unrepresentable, EnvironmentFailed, PlanConflict, StoreMismatch: before anything runs.
        """
        return self.submit(pipeline, "forward", x, **options)

    def compile(self, pipeline: Any) -> CompiledPipeline:
        """Pickle a pipeline's steps once, for many plans; later changes to its objects are not seen."""
        return compile_once(pipeline)

    def map(
        self,
        pipeline: Any,
        items: Iterable[Any],
        *,
        on: Place = "cpu",
        batch_size: int | None = None,
        as_completed: bool = False,
        **options: Any,
    ) -> Iterator[Any]:
        """Run a pipeline on many small items, in batches over all workers of the tag; yields outputs in order.

        Args:
            items: any iterable, endless ones included: only a bounded number is in flight.
            on: the tag (or worker) whose workers share the items.
            batch_size: items for each plan; default: what takes about a tenth of a second.
            as_completed: yield ``(index, output)`` as they come instead.
            options: as for :meth:`forward`.

        Raises:
            PlanFailed: an item failed; ``details["item"]`` is its index. Outputs of the batches before come first.
            InvalidPipeline: a ``batch_size`` that is no positive number.
        """
        if batch_size is not None and batch_size < 1:
            raise InvalidPipeline(f"batch_size={batch_size!r} should be a positive number, or None")
        compiled = self.compile(pipeline)

        def send(batch: list[Any], then: Callable[[str], None]) -> PlanHandle:
            return self.submit(compiled, "forward", batch, on=on, then=then, each=True, **options)

        queue = queue_of(on)
        mapper = Mapper(send, slots=lambda: self.session.registry.slots(queue), batch_size=batch_size)
        return mapper.run(items, ordered=not as_completed)

    def submit(
        self,
        pipeline: Any,
        mode: str,
        x: Any,
        *,
        y: Any = None,
        batch_size: int | None = None,
        on: Place = "cpu",
        plan_id: str | None = None,
        wait: bool = False,
        metadata: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        priority: int = 5,
        retries: int = 0,
        retry_on: Sequence[type[BaseException] | str] = (),
        retry_delay: float = 0.5,
        max_attempts: int | None = None,
        spread: bool | None = None,
        cache: bool | None = None,
        events: bool | None = None,
        study_id: str | None = None,
        trial_id: str | None = None,
        each: bool | None = None,
        then: Callable[[str], None] | None = None,
    ) -> PlanHandle:
        """What :meth:`fit`, :meth:`forward` and :meth:`map` call.

        Beside their arguments: ``study_id`` and ``trial_id`` are for the ``TrialMetric`` events of what is reported;
        with ``each`` the pipeline runs on each item of ``x``; ``then`` is called with the plan's id when it has ended.
        """
        options: dict[str, Any] = {"spread": spread, "cache": cache, "events": events, "each": each}
        options |= {"study_id": study_id, "trial_id": trial_id}
        compiled = compile_once(pipeline)
        self._check(compiled, plan_id)
        self.session.registry.require([queue_of(on), *compiled.targets], wait=wait)
        policy = Policy(
            timeout=timeout,
            priority=priority,
            retries=retries,
            retry_on=retry_on,
            retry_delay=retry_delay,
            max_attempts=max_attempts,
        )
        spec = compiled.spec(
            plan_id=uuid.uuid4().hex if plan_id is None else plan_id,
            mode=mode,
            input=to_plain(x),
            y=to_plain(y),
            batch_size=batch_size,
            metadata=dict(metadata or {}),
            default_tag=on,
            options={name: value for name, value in options.items() if value is not None},
        )
        digest = compiled.digest(spec) if plan_id else spec["plan_id"]
        limit, state_key = self.settings.inline_limit_bytes, self._shelf.state_key(compiled)
        packed = pack(offload_spec(spec, self._shelf, limit, state_key=state_key))
        submission = Submission(
            plan_id=spec["plan_id"],
            spec=packed,
            queue=queue_of(on),
            digest=digest,
            summary=spec["metadata"]["soma"]["summary"],
            code=compiled.code,
            requirements=compiled.requirements,
            **policy.fields(self.settings),
        )
        return self._hand_in(submission, compiled, then)

    def _hand_in(
        self, submission: Submission, source: CompiledPipeline | None, then: Callable[[str], None] | None = None
    ) -> PlanHandle:
        try:
            reply = self.session.hand_in(submission, then)
        except PlanConflict:
            self._withdraw(submission)
            raise
        if reply is None:  # it was known already, and has its data
            self._withdraw(submission)
        return PlanHandle(self.session, submission.plan_id, root=submission.plan_id, source=source, reply=reply)

    def _withdraw(self, submission: Submission) -> None:
        """Remove what was stored for a submission that came to nothing."""
        clear(self.store, owned(submission.spec))

    def _check(self, compiled: CompiledPipeline, plan_id: str | None) -> None:
        limit = self.settings.max_plan_depth
        if compiled.depth > limit:
            raise InvalidPipeline(
                f"the pipeline is nested {compiled.depth} deep, more than the limit of {limit}: make it flatter, "
                "or raise SOMA_MAX_PLAN_DEPTH"
            )
        requirements.check(compiled.requirements)
        problem = protocol.id_problem(plan_id) if plan_id is not None else ""
        if problem:
            raise InvalidPipeline(f"plan {plan_id!r:.100} cannot run: {problem}", plan_id=plan_id)

    # ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def assign_python_job(
        self, job: protocol.PythonPipelineJob, target: Place = "cpu", *, wait: bool = False, **policy: Any
    ) -> JobHandle:
        """Run source files in an environment of their own; returns at once.

        Args:
            wait: queue the job even if no live worker serves the target yet.
            policy: timeout, priority, retries, retry_on, ...: see :class:`~somatize_worker.submission.Policy`.

        Raises:
            InvalidJob: a path, a requirement line or a size that is refused.
            NoWorker: nobody serves the target.
            PlanConflict: its id is taken by a job with other content.
        """
        submission = job_submission(
            job, queue=queue_of(target), store=self._shelf, settings=self.settings, policy=Policy(**policy)
        )
        self.session.registry.require([submission.queue], wait=wait)
        reply = self.session.hand_in(submission)
        return JobHandle(self.session, submission.plan_id, root=submission.plan_id, reply=reply)

    def job(self, job_id: str) -> JobHandle:
        """A handle on any job of the cluster, whoever submitted it.

        Raises:
            PlanNotFound: there is no such job (any more).
        """
        self.ledger.state(job_id)
        return JobHandle(self.session, job_id, root=job_id, reply=None)

    # ── the protocol ─────────────────────────────────────────────────────────────────────────────────────────────

    def assign_plan(
        self, plan: protocol.SerializedPlan, target: Place = "cpu", *, wait: bool = False, **policy: Any
    ) -> PlanHandle:
        """Hand out a plan of the protocol's own; returns at once.

        Args:
            wait: queue the plan even if no live worker serves its targets yet.
            policy: timeout, priority, retries, retry_on, ...: see :class:`~somatize_worker.submission.Policy`.

        Raises:
            InvalidMessage, InvalidPipeline, EnvironmentFailed: it cannot run as written.
            NoWorker: nobody serves the target, or a target inside the plan.
            PlanConflict: its id is taken by a plan with other content.
        """
        submission = message_submission(
            plan, queue=queue_of(target), store=self._shelf, settings=self.settings, policy=Policy(**policy)
        )
        try:
            requirements.check(submission.requirements)
            remote = [Target.of(part).name for part in protocol.remote_targets(plan.plan)]
            self.session.registry.require([submission.queue, *remote], wait=wait)
        except SomaError:
            self._withdraw(submission)
            raise
        return self._hand_in(submission, None)

    def plan(self, plan_id: str) -> PlanHandle:
        """A handle on any plan of the cluster, whoever submitted it.

        Raises:
            PlanNotFound: there is no such plan (any more).
        """
        record = self.ledger.record(plan_id)
        return PlanHandle(self.session, plan_id, root=record.root or plan_id, source=None, reply=None)

    def plans(self, limit: int = 50, states: Sequence[str] | None = None) -> list[Record]:
        """Records of the newest plans."""
        return self.ledger.records(limit=limit, states=states)

    def cancel_plan(self, plan_id: str, reason: str = "cancelled by the client") -> None:
        """Cancel a plan or job: queued, running, waiting for children, or not yet seen by any worker."""
        self.session.cancel(plan_id, reason)

    def workers(self) -> list[WorkerInfo]:
        """The live workers."""
        return self.session.registry.workers()


def queue_of(target: Place) -> str:
    """The queue that leads to a target.

    Raises:
        InvalidPipeline: not a target, or a name that no queue can have.
    """
    return Target.of(target).name
