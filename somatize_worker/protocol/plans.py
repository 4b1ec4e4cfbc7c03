"""``ExecutionPlan``: the tree of steps that a worker walks, and pure questions about such trees.

The questions never recurse, so that they answer for trees of any depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from somatize_worker.protocol.base import External, OneOf, typed_init
from somatize_worker.protocol.events import PlanSummary
from somatize_worker.protocol.fields import MAX_PLAN_DEPTH, Count, Text
from somatize_worker.protocol.keys import CacheKey


class RemoteTarget(OneOf, tagging=External()):
    """Where a part of a plan should run."""


class Tag(RemoteTarget):
    """On any worker that serves this tag."""

    newtype: ClassVar[bool] = True
    tag: Text

    @typed_init
    def __init__(self, tag: str) -> None:
        self._fill(tag=tag)

    def __str__(self) -> str:
        return self.tag


class WorkerId(RemoteTarget):
    """On this one worker."""

    newtype: ClassVar[bool] = True
    worker_id: Text

    @typed_init
    def __init__(self, worker_id: str) -> None:
        self._fill(worker_id=worker_id)

    def __str__(self) -> str:
        return self.worker_id


class StreamMode(OneOf, tagging=External()):
    """How a filter treats a stream of chunks."""


class FixedState(StreamMode):
    """Each chunk on its own, the state stays."""


class Evolving(StreamMode):
    """The state moves with each chunk, and is checkpointed every so many chunks."""

    checkpoint_every: Count


class Barrier(StreamMode):
    """Collects every chunk, runs once at the end."""


class ExecutionPlan(OneOf, tagging=External()):
    """One step, or steps in a certain order. Data flows along the tree."""

    depth_limit: ClassVar[int] = MAX_PLAN_DEPTH


class Sequence(ExecutionPlan):
    """One after another; each gets the output of the one before."""

    newtype: ClassVar[bool] = True
    plans: tuple[ExecutionPlan, ...]

    @typed_init
    def __init__(self, plans: tuple[ExecutionPlan, ...] | list[ExecutionPlan]) -> None:
        self._fill(plans=plans)


class Parallel(ExecutionPlan):
    """All at the same time on the same input; the output maps each branch's last node id to its output."""

    newtype: ClassVar[bool] = True
    branches: tuple[ExecutionPlan, ...]

    @typed_init
    def __init__(self, branches: tuple[ExecutionPlan, ...] | list[ExecutionPlan]) -> None:
        self._fill(branches=branches)


class Execute(ExecutionPlan):
    """One filter."""

    node_id: Text


class Cached(ExecutionPlan):
    """A stored output, loaded by its key."""

    node_id: Text
    key: CacheKey


class Loop(ExecutionPlan):
    """The body again and again, each round on the output of the last; 100 rounds at most if no limit is given."""

    node_id: Text
    body: ExecutionPlan
    max_iterations: Count | None = None


class Branch(ExecutionPlan):
    """The arm that the output of ``node_id`` names, on the branch node's own input."""

    node_id: Text
    arms: tuple[tuple[Text, ExecutionPlan], ...]


class Remote(ExecutionPlan):
    """A plan that runs on another worker."""

    node_id: Text
    target: RemoteTarget
    plan: ExecutionPlan


class Composite(ExecutionPlan):
    """Filters in one process, tensors passed directly, so that gradients flow through all of them."""

    node_ids: tuple[Text, ...]


class Stream(ExecutionPlan):
    """Filters fed with chunks of so many rows."""

    node_ids: tuple[Text, ...]
    chunk_size: Count


class EmptyPlan(ExecutionPlan, name="Empty"):
    """Nothing to do; the output is the input."""


def children(plan: ExecutionPlan) -> tuple[ExecutionPlan, ...]:
    """The plans directly inside a plan, in order."""
    match plan:
        case Sequence(plans=plans) | Parallel(branches=plans):
            return plans
        case Loop(body=inner) | Remote(plan=inner):
            return (inner,)
        case Branch(arms=arms):
            return tuple(arm for _, arm in arms)
    return ()


def walk(plan: ExecutionPlan) -> Iterator[ExecutionPlan]:
    """The plan and every plan inside it, each before its children, in order."""
    waiting = [plan]
    while waiting:
        current = waiting.pop()
        yield current
        waiting.extend(reversed(children(current)))


def own_node_ids(plan: ExecutionPlan) -> tuple[str, ...]:
    """The filters that this plan runs itself, leaving out those of the plans inside it."""
    match plan:
        case Execute(node_id=node_id) | Branch(node_id=node_id):
            return (node_id,)
        case Composite(node_ids=node_ids) | Stream(node_ids=node_ids):
            return node_ids
    return ()


def node_ids(plan: ExecutionPlan) -> tuple[str, ...]:
    """Every filter that the plan may run, each once, in the order of first appearance."""
    return tuple(dict.fromkeys(node_id for part in walk(plan) for node_id in own_node_ids(part)))


def repeated_node_ids(plan: ExecutionPlan) -> tuple[str, ...]:
    """Filters that stand in the plan more than once. That is allowed: they run, and report, more than once."""
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for part in walk(plan):
        for node_id in own_node_ids(part):
            if node_id in seen:
                repeated[node_id] = None
            seen.add(node_id)
    return tuple(repeated)


def last_node_id(plan: ExecutionPlan) -> str | None:
    """The node whose output is the plan's output, as ``Parallel`` names its branches; None if nothing runs.

    ``Loop``, ``Branch``, ``Remote`` and ``Cached`` answer with their own node id, ``Composite`` and ``Stream`` with
    their last; ``Sequence`` asks its last step that runs anything, and ``Parallel`` its last branch that does.
    """
    waiting = [plan]
    while waiting:
        match waiting.pop():
            case Sequence(plans=plans) | Parallel(branches=plans):
                waiting.extend(plans)
            case Composite(node_ids=ids) | Stream(node_ids=ids):
                if ids:
                    return ids[-1]
            case Execute(node_id=node_id) | Cached(node_id=node_id) | Loop(node_id=node_id):
                return node_id
            case Branch(node_id=node_id) | Remote(node_id=node_id):
                return node_id
    return None


def remote_targets(plan: ExecutionPlan) -> tuple[RemoteTarget, ...]:
    """Every place that the plan sends a part of itself to, each once."""
    return tuple(dict.fromkeys(part.target for part in walk(plan) if isinstance(part, Remote)))


def plan_depth(plan: ExecutionPlan) -> int:
    """How deep the plan is nested; 1 for a plan without plans inside."""
    deepest, level = 0, [plan]
    while level:
        deepest += 1
        level = [child for part in level for child in children(part)]
    return deepest


def summarize(plan: ExecutionPlan) -> PlanSummary:
    """The counts that ``RunStarted`` reports: nodes (cached ones too), cached nodes, branches of ``Parallel``."""
    parts = list(walk(plan))
    cached = sum(isinstance(part, Cached) for part in parts)
    branches = sum(len(part.branches) for part in parts if isinstance(part, Parallel))
    nodes = sum(len(own_node_ids(part)) for part in parts)
    return PlanSummary(total_nodes=nodes + cached, cached_nodes=cached, parallel_branches=branches)


def count_nodes(plan: ExecutionPlan) -> int:
    """How many nodes stand in the plan: filters and cached outputs, repeated ones as often as they stand there."""
    return summarize(plan).total_nodes
