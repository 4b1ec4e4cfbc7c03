"""One plan, or one branch of a plan, from the frame that brings it to the frame that tells how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from somatize_worker.errors import InvalidPipeline, Unrepresentable
from somatize_worker.hosts.inside import tree
from somatize_worker.hosts.inside.caching import configuration
from somatize_worker.hosts.inside.each import run_each
from somatize_worker.hosts.inside.edges import Scope, as_pairs
from somatize_worker.hosts.inside.exchange import Ask, Exchange
from somatize_worker.hosts.inside.failures import Failure, Suspend
from somatize_worker.hosts.inside.filters import Filters
from somatize_worker.hosts.inside.interpreter import Interpreter
from somatize_worker.hosts.inside.journal import Journal, stored_states
from somatize_worker.hosts.inside.nodes import Nodes, Program
from somatize_worker.hosts.inside.note import Note
from somatize_worker.hosts.inside.reporting import Events
from somatize_worker.hosts.inside.tasks import Runner, Task
from somatize_worker.hosts.inside.transport import pack_live, unpack_live
from somatize_worker.packing import Reference, unpack
from somatize_worker.values import load_state, to_plain

_JOURNAL_AFTER_MS: Final = 20


@dataclass
class Wire:
    """How a run talks to whoever asked for it. ``watch`` is told which run is on, and None when it is over."""

    send: Callable[[list[Any]], None]
    ask: Ask
    watch: Callable[[Run | None], None] = lambda run: None
    note: Note | None = None
    kept: dict[tuple[str, bytes], Any] = field(default_factory=dict)


class Run:
    """A plan on its way through this process. Made from the ``run`` (or ``branch``) frame's content."""

    def __init__(self, request: Mapping[str, Any], wire: Wire) -> None:
        self.request = request
        self.wire = wire
        self.started_ns = time.perf_counter_ns() - 1_000_000 * int(request.get("elapsed_ms", 0))
        self.spec: dict[str, Any] = unpack(request["spec"])
        self.options: dict[str, Any] = (self.spec.get("metadata") or {}).get("soma") or {}
        self.folder = Path(request["store"])
        self.exchange = Exchange(wire.ask, self.folder, request["inline_limit"])
        self.journal = Journal(request.get("journal") or {}, self.exchange)
        self.events = Events(
            wire.send,
            self.options.get("run_id") or self.spec["plan_id"],
            enabled=self.options.get("events", True),
            trial=(self.options.get("study_id"), self.options.get("trial_id")),
            note=wire.note,
        )
        self.interpreter: Interpreter | None = None

    @property
    def is_root(self) -> bool:
        """Whether it is a plan that a client submitted, not a part of one."""
        return self.options.get("parent") is None

    @property
    def duration_ms(self) -> int:
        """Since the plan was started, for the first time if it has been started more often."""
        return (time.perf_counter_ns() - self.started_ns) // 1_000_000

    def prepare(self, plan: Any, runner: Runner | None) -> Interpreter:
        """Check the plan and load its filters: everything that can fail before user code has side effects.

        Raises:
            InvalidPipeline, FilterNotLoadable, MissingData: see there.
        """
        tree.check(plan)
        mode = self.spec.get("mode") or "Forward"
        fit = mode["Fit"] if isinstance(mode, dict) else None
        batch_size = fit.get("batch_size") if fit else None
        if batch_size is not None and batch_size < 1:
            raise InvalidPipeline(f"batch_size must be at least 1, not {batch_size}")
        filters = Filters(
            self._filter_specs(),
            worker_id=self.request["worker_id"],
            load_state=lambda stored: load_state(self.exchange.load(stored)),
            kept=self.wire.kept if self.request.get("keep") else None,
        )
        spread = bool(self.options.get("spread"))
        fingerprints = self.options.get("fingerprints") or {}
        program = Program(
            steps=filters.load(tree.filters_needed(plan, spread=spread), pickled_by=self.options.get("python")),
            fit=fit is not None,
            load_y=lambda: self.exchange.load(fit.get("y")) if fit else None,
            batch_size=batch_size,
            edges=as_pairs(self.spec.get("metadata") or {}),
            spread=spread,
            cache=self.options.get("cache") or False,
            configuration=lambda node_id: configuration(node_id, filters.pickle_of(node_id), fingerprints),
            stored_states=filters.stored_states(),
            running=frozenset(self.request.get("running") or ()),
        )
        nodes = Nodes(program, self.exchange, self.journal, self.events)
        self.interpreter = Interpreter(program, nodes, self.journal, runner)
        return self.interpreter

    def _filter_specs(self) -> list[dict[str, Any]]:
        specs = self.spec.get("filters") or []
        if isinstance(specs, Reference):
            specs = unpack(self.exchange.load(specs))
        pickles = self.spec.get("pickles")
        if pickles is None:
            return list(specs)
        return [{**spec, "pickle": pickles[spec["pickle"]]} for spec in specs]

    def children(self, suspended: Suspend) -> list[dict[str, Any]]:
        """The parts that are to run elsewhere, their inputs packed.

        Raises:
            Unrepresentable: an input that cannot travel.
        """
        for child in suspended.children:
            if "value" in child:
                child["names"] = self.journal.digests.names_in(child["value"])
                child["input"] = self.exchange.export(_plain(child.pop("value"), f"the input of {child['node_id']!r}"))
        return suspended.children

    def own(self) -> set[Reference]:
        """What was stored for this plan alone: its input, the journal, what its parts made, its result."""
        return self.exchange.written.union(self.spec.get("owned") or (), self.journal.own())

    def states(self) -> dict[str, Any]:
        """What was fitted, as it leaves."""
        return {} if self.interpreter is None else stored_states(self.interpreter.nodes.states, self.exchange)

    def close(self) -> None:
        """The run is over: let go of everything large now, not when the collector comes by."""
        self.wire.watch(None)
        self.exchange.forget()
        if self.interpreter is not None:
            self.interpreter.nodes.forget()
            self.interpreter = None


