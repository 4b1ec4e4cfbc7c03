"""What can be known to be wrong with a plan before anything of it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from somatize_worker.errors import InvalidMessage, InvalidPipeline
from somatize_worker.protocol.assignments import Fit, SerializedPlan
from somatize_worker.protocol.plans import (
    Branch,
    Cached,
    Composite,
    ExecutionPlan,
    Loop,
    Parallel,
    Remote,
    Stream,
    last_node_id,
    node_ids,
    own_node_ids,
    plan_depth,
    walk,
)

_LONGEST_ID: Final = 200


def check_plan(serialized: SerializedPlan, max_depth: int) -> None:
    """Check that a plan can run as written.

    A node that stands in the plan more than once is no mistake (see ``repeated_node_ids``), nor is a filter that no
    node uses.

    Raises:
        InvalidMessage: nested more than ``max_depth`` deep.
        InvalidPipeline: everything else that is wrong, all in one message; ``details["node_ids"]`` names the nodes,
            ``details["problems"]`` lists the parts of the message.
    """
    deep = plan_depth(serialized.plan)
    if deep > max_depth:
        raise InvalidMessage(
            f"plan {serialized.plan_id!r} is nested {deep} deep, more than the limit of {max_depth}: "
            "make it flatter, or raise SOMA_MAX_PLAN_DEPTH on the workers",
            plan_id=serialized.plan_id,
            depth=deep,
            limit=max_depth,
        )
    found = list(_problems(serialized))
    if found:
        nodes = list(dict.fromkeys(node for _, involved in found for node in involved))
        texts = [text for text, _ in found]
        raise InvalidPipeline(
            f"plan {serialized.plan_id!r} cannot run: {'; '.join(texts)}",
            plan_id=serialized.plan_id,
            node_ids=nodes,
            problems=texts,
        )


def id_problem(plan_id: str) -> str:
    """What is wrong with a plan's id; empty if nothing is."""
    if not plan_id:
        return "its plan_id is empty: give it one"
    if len(plan_id) > _LONGEST_ID or not plan_id.isprintable():
        return f"its plan_id should be printable text of at most {_LONGEST_ID} characters"
    return ""


_Problem = tuple[str, tuple[str, ...]]


def _problems(serialized: SerializedPlan) -> Iterator[_Problem]:
    problem = id_problem(serialized.plan_id)
    if problem:
        yield problem, ()
    yield from _filter_problems(serialized)
    for part in walk(serialized.plan):
        yield from _part_problems(part)
    if isinstance(serialized.mode, Fit) and serialized.mode.batch_size == 0:
        yield "batch_size is 0: leave it out, or set at least 1", ()
    yield from _edge_problems(serialized.metadata)


def _filter_problems(serialized: SerializedPlan) -> Iterator[_Problem]:
    counts = Counter(item.node_id for item in serialized.filters)
    twice = tuple(node for node, count in counts.items() if count > 1)
    if twice:
        yield f"more than one filter for {_names(twice)}: keep one each", twice
    needed = node_ids(serialized.plan)
    missing = tuple(node for node in needed if node not in counts)
    if missing:
        there = f"there are filters for {_names(tuple(counts))}" if counts else "it carries no filters"
        yield f"no filter for {_names(missing)} ({there}): add a SerializedFilter for each", missing


def _part_problems(part: ExecutionPlan) -> Iterator[_Problem]:
    named = (*own_node_ids(part), *((part.node_id,) if isinstance(part, (Cached, Loop, Remote)) else ()))
    if "" in named:
        yield f"{type(part).__name__} has an empty node id: give it a name", ()
    match part:
        case Parallel(branches=branches):
            names = Counter(name for name in map(last_node_id, branches) if name is not None)
            same = tuple(name for name, count in names.items() if count > 1)
            if same:
                yield f"branches of one Parallel end in the same node {_names(same)}: give each its own", same
        case Branch(node_id=node_id, arms=arms):
            labels = Counter(label for label, _ in arms)
            twice = tuple(label for label, count in labels.items() if count > 1)
            if not arms:
                yield f"Branch {node_id!r} has no arms: add one", (node_id,)
            if twice:
                yield f"Branch {node_id!r} has more than one arm labelled {_names(twice)}", (node_id,)
        case Composite(node_ids=()) | Stream(node_ids=()):
            yield f"a {type(part).__name__} has no nodes: name at least one", ()
        case Stream(node_ids=ids, chunk_size=0):
            yield f"Stream of {_names(ids)} has chunk_size 0: set at least 1", ids
        case Remote(node_id=node_id, target=target) if not str(target):
            yield f"Remote {node_id!r} has an empty {type(target).__name__}: name a tag or a worker", (node_id,)


def _edge_problems(metadata: Any) -> Iterator[_Problem]:
    edges = metadata.get("edges") if isinstance(metadata, dict) else None
    if edges is None:
        return
    if not isinstance(edges, list) or not all(
        isinstance(edge, list) and len(edge) == 2 and all(isinstance(end, str) for end in edge) for edge in edges
    ):
        yield 'metadata["edges"] must be a list of [from_node, to_node] pairs', ()


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name) for name in names[:10])
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown
