"""A world for the interpreter without processes: values lie in memory, events and journal entries in lists."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from itertools import count
from typing import Any

import cloudpickle
import numpy as np

from somatize_worker.errors import MissingData
from somatize_worker.hosts.inside import tree
from somatize_worker.hosts.inside.caching import configuration
from somatize_worker.hosts.inside.edges import as_pairs
from somatize_worker.hosts.inside.filters import Filters
from somatize_worker.hosts.inside.interpreter import Interpreter
from somatize_worker.hosts.inside.journal import Journal, stored_states
from somatize_worker.hosts.inside.nodes import Nodes, Program
from somatize_worker.hosts.inside.reporting import Events
from somatize_worker.hosts.inside.tasks import Runner
from somatize_worker.packing import Reference, pack, unpack
from somatize_worker.values import load_state, nbytes


def execute(node_id: str) -> dict[str, Any]:
    return {"Execute": {"node_id": node_id}}


def sequence(*steps: Any) -> dict[str, Any]:
    return {"Sequence": [execute(step) if isinstance(step, str) and step != "Empty" else step for step in steps]}


def parallel(*branches: Any) -> dict[str, Any]:
    return {"Parallel": [execute(b) if isinstance(b, str) and b != "Empty" else b for b in branches]}


def remote(node_id: str, plan: Any = None, tag: str = "gpu") -> dict[str, Any]:
    return {"Remote": {"node_id": node_id, "target": {"Tag": tag}, "plan": plan or execute(node_id)}}


def loop(node_id: str, body: Any, limit: int | None = None) -> dict[str, Any]:
    return {"Loop": {"node_id": node_id, "body": body, "max_iterations": limit}}


def branch(node_id: str, **arms: Any) -> dict[str, Any]:
    return {"Branch": {"node_id": node_id, "arms": [[label, plan] for label, plan in arms.items()]}}


def tells(name: str) -> Callable[[Any], Any]:
    """A filter that says what it was and what it was given."""
    return lambda x: [name, x]


def noting(ran: list[Any], name: Any, filter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The filter, taking down each call."""

    def noted(x: Any) -> Any:
        ran.append(name)
        return filter(x)

    return noted


class Memory:
    """A store and a cache in memory, in the interpreter's terms."""

    def __init__(self, limit: int = 1 << 16) -> None:
        self.limit = limit
        self.values: dict[Reference, bytes] = {}
        self.cache: dict[bytes, Any] = {}
        self._numbers = count()

    def load(self, stored: Any) -> Any:
        if not isinstance(stored, Reference):
            return stored
        if stored not in self.values:
            raise MissingData(f"no data behind {stored!r}")
        return unpack(self.values[stored])

    def export(self, plain: Any) -> Any:
        if not self.is_large(plain):
            return plain
        reference = Reference(type="Local", path=str(next(self._numbers)))
        self.values[reference] = pack(plain)
        return reference

    def find(self, key: bytes) -> Any | None:
        return self.cache.get(key)

    def keep(self, key: bytes, plain: Any) -> Any:
        reference = Reference(type="Cached", cache_key=key)
        self.values[reference] = pack(plain)
        self.cache[key] = reference
        return reference

    def is_large(self, plain: Any) -> bool:
        return not isinstance(plain, Reference) and nbytes(plain) > self.limit

    def is_local(self, stored: Any) -> bool:
        return True

    def is_own(self, stored: Any) -> bool:
        return isinstance(stored, Reference) and stored.type == "Local"

    def user_code_runs(self) -> None:
        pass


class World:
    """One run of one plan. ``filters`` are live objects, pickled as a client would."""

    def __init__(
        self,
        plan: Any,
        filters: Mapping[str, Any],
        *,
        fit: bool = False,
        y: Any = None,
        batch_size: int | None = None,
        states: Mapping[str, Any] | None = None,
        trainable: tuple[str, ...] = (),
        edges: list[list[str]] | None = None,
        spread: bool = False,
        cache: bool | list[str] = False,
        journal: Mapping[str, bytes] | None = None,
        memory: Memory | None = None,
        events: bool = True,
        runner: Runner | None = None,
        pickled_by: str | None = None,
        clock: Callable[[], int] | None = None,
        live: bool = False,
        running: Collection[str] = (),
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        self.plan = plan
        self.memory = memory or Memory()
        self.frames: list[list[Any]] = []
        self.events = Events(self.frames.append, "run", enabled=events)
        more = {} if clock is None else {"clock": clock}
        self.journal = Journal(journal or {}, self.memory, **more)
        tree.check(plan)
        specs: list[dict[str, Any]] = [
            {
                "node_id": node_id,
                "pickle": b"" if live else cloudpickle.dumps(filter),
                "state": (states or {}).get(node_id),
                "requirements": [],
                "trainable": node_id in trainable,
            }
            for node_id, filter in filters.items()
        ]
        loading = Filters(
            specs,
            worker_id="w1",
            load_state=lambda stored: load_state(self.memory.load(stored)),
            kept={(node_id, b""): filter for node_id, filter in filters.items()} if live else None,
        )
        program = Program(
            steps=loading.load(tree.filters_needed(plan, spread=spread), pickled_by=pickled_by),
            fit=fit,
            load_y=lambda: self.memory.load(y),
            batch_size=batch_size,
            edges=as_pairs({"edges": edges} if edges is not None else {}),
            spread=spread,
            cache=cache,
            configuration=lambda node_id: configuration(node_id, loading.pickle_of(node_id), fingerprints or {}),
            stored_states=loading.stored_states(),
            running=running,
        )
        nodes = Nodes(program, self.memory, self.journal, self.events)
        self.interpreter = Interpreter(program, nodes, self.journal, runner)

    def run(self, value: Any) -> Any:
        return self.interpreter.run(self.plan, value)

    def happened(self) -> list[dict[str, Any]]:
        sent = [text for frame in self.frames if frame[0] == "events" for text in frame[1]]
        return [json.loads(text) for text in [*sent, *self.events.take()]]

    def states(self) -> dict[str, Any]:
        stored = stored_states(self.interpreter.nodes.states, self.memory)
        return {node_id: load_state(self.memory.load(state)) for node_id, state in stored.items()}


def run(plan: Any, filters: Mapping[str, Any], value: Any, **options: Any) -> Any:
    """The output of a plan."""
    return World(plan, filters, **options).run(value)


class Scaler:
    """Subtracts the mean that it has learnt."""

    _kind = "trainable"

    def fit(self, x: Any, y: Any = None) -> dict[str, float]:
        return {"mean": float(np.mean(x))}

    def forward(self, x: Any, state: Any) -> Any:
        return x - state["mean"]
