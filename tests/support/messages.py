"""Protocol messages as a program without this package would write them: plain JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from somatize_worker import protocol
from somatize_worker.pipeline import compile_once


def assign_plan(plan_id: str, pipeline: Any, x: Any = None, *, mode: str = "forward", y: Any = None) -> dict[str, Any]:
    """An ``AssignPlan`` message for a pipeline, as JSON data."""
    plain_x = np.asarray(x) if isinstance(x, np.ndarray) else x
    spec = compile_once(pipeline).spec(plan_id=plan_id, mode=mode, input=plain_x, y=y)
    spec["metadata"].pop("soma")
    message = protocol.AssignPlan(plan=protocol.spec_to_plan(spec))
    data: dict[str, Any] = json.loads(protocol.to_json(message))
    return data