def run_plan(request: Mapping[str, Any], wire: Wire, runner_for: Callable[[Run], Runner | None]) -> list[Any]:
    """Run a plan; the frame that tells how it ended, less what only the process knows."""
    run = Run(request, wire)
    wire.watch(run)
    try:
        return _ended(run, lambda: _succeed(run, runner_for(run)))
    finally:
        run.close()


def _succeed(run: Run, runner: Runner | None) -> list[Any]:
    plan, events = run.spec["plan"], run.events
    if run.is_root and run.request.get("first", True):
        events.run_started(tree.summary(plan))
    each = bool(run.options.get("each"))
    if each and isinstance(run.spec.get("mode"), dict):
        raise InvalidPipeline("a plan for each of many items only forwards: fit it first, on all data")
    interpreter = run.prepare(plan, runner)
    value = run.exchange.load(run.spec.get("input"))
    run.journal.digests.take_names(value, run.options.get("names") or [])
    if each:
        events.quiet = True
        output: Any = run_each(interpreter, plan, value)
    else:
        output = interpreter.run(plan, value)
    name = tree.last_node(plan)
    plain = _plain(output, "the plan's output" if name is None else f"the output of node {name!r}", node_id=name)
    exported, states, duration_ms = run.exchange.export(plain), run.states(), run.duration_ms
    own, result = run.own(), {value for value in (exported, *states.values()) if isinstance(value, Reference)}
    if run.is_root:
        events.run_completed(duration_ms)
    content = {
        "output": exported,
        "states": states,
        "names": run.journal.digests.names_in(output),
        "duration_ms": duration_ms,
        "garbage": list(own - result),
        "own": list(own & result),
        "events": events.take(),
    }
    return ["done", content]


def _plain(value: Any, what: str, **details: Any) -> Any:
    try:
        return to_plain(value)
    except Unrepresentable as error:
        raise Unrepresentable(f"{what}: {error.message}", **{**error.details, **details}) from error


def _ended(run: Run, succeed: Callable[[], list[Any]]) -> list[Any]:
    """What ``succeed`` returns, or the frame that says why it did not."""
    try:
        try:
            return succeed()
        except Suspend as suspended:
            children = run.children(suspended)
            content = {
                "children": children,
                "goes_on": suspended.goes_on,
                "journal": run.journal.take(),
                "events": run.events.take(),
            }
            return ["suspended", content]
    except BaseException as error:  # user code may raise anything, and this process is to go on
        return failed(run, Failure.of(error))


def failed(run: Run, failure: Failure) -> list[Any]:
    """The frame that says why a plan failed; what the journal has is sent before, for another attempt."""
    if run.is_root and "task" not in run.request:
        run.events.run_failed(failure.error)
    if run.duration_ms >= _JOURNAL_AFTER_MS and (entries := run.journal.take()):
        run.wire.send(["journal", entries])
    return [
        "failed",
        {**failure.to_dict(), "duration_ms": run.duration_ms, "garbage": list(run.own()), "events": run.events.take()},
    ]


# ── branches in helper processes ─────────────────────────────────────────────────────────────────────────────────


def pack_task(task: Task, run: Run) -> dict[str, Any]:
    """A branch as a helper's ``branch`` frame carries it, beside what the plan's own frame had.

    Raises:
        Unrepresentable: something in it cannot go to another process.
    """
    scope = None if task.scope is None else task.scope.to_parts(task.plan)
    names_in = run.journal.digests.names_in
    return {
        "plan": task.plan,
        "path": task.path,
        "key": task.key,
        "value": pack_live(task.value, run.folder),
        "scope": pack_live(scope, run.folder),
        "names": {"value": names_in(task.value), "scope": names_in(scope)},
        "leaving": [] if task.scope is None else task.scope.leaving(task.plan),
    }


def run_branch(request: Mapping[str, Any], wire: Wire) -> list[Any]:
    """Run one branch in a helper; the frame that tells how it ended."""
    run = Run(request, wire)
    wire.watch(run)
    try:
        return _ended(run, lambda: _branch_done(run))
    finally:
        run.close()


def _branch_done(run: Run) -> list[Any]:
    task = run.request["task"]
    value, parts = unpack_live(task["value"]), unpack_live(task["scope"])
    digests = run.journal.digests
    digests.take_names(value, task["names"]["value"])
    digests.take_names(parts, task["names"]["scope"])
    scope = None if parts is None else Scope.from_parts(task["plan"], parts)
    interpreter = run.prepare(task["plan"], None)
    output = interpreter.run_task(Task(task["plan"], task["path"], task["key"], value, scope))
    outputs = {} if scope is None else {name: scope.outputs[name] for name in task["leaving"] if name in scope.outputs}
    content = {
        "output": pack_live(output, run.folder),
        "outputs": pack_live(outputs, run.folder),
        "names": {"output": digests.names_in(output), "outputs": digests.names_in(outputs)},
        "states": run.states(),
        "written": list(run.exchange.written),
        "events": run.events.take(),
    }
    return ["done", content]
