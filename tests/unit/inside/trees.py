"""Random plans, and what they should put out, said as simply as possible."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.unit.inside.world import branch, execute, loop


def work(node_id: str) -> Callable[[Any], Any]:
    """What a node does: some number made of its name and its input. Some nodes end loops, now and then."""

    def filter(x: Any) -> Any:
        value = zlib.crc32(repr((node_id, x)).encode()) % 1000
        return "done" if value % 7 == 0 else value

    return filter


def choice(node_id: str) -> Callable[[Any], str]:
    """What a branch node does."""
    return lambda x: "left" if zlib.crc32(repr((node_id, x)).encode()) % 2 else "right"


def plans(*, loops: bool = True) -> st.SearchStrategy[Any]:
    """Trees with numbered holes for node ids: see :func:`named`."""
    leaf = st.sampled_from(["node", "node", "node", "Empty"])

    def grow(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        several = st.lists(children, min_size=1, max_size=4)
        kinds: list[st.SearchStrategy[Any]] = [
            several.map(lambda plans: ("Sequence", plans)),
            several.map(lambda plans: ("Parallel", plans)),
        ]
        if loops:
            kinds.append(st.tuples(st.just("Loop"), children, st.integers(0, 3)))
            kinds.append(st.tuples(st.just("Branch"), children, children))
        return st.one_of(kinds)

    return st.recursive(leaf, grow, max_leaves=12).map(named)


def named(shape: Any) -> tuple[Any, dict[str, Any]]:
    """The plan of that shape, every node with an id of its own, and the filters."""
    filters: dict[str, Any] = {}

    def new(make: Callable[[str], Any]) -> str:
        node_id = f"n{len(filters)}"
        filters[node_id] = make(node_id)
        return node_id

    def build(part: Any) -> Any:
        if part == "Empty":
            return part
        if part == "node":
            return execute(new(work))
        if part[0] in ("Sequence", "Parallel"):
            return {part[0]: [build(child) for child in part[1]]}
        if part[0] == "Loop":
            return loop(f"loop{id(part)}", build(part[1]), part[2])
        return branch(new(choice), left=build(part[1]), right=build(part[2]))

    return build(shape), filters


def expected(plan: Any, filters: dict[str, Any], value: Any) -> Any:
    """The plan's output."""
    if plan == "Empty":
        return value
    ((kind, body),) = plan.items()
    if kind == "Execute":
        return filters[body["node_id"]](value)
    if kind == "Sequence":
        for step in body:
            value = expected(step, filters, value)
        return value
    if kind == "Parallel":
        return {_last(step) or str(i): expected(step, filters, value) for i, step in enumerate(body)}
    if kind == "Loop":
        for _ in range(body["max_iterations"]):
            value = expected(body["body"], filters, value)
            if value in (None, True, "done", "stop"):
                break
        return value
    arms = dict(body["arms"])
    return expected(arms[filters[body["node_id"]](value)], filters, value)


def _last(plan: Any) -> str | None:
    if plan == "Empty":
        return None
    ((kind, body),) = plan.items()
    if kind in ("Sequence", "Parallel"):
        names = [name for name in map(_last, body) if name]
        return names[-1] if names else None
    return str(body["node_id"])
