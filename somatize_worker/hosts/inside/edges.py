"""Where ``metadata`` has edges, they say what a node receives; the tree says only when it runs.

A node with one predecessor receives its output, a node with several a mapping from predecessor id to output. Seen from
outside, a ``Loop``, a ``Branch`` and a ``Remote`` are one node each, so several edges from inside one (say, from both
arms) count as one, under its name; seen from inside, everything outside of them is the input that they were given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from somatize_worker.errors import InvalidPipeline
from somatize_worker.hosts.inside import tree
from somatize_worker.hosts.inside.failures import Suspend

_OPAQUE: Final = ("Loop", "Branch", "Remote")
BLOCKED: Final = object()
"""The flow after a step whose output is not there yet."""


class Scope:
    """What the nodes of one plan (or loop body, or arm) have put out so far, and who receives it.

    Args:
        plan: the tree whose nodes see each other.
        edges: all edges of the plan, ``(from, to)``.
        value: what nodes without predecessors in here receive.
        loop: whether the tree is a loop's body, in which an edge may lead back to the round's start.

    Raises:
        InvalidPipeline: a node reads from one that runs after it.
    """

    def __init__(self, plan: Any, edges: Sequence[Sequence[str]], value: Any, *, loop: bool = False) -> None:
        self.edges = edges
        self.value = value
        self.outputs: dict[str, Any] = {}
        #: (path, output, node) of everything that is done, for the journal.
        self.done: list[tuple[str, Any, str]] = []
        self._waiting: set[str] = set()
        self._holder: dict[str, str] = {}
        order: dict[str, _Position] = {}
        _place(plan, order, self._holder, (), count())
        mentioned = {node for edge in edges for node in edge}
        #: By node, the names that its input has: name -> the node (or container) whose output that is.
        self._predecessors: dict[str, dict[str, str]] = {node: {} for node in order if node in mentioned}
        for source, target in edges:
            if source not in order or target not in order:
                continue
            target = self._holder.get(target, target)
            if target in (source, self._holder.get(source)):
                continue  # a container's own inner flow
            if loop and order[source].number >= order[target].number:
                continue  # what the round before put out, which is this round's input
            if not order[source].is_before(order[target]):
                raise InvalidPipeline(
                    f"an edge leads from {source!r} to {target!r}, but {source!r} does not run before {target!r} in "
                    "the plan; put the plan's steps in the order of its edges",
                    node_id=target,
                )
            self._add(self._predecessors.setdefault(target, {}), source)

    def input_of(self, node_id: str, flow: Any) -> Any:
        """What a node receives; ``flow`` is what the tree would hand it.

        Raises:
            Suspend: it needs an output that is not there before the plan goes on another time.
            InvalidPipeline: it reads from the middle of a part that ran elsewhere.
        """
        predecessors = self._predecessors.get(node_id)
        if predecessors is None:
            if flow is BLOCKED:
                raise Suspend([])
            return flow
        if not predecessors:
            return self.value
        if self._waiting.intersection(predecessors.values()):
            raise Suspend([])
        gone = [name for name, source in predecessors.items() if source not in self.outputs]
        if gone:
            raise InvalidPipeline(
                f"node {node_id!r} reads from {gone[0]!r}, which runs inside a part that runs elsewhere; only the "
                "output of that part's last node comes back",
                node_id=node_id,
            )
        found = {name: self.outputs[source] for name, source in predecessors.items()}
        return found if len(found) > 1 else next(iter(found.values()))

    def _add(self, predecessors: dict[str, str], source: str) -> None:
        holder = self._holder.get(source, source)
        same = next((name for name, other in predecessors.items() if other == holder), None)
        if same is None:
            predecessors[source] = holder
        elif same != source:
            del predecessors[same]
            predecessors[holder] = holder

    def record(self, path: str, node_id: str, output: Any) -> None:
        """A node (or a container) is done."""
        self.outputs[node_id] = output
        self._waiting.discard(node_id)
        self.done.append((path, output, node_id))

    def wait_for(self, plan: Any) -> None:
        """The outputs of a step are not there yet."""
        self._waiting.update(node for node in tree.every_node(plan) if node not in self.outputs)

    # ── branches of a Parallel, which may run in another process ─────────────────────────────────────────────────

    def leaving(self, plan: Any) -> list[str]:
        """The nodes of a branch whose outputs nodes outside of it read."""
        inside = set(tree.every_node(plan))
        readers = [(target, source) for target, names in self._predecessors.items() for source in names.values()]
        return sorted({source for target, source in readers if source in inside and target not in inside})

    def to_parts(self, plan: Any) -> dict[str, Any]:
        """What a process that runs a branch needs to know: for :meth:`from_parts`, with live values."""
        inside = set(tree.every_node(plan))
        predecessors = {node: names for node, names in self._predecessors.items() if node in inside}
        read = {source for names in predecessors.values() for source in names.values()} & self.outputs.keys()
        return {
            "edges": [list(edge) for edge in self.edges],
            "value": self.value,
            "outputs": {node: self.outputs[node] for node in sorted(read)},
            "predecessors": predecessors,
            "holder": self._holder,
        }

    @classmethod
    def from_parts(cls, plan: Any, parts: Mapping[str, Any]) -> Scope:
        """The scope of a branch, in another process."""
        scope = cls(plan, [], parts["value"])
        scope.edges, scope.outputs = parts["edges"], dict(parts["outputs"])
        scope._predecessors, scope._holder = dict(parts["predecessors"]), dict(parts["holder"])
        return scope

    def branch_done(self, path: str, plan: Any, output: Any, key: str) -> dict[str, Any]:
        """A branch is done: what the journal needs to skip it, for :meth:`restore_branch`."""
        outputs = {node: self.outputs[node] for node in self.leaving(plan) if node in self.outputs}
        unit = {
            "output": output,
            "outputs": {node: value for node, value in outputs.items() if value is not output},
            "same": [node for node, value in outputs.items() if value is output],
        }
        inside = f"{path}."
        self.done = [entry for entry in self.done if entry[0] != path and not entry[0].startswith(inside)]
        self.done.append((path, unit, key))
        return unit

    def restore_branch(self, unit: Mapping[str, Any]) -> Any:
        """The output of a branch that is done; its nodes' outputs are where others find them."""
        self.outputs.update(unit["outputs"])
        self.outputs.update(dict.fromkeys(unit["same"], unit["output"]))
        return unit["output"]


