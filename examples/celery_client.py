"""Send a plan from a program that knows Celery, and nothing of somatize_worker.

SOMA_REDIS_URL=redis://server:6379/0 python examples/celery_client.py [TAG]
"""

from __future__ import annotations

import base64
import json
import os
import sys
import uuid

import cloudpickle
from celery import Celery


class Double:
    """A filter: anything with ``forward``."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x * 2


def message(plan_id: str) -> dict[str, object]:
    """The protocol's AssignPlan: two nodes in a row, the input inline."""
    pickled = base64.b64encode(cloudpickle.dumps(Double())).decode()
    return {
        "type": "AssignPlan",
        "plan": {
            "plan_id": plan_id,
            "plan": {"Sequence": [{"Execute": {"node_id": "twice"}}, {"Execute": {"node_id": "again"}}]},
            "input": {
                "source": "Inline",
                "value": {"type": "Tensor", "data": {"values": [1.0, 2.0, 3.0], "shape": [3]}},
            },
            "filters": [{"node_id": node, "pickled_filter": pickled} for node in ("twice", "again")],
        },
    }


def main() -> None:
    url = os.environ["SOMA_REDIS_URL"]
    app = Celery(broker=url, backend=url)
    plan_id = f"from-celery-{uuid.uuid4().hex[:8]}"
    queue = sys.argv[1] if len(sys.argv) > 1 else "cpu"  # queues are tags
    app.send_task("somatize.assign_plan", [message(plan_id)], queue=queue, task_id=plan_id)
    result = app.AsyncResult(plan_id).get(timeout=60)  # the protocol's PlanResult
    print(json.dumps(result))


if __name__ == "__main__":
    main()
