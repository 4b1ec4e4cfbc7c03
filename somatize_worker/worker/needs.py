"""What must be installed where a plan runs: what its own filters need, not those of parts that run elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from somatize_worker.hosts.inside import tree
from somatize_worker.packing import Reference


def requirements(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The requirement lines of a plan's process, sorted."""
    spread = bool((spec["metadata"].get("soma") or {}).get("spread"))
    here = set(tree.filters_needed(spec["plan"], spread=spread))
    return tuple(sorted({line for node_id, lines in by_node(spec).items() if node_id in here for line in lines}))


def by_node(spec: Mapping[str, Any], nodes: Iterable[str] | None = None) -> dict[str, list[str]]:
    """Node id → requirement lines; for filters in the store, which are not read here, their spec tells."""
    filters = spec["filters"]
    if isinstance(filters, Reference):
        found = dict(spec.get("requirements") or {})
    else:
        found = {entry["node_id"]: list(entry["requirements"]) for entry in filters if entry["requirements"]}
    return found if nodes is None else {node_id: found[node_id] for node_id in nodes if node_id in found}
