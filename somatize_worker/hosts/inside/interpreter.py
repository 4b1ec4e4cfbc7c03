"""The plan interpreter: data flows along the tree. It decides; what it needs of the world it is given.

Every step has a place in the tree, as text (see :mod:`journal`). A step whose output the journal has is not run. A step
that runs elsewhere raises :class:`Suspend`; on its way out, each construct makes sure that what is done stays done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from somatize_worker.hosts.inside import tree
from somatize_worker.hosts.inside.edges import BLOCKED, Scope, check_one_input, entry_node
from somatize_worker.hosts.inside.failures import Suspend
from somatize_worker.hosts.inside.journal import ROOT, Journal
from somatize_worker.hosts.inside.nodes import Nodes, Program
from somatize_worker.hosts.inside.rules import DEFAULT_ITERATIONS, chosen_arm, ends_loop, read_only
from somatize_worker.hosts.inside.tasks import OneAfterTheOther, Runner, Task


def below(path: str, step: str) -> str:
    """The place of a part of the step at ``path``."""
    return f"{path}.{step}" if path else step


class Interpreter:
    """Runs one plan (or a branch of one, at its ``path``)."""

    def __init__(self, program: Program, nodes: Nodes, journal: Journal, runner: Runner | None = None) -> None:
        self._program = program
        self.nodes = nodes
        self.journal = journal
        self._runner = runner or OneAfterTheOther()
        self._scope: Scope | None = None
        self._pauses = False
        self._news: list[dict[str, Any]] = []
        self._walks: dict[str, Callable[[Any, Any, str], Any]] = {
            "Execute": self._execute,
            "Sequence": self._sequence,
            "Parallel": self._parallel,
            "Loop": self._loop,
            "Branch": self._branch,
            "Remote": self._remote,
            "Composite": self._composite,
            "Stream": self._stream,
            "Cached": self._cached,
        }

    # ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, plan: Any, value: Any) -> Any:
        """The plan's output, live.

        Raises:
            NodeFailed: a node failed.
            Suspend: parts must run elsewhere first.
            InvalidPipeline: the plan cannot run as written.
        """
        if self._program.edges is not None:
            self._scope = Scope(plan, self._program.edges, value)
        self._pauses = True
        return self._in_scope(lambda: self._known(plan, value, ""))

    def run_task(self, task: Task) -> Any:
        """The output of one branch of a plan whose other parts run elsewhere."""
        self._scope = task.scope
        return self._in_scope(lambda: self.walk(task.plan, task.value, task.path))

    def run_item(self, plan: Any, item: Any, path: str) -> Any:
        """The output of the plan for one of many items, whose place is ``path``."""
        if self.journal.replaying and self.journal.has(path):
            return self.use(path)
        if self._program.edges is not None:
            self._scope = Scope(plan, self._program.edges, item)
        return self._in_scope(lambda: self.walk(plan, item, path))

    def walk(self, plan: Any, value: Any, path: str) -> Any:
        """The output of the step at ``path`` for ``value``."""
        if plan == "Empty":
            return value
        ((kind, body),) = plan.items()
        return self._walks[kind](body, value, path)

    def _known(self, plan: Any, value: Any, path: str) -> Any:
        """As :meth:`walk`, unless the journal has the output."""
        if self.journal.replaying and self._scope is None and self.journal.has(path or ROOT):
            return self.use(path or ROOT)
        return self.walk(plan, value, path)

    def use(self, path: str) -> Any:
        """The output of a step that the journal has; its states are restored."""
        output, states = self.journal.use(path)
        self.nodes.restore(states)
        return output

    # ── one after the other, and at the same time ────────────────────────────────────────────────────────────────

    def _sequence(self, steps: Sequence[Any], value: Any, path: str) -> Any:
        if self._scope is not None:
            return self._sequence_by_edges(steps, value, path)
        journal = self.journal
        prefix = f"{path}." if path else ""
        first = 0
        if journal.replaying:
            latest = journal.latest(prefix, len(steps))
            if latest is not None:
                value, states = journal.use_through(prefix, latest)
                self.nodes.restore(states)
                first = latest + 1
        # The last step's output is the sequence's own, which whoever asked for it takes down.
        last = len(steps) - 1 if path else len(steps)
        for index in range(first, len(steps)):
            try:
                value = self.walk(steps[index], value, f"{prefix}{index}")
            except Suspend:
                if index > first:
                    journal.ensure(f"{prefix}{index - 1}", value, tree.last_node({"Sequence": list(steps[:index])}))
                raise
            if index < last:
                journal.note(f"{prefix}{index}", value, prefix)
        return value

    def _sequence_by_edges(self, steps: Sequence[Any], value: Any, path: str) -> Any:
        """Every step is walked: a later one may run although an earlier one has to wait."""
        assert self._scope is not None
        suspended: list[dict[str, Any]] | None = None
        for index, step in enumerate(steps):
            try:
                value = self.walk(step, value, below(path, str(index)))
            except Suspend as waits:
                if waits.goes_on:
                    raise
                self._scope.wait_for(step)
                suspended = [*(suspended or []), *waits.children]
                value = BLOCKED
        if suspended is not None:
            raise Suspend(suspended)
        return value

    def _parallel(self, branches: Sequence[Any], value: Any, path: str) -> Any:
        keys = tree.branch_keys(branches)
        places = [below(path, str(index)) for index in range(len(branches))]
        if self._program.spread:
            return self._spread(branches, keys, places, value)
        value = read_only(value)
        outputs: dict[str, Any] = dict.fromkeys(keys)
        tasks = []
        for plan, key, at in zip(branches, keys, places, strict=True):
            if self.journal.replaying and self.journal.has(at):
                outputs[key] = self.use(at) if self._scope is None else self._scope.restore_branch(self.use(at))
            else:
                tasks.append(Task(plan, at, key, value, self._scope))
        here = []
        for task in tasks:
            if self._starts_elsewhere(task.plan, task.path):
                self._run_here(task)
            else:
                here.append(task)
        if here:
            self._let_others_start()
        pauses, self._pauses = self._pauses, False  # what several branches have done is not thrown away for one
        self._runner.run(here, self._run_here)
        self._pauses = pauses
        waiting = [task for task in tasks if task.children is not None]
        if waiting:
            self._keep_finished(tasks)
            raise Suspend([child for task in waiting for child in task.children or []])
        outputs.update((task.key, task.output) for task in tasks)
        return outputs

    def _run_here(self, task: Task) -> None:
        try:
            with self.journal.own_states():
                task.output = self.walk(task.plan, task.value, task.path)
                self.finish(task)
        except Suspend as waits:
            task.children = waits.children

    def accept(self, task: Task, output: Any, outputs: dict[str, Any], states: dict[str, Any]) -> None:
        """Another process has run a branch: its output, those of its nodes that others read, and fitted states."""
        task.output = output
        if task.scope is not None:
            task.scope.outputs.update(outputs)
        with self.journal.own_states():
            self.nodes.adopt(states)
            self.finish(task)

    def finish(self, task: Task) -> None:
        """A branch is done, here or in another process."""
        entry = task.output
        if task.scope is not None:
            entry = task.scope.branch_done(task.path, task.plan, task.output, task.key)
        self.journal.note(task.path, entry, f"{task.path}.")

    def _keep_finished(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            if self._scope is not None and task.children is not None:
                self._scope.wait_for(task.plan)
            if self._scope is None and task.children is None:
                self.journal.ensure(task.path, task.output, task.key)

    def _spread(self, branches: Sequence[Any], keys: list[str], places: list[str], value: Any) -> dict[str, Any]:
        value = read_only(value)
        outputs: dict[str, Any] = {}
        waiting: list[dict[str, Any]] = []
        for plan, key, at in zip(branches, keys, places, strict=True):
            try:
                outputs[key] = self._elsewhere(plan, key, entry_node(plan), None, value, at)
            except Suspend as waits:
                waiting += waits.children
        if waiting:
            raise Suspend(waiting)
        return outputs

    # ── repeating and choosing ───────────────────────────────────────────────────────────────────────────────────

    def _loop(self, body: dict[str, Any], value: Any, path: str) -> Any:
        return self._container(body["node_id"], value, path, lambda given: self._rounds(body, given, path))

    def _rounds(self, body: dict[str, Any], value: Any, path: str) -> Any:
        limit = body.get("max_iterations")
        limit = DEFAULT_ITERATIONS if limit is None else limit
        prefix = below(path, "loop")
        first = 0
        if self.journal.replaying:
            latest = self.journal.latest(prefix, limit)
            if latest is not None:
                value, states = self.journal.use_through(prefix, latest)
                self.nodes.restore(states)
                first = latest + 1
                if ends_loop(value):
                    return value
        for number in range(first, limit):
            at = f"{prefix}{number}"
            try:
                value = self._inside(body["body"], value, at, loop=True)
            except Suspend:
                if number > first:
                    self.journal.ensure(f"{prefix}{number - 1}", value, tree.last_node(body["body"]))
                raise
            self.journal.note(at, value, prefix)
            if ends_loop(value):
                break
        return value

    def _branch(self, body: dict[str, Any], value: Any, path: str) -> Any:
        return self._container(body["node_id"], value, path, lambda given: self._choose(body, given, path))

    def _choose(self, body: dict[str, Any], value: Any, path: str) -> Any:
        node_id, arms = body["node_id"], body["arms"]
        value = read_only(value)
        choice_at = below(path, "branch")
        if self.journal.replaying and self.journal.has(choice_at):
            choice = self.use(choice_at)
        else:
            choice = self.nodes.run(node_id, value)
            self.journal.note(choice_at, choice)
        index = chosen_arm(choice, [label for label, _ in arms])
        try:
            return self._inside(arms[index][1], value, below(path, f"arm{index}"))
        except Suspend:
            self.journal.ensure(choice_at, choice, node_id)
            raise

    def _inside(self, plan: Any, value: Any, path: str, *, loop: bool = False) -> Any:
        """Run what a container holds: with edges, its nodes see each other and what the container was given."""
        if self._program.edges is None:
            return self._known(plan, value, path)
        outer, self._scope = self._scope, Scope(plan, self._program.edges, value, loop=loop)
        try:
            return self._in_scope(lambda: self.walk(plan, value, path))
        finally:
            self._scope = outer

    def _container(self, node_id: str, value: Any, path: str, run: Callable[[Any], Any]) -> Any:
        if self._scope is None:
            return run(value)
        return self._leaf(node_id, node_id, value, path, run)

    # ── leaves ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _execute(self, body: dict[str, Any], value: Any, path: str) -> Any:
        node_id = body["node_id"]
        if self._scope is None:
            return self.nodes.run(node_id, value)
        return self._leaf(node_id, node_id, value, path, lambda given: self.nodes.run(node_id, given))

    def _cached(self, body: dict[str, Any], value: Any, path: str) -> Any:
        node_id, key = body["node_id"], bytes(body["key"])
        if self._scope is None:
            return self.nodes.load_cached(node_id, key)
        return self._leaf(node_id, None, value, path, lambda _: self.nodes.load_cached(node_id, key))

    def _composite(self, body: dict[str, Any], value: Any, path: str) -> Any:
        node_ids = body["node_ids"]
        return self._group(node_ids, value, path, lambda given: self._run_composite(node_ids, given))

    def _run_composite(self, node_ids: Sequence[str], value: Any) -> dict[str, Any]:
        together = self.nodes.run_together(node_ids, value)
        if together is not None:
            return together
        outputs: dict[str, Any] = {}
        for node_id in node_ids:
            if self._scope is not None and outputs:
                value = self._scope.input_of(node_id, value)
            value = outputs[node_id] = self.nodes.run(node_id, value)
            if self._scope is not None:
                self._scope.outputs[node_id] = value
        return outputs

    def _stream(self, body: dict[str, Any], value: Any, path: str) -> Any:
        node_ids, size = body["node_ids"], body["chunk_size"]
        return self._group(node_ids, value, path, lambda given: self._run_stream(node_ids, given, size))

    def _run_stream(self, node_ids: Sequence[str], value: Any, size: int) -> dict[str, Any]:
        if not self._program.fit:
            return {node_ids[-1]: self.nodes.stream(node_ids, value, size)}
        outputs: dict[str, Any] = {}
        for node_id in node_ids:
            value = outputs[node_id] = self.nodes.run(node_id, value, batch_size=size)
        return outputs

    def _group(self, node_ids: Sequence[str], value: Any, path: str, run: Callable[[Any], dict[str, Any]]) -> Any:
        """Several nodes that are one step. With edges, the outputs of all of them are taken down."""
        if self._scope is None:
            return run(value)[node_ids[-1]]
        outputs = self._leaf(node_ids[-1], node_ids[0], value, path, run)
        self._scope.outputs.update(outputs)
        return outputs[node_ids[-1]]

    def _leaf(self, node_id: str, reads_as: str | None, value: Any, path: str, run: Callable[[Any], Any]) -> Any:
        """One step of a plan with edges: its input from them, its output where others find it."""
        scope, at = self._scope, path or ROOT
        assert scope is not None
        if self.journal.replaying and self.journal.has(at):
            output = self.use(at)
        else:
            given = value if reads_as is None else scope.input_of(reads_as, value)
            self._let_others_start()
            output = run(given)
            self.journal.note(at, output)
        scope.record(at, node_id, output)
        return output

    def _in_scope(self, run: Callable[[], Any]) -> Any:
        """What nodes with edges have done is kept when the plan has to wait: any of it may be read later."""
        scope = self._scope
        try:
            return run()
        except Suspend:
            if scope is not None:
                for path, output, node_id in scope.done:
                    self.journal.ensure(path, output, node_id)
            raise

    # ── elsewhere ────────────────────────────────────────────────────────────────────────────────────────────────

    def _starts_elsewhere(self, plan: Any, path: str) -> bool:
        """Whether the first thing to do is to have a part run as a plan of its own, or to wait for it."""
        kind, body = tree.split(plan)
        if kind == "Sequence" and body:
            return self._starts_elsewhere(body[0], below(path, "0"))
        return kind == "Remote" and not self.journal.has(path or ROOT)

    def _let_others_start(self) -> None:
        """Called before work is done here: parts that run elsewhere are to start now, not when that is done.

        Raises:
            Suspend: there are such parts. Once they have started, the plan comes here again.
        """
        if self._news and self._pauses:
            raise Suspend(self._news, goes_on=True)

    def _remote(self, body: dict[str, Any], value: Any, path: str) -> Any:
        return self._elsewhere(body["plan"], body["node_id"], body["node_id"], body["target"], value, path or ROOT)

    def _elsewhere(self, plan: Any, node_id: str, reads_as: str | None, target: Any, value: Any, at: str) -> Any:
        """The output of a part that runs as a plan of its own.

        Raises:
            Suspend: it has not run yet.
            NodeFailed: it failed.
        """
        scope = self._scope
        if self.journal.replaying and self.journal.has(at):
            output = self.use(at)
        elif at in self._program.running:
            raise Suspend([{"path": at}])
        else:
            if scope is not None:
                check_one_input(plan, scope.edges, node_id)
                value = value if reads_as is None else scope.input_of(reads_as, value)
            child = {
                "path": at,
                "node_id": node_id,
                "target": target,
                "plan": plan,
                "node_ids": list(dict.fromkeys(tree.every_node(plan))),
                "value": value,
            }
            self._news.append(child)
            raise Suspend([child])
        if scope is not None:
            scope.outputs[node_id] = output
        return output
