"""Claims as the ledger gives them, for tests without a server."""

from __future__ import annotations

from typing import Any

from somatize_worker.ledger import Claim


def claim(plan_id: str = "p", **fields: Any) -> Claim:
    """The first claim of a plan of its own, which has done nothing yet."""
    usual: dict[str, Any] = {
        "kind": "plan",
        "epoch": 1,
        "attempts": 0,
        "deaths": 0,
        "spec": b"",
        "code": "",
        "requirements": (),
        "root": plan_id,
        "path": "",
        "timeout_ms": 0,
        "remaining_ms": 0,
        "max_attempts": 3,
        "queue": "cpu",
        "priority": 5,
        "summary": "",
        "journal": {},
        "retry": {},
    }
    return Claim(plan_id=plan_id, **{**usual, **fields})
