"""Facts about a plan's tree, in the form that serde gives it: ``{"Sequence": [...]}``, ``"Empty"``, ..."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from somatize_worker.errors import InvalidPipeline

KINDS: Final = (
    "Sequence", "Parallel", "Execute", "Cached", "Loop", "Branch", "Remote", "Composite", "Stream", "Empty",
)  # fmt: skip
_KNOWN: Final = frozenset(KINDS)


def split(plan: Any) -> tuple[str, Any]:
    """The variant's name and its body.

    Raises:
        InvalidPipeline: not a plan, or a variant that this version does not know.
    """
    if type(plan) is dict and len(plan) == 1:
        ((kind, body),) = plan.items()
        if kind in _KNOWN:
            return kind, body
        raise InvalidPipeline(f"unknown kind of plan {kind!r}; known are {', '.join(KINDS)}")
    if plan == "Empty":
        return "Empty", None
    raise InvalidPipeline(f"not a plan: {str(plan)[:80]!r}")


def _is_single(plan: Any) -> bool:
    """Whether it is one ``Execute``: most of a long plan is, and what looks at every step passes quickly over these."""
    return type(plan) is dict and len(plan) == 1 and "Execute" in plan


def children(kind: str, body: Any) -> list[Any]:
    """The plans directly inside one."""
    if kind in ("Sequence", "Parallel"):
        return list(body)
    if kind == "Loop":
        return [body["body"]]
    if kind == "Branch":
        return [arm for _, arm in body["arms"]]
    if kind == "Remote":
        return [body["plan"]]
    return []


def own_nodes(kind: str, body: Any) -> list[str]:
    """The node ids that a plan names itself, those of its children aside."""
    if kind in ("Composite", "Stream"):
        return list(body["node_ids"])
    if kind in ("Execute", "Cached", "Loop", "Branch", "Remote"):
        return [body["node_id"]]
    return []


def every_node(plan: Any) -> list[str]:
    """Every node id in the tree, in the order in which they run; one that stands twice is listed twice."""
    kind, body = split(plan)
    return own_nodes(kind, body) + [node for child in children(kind, body) for node in every_node(child)]


def filters_needed(plan: Any, *, spread: bool = False) -> list[str]:
    """The node ids whose filters run in this process: all but those of parts that run as plans of their own."""
    return list(dict.fromkeys(_filters_needed(plan, spread)))


def _filters_needed(plan: Any, spread: bool) -> Iterator[str]:
    kind, body = split(plan)
    if kind in ("Execute", "Composite", "Stream", "Branch"):
        yield from own_nodes(kind, body)
    if kind == "Remote" or (kind == "Parallel" and spread):
        return
    for child in children(kind, body):
        if _is_single(child):
            yield child["Execute"]["node_id"]
        else:
            yield from _filters_needed(child, spread)


def last_node(plan: Any) -> str | None:
    """The node whose output is the plan's; None for a plan without nodes.

    A ``Loop``, ``Branch`` or ``Remote`` is itself a node; a ``Parallel`` is named by its last branch.
    """
    kind, body = split(plan)
    if kind in ("Sequence", "Parallel"):
        return next((name for child in reversed(body) if (name := last_node(child)) is not None), None)
    own = own_nodes(kind, body)
    return own[-1] if own else None


def branch_keys(branches: Sequence[Any]) -> list[str]:
    """Under which key each branch's output stands in the output of a ``Parallel``.

    It is the branch's last node id; a branch without nodes, which hands its input through, has its index.

    Raises:
        InvalidPipeline: two branches end in the same node id.
    """
    keys = [last_node(branch) or str(index) for index, branch in enumerate(branches)]
    for key in keys:
        if keys.count(key) > 1:
            raise InvalidPipeline(
                f"two branches of a Parallel end in the node id {key!r}, so their outputs cannot be told apart; "
                "give the nodes different names",
                node_id=key,
            )
    return keys


def check(plan: Any) -> None:
    """Refuse a tree that cannot run.

    Raises:
        InvalidPipeline: an unknown variant, branches that cannot be told apart, a ``Branch`` without arms, an empty
            ``Composite`` or ``Stream``, a chunk size below 1.
    """
    kind, body = split(plan)
    if kind == "Parallel":
        branch_keys(body)
    if kind == "Branch" and not body["arms"]:
        raise InvalidPipeline(f"the Branch {body['node_id']!r} has no arms", node_id=body["node_id"])
    if kind in ("Composite", "Stream") and not body["node_ids"]:
        raise InvalidPipeline(f"a {kind} without nodes")
    if kind == "Stream" and body["chunk_size"] < 1:
        raise InvalidPipeline(f"a Stream's chunk_size must be at least 1, not {body['chunk_size']}")
    for child in children(kind, body):
        if not _is_single(child):
            check(child)


def summary(plan: Any) -> dict[str, int]:
    """``plan_summary`` of the event ``RunStarted``."""
    counts = {"total_nodes": 0, "cached_nodes": 0, "parallel_branches": 0}
    _count(plan, counts)
    return counts


def _count(plan: Any, counts: dict[str, int]) -> None:
    kind, body = split(plan)
    if kind not in ("Loop", "Remote"):  # these hold nodes; what runs is inside
        counts["total_nodes"] += len(own_nodes(kind, body))
    if kind == "Cached":
        counts["cached_nodes"] += 1
    if kind == "Parallel":
        counts["parallel_branches"] += len(body)
    for child in children(kind, body):
        if _is_single(child):
            counts["total_nodes"] += 1
        else:
            _count(child, counts)
