"""From the tree of steps to a plan: node ids for every step, and the plan in the JSON form that serde gives it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from somatize_worker.errors import InvalidPipeline
from somatize_worker.pipeline.steps import Branch, Chain, Composite, Fork, Loop, Pipeline, Step
from somatize_worker.pipeline.targets import Target
from somatize_worker.pipeline.torch_adapter import TorchFilter, is_torch_filter

Plan = Any
"""A plan in JSON form: ``{"Sequence": [...]}``, ``{"Execute": {"node_id": "a"}}``, ..."""


@dataclass(eq=False)
class _Slot:
    """A node id to be: the name that the user gave, or what one is derived from."""

    given: str | None
    base: str
    node_id: str = ""


@dataclass(eq=False)
class _Named:
    """A node of the tree with its slot, if it is a node of the plan, and its parts."""

    node: Pipeline
    slot: _Slot | None = None
    parts: list[_Named] = field(default_factory=list)


@dataclass(frozen=True)
class Node:
    """One filter of a plan. ``caching`` is what the innermost ``.cached()`` around it said, or None."""

    node_id: str
    filter: Any
    trainable: bool
    caching: bool | None


@dataclass(frozen=True)
class Outline:
    """A pipeline's plan and its filters in the order in which they run."""

    plan: Plan
    nodes: tuple[Node, ...]
    spread: bool


def outline(root: Pipeline) -> Outline:
    """The plan of a pipeline.

    Raises:
        InvalidPipeline: a name given twice, a node without parts.
    """
    slots: list[_Slot] = []
    named = _name(root, None, slots)
    _assign(slots)
    return Outline(
        plan=normalised(_emit(named), None),
        nodes=tuple(_nodes(named, None)),
        spread=any(part.spreading for part in _walk(root)),
    )


def _walk(node: Pipeline) -> Iterator[Pipeline]:
    yield node
    for part in node.parts:
        yield from _walk(part)


# --- names -------------------------------------------------------------------------------------------------------


def _name(node: Pipeline, label: str | None, slots: list[_Slot]) -> _Named:
    """The node and its parts with slots, in running order. ``label`` is the name of the fork's branch that it ends."""
    if isinstance(node, Step):
        return _Named(node, _slot(node.base_name, slots, node.name, label))
    if isinstance(node, Chain):
        if not node.steps:
            raise InvalidPipeline("a chain without steps cannot run")
        *before, last = node.steps
        return _Named(node, None, [*(_name(part, None, slots) for part in before), _name(last, label, slots)])
    if isinstance(node, Fork):
        if label is not None:
            raise InvalidPipeline(
                f"the branch {label!r} ends in a fork, and so has no step that could bear its name: add one after it",
            )
        return _Named(node, None, [_name(part, _label(part), slots) for part in node.branches])
    if isinstance(node, Loop):
        slot = _slot("Loop", slots, node.name, label)
        return _Named(node, slot, [_name(node.body, None, slots)])
    if isinstance(node, Branch):
        slot = _slot(node.chooser.base_name, slots, node.chooser.name, node.name, label)
        return _Named(node, slot, [_name(arm, None, slots) for _, arm in node.arms])
    if isinstance(node, Composite):
        names = [(step.name,) for step in node.steps[:-1]] + [(node.steps[-1].name, node.name, label)]
        slots_of = [_slot(step.base_name, slots, *given) for step, given in zip(node.steps, names, strict=True)]
        return _Named(node, None, [_Named(step, slot) for step, slot in zip(node.steps, slots_of, strict=True)])
    raise InvalidPipeline(f"{type(node).__name__} is not a kind of pipeline that can be compiled")


def _label(branch: Pipeline) -> str | None:
    """The name of a fork's branch, if it is not a node id already."""
    return branch.name if isinstance(branch, (Chain, Fork)) else None


def _slot(base: str, slots: list[_Slot], *names: str | None) -> _Slot:
    given = list(dict.fromkeys(name for name in names if name is not None))
    if len(given) > 1:
        raise InvalidPipeline(f"one node has the names {' and '.join(map(repr, given))}: give it only one of them")
    slot = _Slot(given[0] if given else None, base)
    slots.append(slot)
    return slot


def _assign(slots: list[_Slot]) -> None:
    """Given names as they are, derived ones made unique: ``Scaler``, ``Scaler_2``, ..."""
    taken: set[str] = set()
    for slot in slots:
        if slot.given is not None:
            if slot.given in taken:
                raise InvalidPipeline(
                    f"two nodes are named {slot.given!r}: each needs a name of its own", name=slot.given
                )
            taken.add(slot.given)
            slot.node_id = slot.given
    counts: dict[str, int] = {}
    for slot in slots:
        if slot.given is None:
            count = counts.get(slot.base, 0) + 1
            while (name := slot.base if count == 1 else f"{slot.base}_{count}") in taken:
                count += 1
            counts[slot.base] = count
            taken.add(name)
            slot.node_id = name


# --- filters -----------------------------------------------------------------------------------------------------


