"""Parts of a plan that run elsewhere: from what a host asks for to plans of their own in the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from somatize_worker.ledger import Claim, Submission
from somatize_worker.packing import Reference, pack
from somatize_worker.worker import needs


def child_plans(claim: Claim, spec: Mapping[str, Any], children: Iterable[Mapping[str, Any]]) -> list[Submission]:
    """One submission for each child. Ids come from the child's place in the tree, so asking twice is one child."""
    return [_child(claim, spec, child) for child in children]


def child_id(plan_id: str, path: str) -> str:
    """The id of the plan that runs the part of another at ``path``."""
    return f"{plan_id}.{path}"


def _child(claim: Claim, spec: Mapping[str, Any], child: Mapping[str, Any]) -> Submission:
    plan_id = child_id(claim.plan_id, child["path"])
    options = {
        **(spec["metadata"].get("soma") or {}),
        "run_id": claim.root,
        "parent": claim.plan_id,
        "names": child.get("names") or [],
    }
    options.pop("each", None)  # the parent has cut its input into items; a child runs on one
    node_ids = set(child["node_ids"])
    filters = spec["filters"]
    needed = needs.by_node(spec, child["node_ids"])
    if not isinstance(filters, Reference):
        filters = [entry for entry in filters if entry["node_id"] in node_ids]
    packed = pack(
        {
            "plan_id": plan_id,
            "plan": child["plan"],
            "mode": spec["mode"],
            "input": child["input"],
            "filters": filters,
            **({"pickles": spec["pickles"]} if "pickles" in spec else {}),
            **({"requirements": needed} if isinstance(filters, Reference) and needed else {}),
            "metadata": {**spec["metadata"], "soma": options},
        }
    )
    return Submission(
        plan_id=plan_id,
        spec=packed,
        queue=_queue(claim, child["target"]),
        digest=hashlib.sha256(packed).hexdigest(),
        summary=f"{child['node_id']} of {claim.summary}",
        code=claim.code,  # any host that has run a part of this pipeline fits: filters are unpickled for each plan
        requirements=tuple(sorted({line for lines in needed.values() for line in lines})),
        priority=claim.priority,
        max_attempts=claim.max_attempts,
        timeout_ms=claim.remaining_ms,  # it cannot be of use for longer than its parent has
        retry=claim.retry,
        parent=claim.plan_id,
        root=claim.root,
        path=child["path"],
    )


def _queue(claim: Claim, target: Mapping[str, str] | None) -> str:
    if target is None:
        return claim.queue
    (name,) = target.values()
    return name
