"""Running nodes: one filter on one value, with its events, its state, its errors and its place in the cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from somatize_worker.errors import SomaError
from somatize_worker.hosts.inside import batches
from somatize_worker.hosts.inside.calls import Step
from somatize_worker.hosts.inside.exchange import Outside
from somatize_worker.hosts.inside.failures import Failure, NodeFailed, describe
from somatize_worker.hosts.inside.journal import Fitted, Journal
from somatize_worker.hosts.inside.remembering import Keys, Memory
from somatize_worker.hosts.inside.reporting import Events
from somatize_worker.values import load_state, pickle_state


@dataclass
class Program:
    """What a plan runs, beside its tree.

    ``load_y`` gives the targets of a fit; ``edges`` are the plan's, None without; ``spread``: branches of a
    ``Parallel`` run as plans of their own; ``cache``: outputs and states go through the cache, those of all nodes
    whose filters do not object, or of the nodes named; ``configuration`` gives the key of a node's code and parameters,
    ``stored_states`` are the states that came with the plan; ``running`` has the places of parts that run elsewhere.
    """

    steps: Mapping[str, Step]
    fit: bool = False
    load_y: Callable[[], Any] = lambda: None
    batch_size: int | None = None
    edges: Sequence[tuple[str, str]] | None = None
    spread: bool = False
    cache: bool | Collection[str] = False
    configuration: Callable[[str], bytes] = field(default=lambda node_id: b"")
    stored_states: Mapping[str, Any] = field(default_factory=dict)
    running: Collection[str] = ()


class Nodes:
    """The nodes of one plan. ``states`` has what was fitted, by node id: packed, or stored by an earlier run."""

    def __init__(self, program: Program, outside: Outside, journal: Journal, events: Events) -> None:
        self._steps = program.steps
        self._fit = program.fit
        self._program = program
        self._outside = outside
        self._journal = journal
        self._events = events
        self._memory = Memory(program.configuration, outside, journal.digests)
        self._stored_states = dict(program.stored_states)
        self._cached = {node_id for node_id, step in program.steps.items() if _is_cached(program.cache, step)}
        self._y: list[Any] = []
        self.states: dict[str, Fitted | Any] = {}

    def run(self, node_id: str, x: Any, *, batch_size: int | None = None) -> Any:
        """Fit it, if the plan fits and the filter is trainable, and forward.

        Raises:
            NodeFailed: whatever the filter raised.
        """
        step = self._steps[node_id]
        if node_id in self._cached:
            return self._run_cached(step, x, batch_size or self._program.batch_size)
        return self._compute(step, x, batch_size or self._program.batch_size, self._fit and step.trainable)

    def _compute(self, step: Step, x: Any, size: int | None, fit: bool) -> Any:
        self._outside.user_code_runs()
        started = self._events.started(step)
        try:
            if fit:
                self._keep_state(step, step.fit(x, self.y(), size))
                output = self._forward(step, x, size)
            else:
                output = step.run(x)
        except BaseException as error:
            raise self._failed(step, error) from error
        self._events.completed(step.node_id, started, output)
        return output

    def _failed(self, step: Step, error: BaseException) -> NodeFailed:
        failure = Failure.of(error, step.node_id)
        text = describe(error)
        if step.unfitted and not self._fit and not isinstance(error, SomaError):
            hint = " (the node is trainable and has no state: fit first, or pass states)"
            failure.error, text = failure.error + hint, text + hint
        self._events.failed(step.node_id, text)
        return NodeFailed(failure)

    # ── fit ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def y(self) -> Any:
        """The targets, loaded when first needed."""
        if not self._y:
            self._y.append(self._program.load_y())
        return self._y[0]

    @staticmethod
    def _forward(step: Step, x: Any, size: int | None) -> Any:
        if size is None or not step.fits_in_batches:
            return step.run(x)
        return batches.joined([step.run(part) for part in batches.parts(x, size)])

    def _keep_state(self, step: Step, state: Any) -> Fitted:
        fitted = Fitted(pickle_state(state))
        self.states[step.node_id] = fitted
        self._journal.fitted(step.node_id, fitted)
        return fitted

    def forget(self) -> None:
        """The plan is over: let go of filters, states and targets."""
        for step in self._steps.values():
            step.forget()
        self.states.clear()
        self._y.clear()

    def restore(self, states: Mapping[str, Any]) -> None:
        """States of an earlier run, as they were stored."""
        self.states.update(states)
        self._stored_states.update(states)
        for node_id, stored in states.items():
            step = self._steps.get(node_id)
            if step is not None:
                step.restore(partial(self._load, stored))

    def _load(self, stored: Any) -> Any:
        return load_state(self._outside.load(stored))

    def adopt(self, states: Mapping[str, Any]) -> None:
        """States that were fitted in another process just now."""
        self.restore(states)
        for node_id, stored in states.items():
            fitted = self.states[node_id] = Fitted(stored)
            self._journal.fitted(node_id, fitted)

    # ── several nodes at once ────────────────────────────────────────────────────────────────────────────────────

    def run_together(self, node_ids: Sequence[str], x: Any) -> dict[str, Any] | None:
        """Fit a composite's filters as one and forward through them; the output of each. None if the plan does not
        fit, or if they cannot be fitted as one: then they run one by one.

        Raises:
            NodeFailed: what a filter raised; a failure of the training is told of the last node.
        """
        steps = [self._steps[node_id] for node_id in node_ids]
        together = getattr(steps[-1].filter, "fit_together", None)
        if not self._fit or together is None or not all(step.trainable for step in steps):
            return None
        self._outside.user_code_runs()
        started = [self._events.started(step) for step in steps]
        outputs: dict[str, Any] = {}
        step = steps[-1]
        try:
            states = together([step.filter for step in steps], x, self.y())
            for step, state in zip(steps, states, strict=True):
                step.set_state(state)
                self._keep_state(step, state)
            for step in steps:
                x = outputs[step.node_id] = step.run(x)
        except BaseException as error:
            raise self._failed(step, error) from error
        for step, since in zip(steps, started, strict=True):
            self._events.completed(step.node_id, since, outputs[step.node_id])
        return outputs

    def stream(self, node_ids: Sequence[str], x: Any, size: int) -> Any:
        """Forward chunk by chunk of ``size`` rows through all nodes; a barrier sees everything at once.

        Raises:
            NodeFailed: whatever a filter raised, or data that cannot be cut or put together.
        """
        waiting: list[str] = []
        for node_id in node_ids:
            if self._steps[node_id].stream_mode == "barrier":
                x = self.run(node_id, self._chunkwise(waiting, x, size))
                waiting = []
            else:
                waiting.append(node_id)
        return self._chunkwise(waiting, x, size)

    def _chunkwise(self, node_ids: Sequence[str], x: Any, size: int) -> Any:
        if not node_ids:
            return x
        self._outside.user_code_runs()
        steps = [self._steps[node_id] for node_id in node_ids]
        outputs: list[Any] = []
        step, started = steps[0], [0] * len(steps)
        try:
            total = max(1, -(-batches.rows(x) // size))
            for number, chunk in enumerate(batches.parts(x, size)):
                for place, step in enumerate(steps):
                    started[place] = self._events.started(step) if number == 0 else started[place]
                    if step.stream_mode == "evolving":
                        step.learn(chunk)
                    chunk = step.run(chunk)
                    self._events.node_progress(step.node_id, (number + 1) / total)
                outputs.append(chunk)
            output = batches.joined(outputs)
            for step in steps:
                if step.stream_mode == "evolving":
                    self._keep_state(step, step.state())
        except BaseException as error:
            raise self._failed(step, error) from error
        for place, step in enumerate(steps):
            self._events.completed(step.node_id, started[place], output)
        return output

    # ── the cache ────────────────────────────────────────────────────────────────────────────────────────────────

    def load_cached(self, node_id: str, key: bytes) -> Any:
        """The stored output that a ``Cached`` step names.

        Raises:
            NodeFailed: nothing lies under that key.
        """
        hit = self._memory.look_up(key)
        if hit is None:
            text = (
                f"node {node_id!r}: no stored output under the key {key.hex()}: it has expired or was never stored; "
                "run the node itself instead"
            )
            self._events.failed(node_id, text)
            raise NodeFailed.from_dict(
                {"error": text, "error_type": "somatize_worker.errors.MissingData", "node_id": node_id}
            )
        self._events.cache_hit(node_id, key, hit.tier, hit.load_ms)
        return hit.value

    def _run_cached(self, step: Step, x: Any, size: int | None) -> Any:
        fit = self._fit and step.trainable
        if fit:
            keys = self._memory.keys_of_fit(step.node_id, x, self.y(), size if step.fits_in_batches else None)
        else:
            keys = self._memory.keys_of_forward(step.node_id, x, self._stored_states.get(step.node_id))
        if keys is None:
            return self._compute(step, x, size, fit)
        if fit and not self._restore_cached(step, keys):
            output = self._compute(step, x, size, True)
            fitted = self.states[step.node_id]
            assert keys.state is not None
            fitted.keep(keys.state, self._outside)
        else:
            hit = self._memory.look_up(keys.output)
            if hit is not None:
                self._events.cache_hit(step.node_id, keys.output, hit.tier, hit.load_ms)
                return hit.value
            output = self._compute(step, x, size, False)
        self._memory.keep(keys.output, step.node_id, output)
        return output

    def _restore_cached(self, step: Step, keys: Keys) -> bool:
        """Take the fitted state from the cache, if it is there."""
        stored = self._memory.stored_state(keys)
        if stored is None:
            return False
        fitted = self.states[step.node_id] = Fitted(stored)
        self._journal.fitted(step.node_id, fitted)
        step.restore(partial(self._load, stored))
        return True


def _is_cached(cache: bool | Collection[str], step: Step) -> bool:
    if isinstance(cache, bool):
        return cache if step.cacheable is None else bool(step.cacheable)
    return step.node_id in cache