def _nodes(named: _Named, caching: bool | None) -> Iterator[Node]:
    node = named.node
    caching = caching if node.caching is None else node.caching
    if isinstance(node, Composite):
        yield from _members(named, caching)
    elif isinstance(node, Step) and named.slot is not None:
        yield Node(named.slot.node_id, node.filter, node.kind == "trainable", caching)
    elif isinstance(node, Branch) and named.slot is not None:
        chooser = node.chooser
        own = caching if chooser.caching is None else chooser.caching
        yield Node(named.slot.node_id, chooser.filter, chooser.kind == "trainable", own)
    if not isinstance(node, Composite):
        for part in named.parts:
            yield from _nodes(part, caching)


def _members(named: _Named, caching: bool | None) -> Iterator[Node]:
    """A composite's filters; torch modules learn that they pass tensors, and are trained together if the last is."""
    nodes = [node for part in named.parts for node in _nodes(part, caching)]
    filters = [node.filter for node in nodes]
    together = all(map(is_torch_filter, filters)) and nodes[-1].trainable
    for index, node in enumerate(nodes):
        if isinstance(node.filter, TorchFilter):
            after = filters[index + 1] if index + 1 < len(filters) else None
            twin = node.filter.within_composite(last=not is_torch_filter(after), trained=together)
            yield Node(node.node_id, twin, node.trainable or together, node.caching)
        else:
            yield node


# --- plans -------------------------------------------------------------------------------------------------------


def _emit(named: _Named) -> Plan:
    """The plan, each part that names a place to run in a ``Remote`` of its own."""
    node = named.node
    plan = _body(named)
    return plan if node.target is None else _remote(node.target.to_json(), [plan])


def _body(named: _Named) -> Plan:
    node, node_id = named.node, named.slot.node_id if named.slot is not None else ""
    if isinstance(node, Step):
        return {"Execute": {"node_id": node_id}}
    if isinstance(node, Composite):
        return {"Composite": {"node_ids": [part.slot.node_id for part in named.parts if part.slot is not None]}}
    parts = [_emit(part) for part in named.parts]
    if isinstance(node, Fork):
        return {"Parallel": parts}
    if isinstance(node, Loop):
        return {"Loop": {"node_id": node_id, "body": parts[0], "max_iterations": node.max_iterations}}
    if isinstance(node, Branch):
        labels = [label for label, _ in node.arms]
        plan: Plan = {
            "Branch": {"node_id": node_id, "arms": [list(arm) for arm in zip(labels, parts, strict=True)]},
        }
        return plan if node.chooser.target is None else _remote(node.chooser.target.to_json(), [plan])
    return _sequence(parts)


def _sequence(plans: Iterable[Plan]) -> Plan:
    flat: list[Plan] = []
    for plan in plans:
        flat.extend(plan.get("Sequence", (plan,)))
    return flat[0] if len(flat) == 1 else {"Sequence": flat}


def _remote(target: dict[str, str], plans: list[Plan]) -> Plan:
    plan = _sequence(plans)
    return {"Remote": {"node_id": last_node(plan), "target": target, "plan": plan}}


def last_node(plan: Plan) -> str:
    """The node whose output is the plan's output."""
    ((kind, body),) = plan.items()
    if kind in ("Sequence", "Parallel"):
        return last_node(body[-1])
    return str(body["node_ids"][-1] if kind == "Composite" else body["node_id"])


def normalised(plan: Plan, here: dict[str, str] | None) -> Plan:
    """The plan as it runs at ``here``: no ``Remote`` to where one is already, neighbours with one target joined."""
    ((kind, body),) = plan.items()
    if kind == "Sequence":
        return _sequence(_joined(normalised(part, here) for part in body))
    if kind == "Parallel":
        return {"Parallel": [normalised(part, here) for part in body]}
    if kind == "Loop":
        return {"Loop": {**body, "body": normalised(body["body"], here)}}
    if kind == "Branch":
        return {"Branch": {**body, "arms": [[label, normalised(arm, here)] for label, arm in body["arms"]]}}
    if kind == "Remote":
        inner = normalised(body["plan"], body["target"])
        return inner if body["target"] == here else {"Remote": {**body, "plan": inner}}
    return plan


def _joined(plans: Iterable[Plan]) -> list[Plan]:
    joined: list[Plan] = []
    for plan in plans:
        for part in plan.get("Sequence", (plan,)):
            before = joined[-1].get("Remote") if joined else None
            now = part.get("Remote")
            if before is not None and now is not None and before["target"] == now["target"]:
                joined[-1] = _remote(now["target"], _joined([before["plan"], now["plan"]]))
            else:
                joined.append(part)
    return joined


def depth_of(plan: Plan) -> int:
    """How deep a plan is nested; 1 for a plan without plans inside."""
    depth, level = 0, [plan]
    while level:
        depth, level = depth + 1, [part for one in level for part in _parts(one)]
    return depth


def _parts(plan: Plan) -> Iterable[Plan]:
    ((kind, body),) = plan.items()
    if kind in ("Sequence", "Parallel"):
        return list(body)
    if kind == "Branch":
        return [arm for _, arm in body["arms"]]
    return [body["body"]] if kind == "Loop" else [body["plan"]] if kind == "Remote" else []


def targets_in(plan: Plan) -> tuple[Target, ...]:
    """Every place that the plan sends a part of itself to, each once, in order."""
    return tuple(dict.fromkeys(_targets(plan)))


def _targets(plan: Plan) -> Iterator[Target]:
    if "Remote" in plan:
        yield Target.of(plan["Remote"]["target"])
    for part in _parts(plan):
        yield from _targets(part)