@dataclass(frozen=True)
class _Position:
    """When a node runs: its number, and in which branch of which ``Parallel`` (by identity) it is."""

    number: int
    branches: tuple[tuple[int, int], ...]

    def is_before(self, other: _Position) -> bool:
        """Whether this node is done when the other starts."""
        mine = dict(self.branches)
        at_once = any(mine.get(fork, branch) != branch for fork, branch in other.branches)
        return self.number < other.number and not at_once


def _place(
    plan: Any,
    order: dict[str, _Position],
    holder: dict[str, str],
    branches: tuple[tuple[int, int], ...],
    numbers: Iterator[int],
    inside: str | None = None,
) -> None:
    """Number the nodes as they end (a ``Remote`` may have the name of a node in it).

    ``holder`` names the outermost container around a node.
    """
    kind, body = tree.split(plan)
    own = tree.own_nodes(kind, body)
    container = inside or (own[0] if kind in _OPAQUE else None)
    fork = id(body)
    for index, child in enumerate(tree.children(kind, body)):
        within = (*branches, (fork, index)) if kind == "Parallel" else branches
        _place(child, order, holder, within, numbers, container)
    for node in own:
        order[node] = _Position(next(numbers), branches)
        if inside is not None and node != inside:
            holder[node] = inside


def entry_node(plan: Any) -> str | None:
    """The node that a part of a plan which runs elsewhere begins with, as far as edges name it."""
    kind, body = tree.split(plan)
    if kind in ("Sequence", "Parallel"):
        return next((name for child in body if (name := entry_node(child)) is not None), None)
    own = tree.own_nodes(kind, body)
    return own[0] if own else None


def check_one_input(plan: Any, edges: Iterable[Sequence[str]], name: str) -> None:
    """A part that runs elsewhere is given one input.

    Raises:
        InvalidPipeline: its nodes read from different nodes outside of it.
    """
    inside = {*tree.every_node(plan), name}
    outside: dict[str, set[str]] = {}
    for source, target in edges:
        if target in inside and source not in inside:
            outside.setdefault(target, set()).add(source)
    if len({frozenset(sources) for sources in outside.values()}) > 1:
        raise InvalidPipeline(
            f"{name!r} runs as a plan of its own and has one input, but its nodes read from different nodes outside: "
            + "; ".join(f"{target!r} from {sorted(sources)}" for target, sources in sorted(outside.items())),
            node_id=name,
        )


def as_pairs(metadata: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    """The edges of a plan's metadata; None if it has none.

    Raises:
        InvalidPipeline: they are not pairs of node ids.
    """
    edges = metadata.get("edges")
    if edges is None:
        return None
    if not isinstance(edges, list) or not all(
        isinstance(edge, (list, tuple)) and len(edge) == 2 and all(isinstance(node, str) for node in edge)
        for edge in edges
    ):
        raise InvalidPipeline("metadata.edges must be a list of pairs of node ids: [[from, to], ...]")
    return [(source, target) for source, target in edges]
