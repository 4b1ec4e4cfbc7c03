"""A filter that several nodes have travels once, and every node still gets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from somatize_worker.hosts.inside.running import Wire, run_plan
from somatize_worker.packing import Reference, pack, unpack
from somatize_worker.pipeline import compile_once, pipeline
from somatize_worker.submission import offload_spec
from somatize_worker.worker.children import child_plans
from tests.support.claims import claim

_LIMIT = 100_000


def increment(x: float) -> float:
    return x + 1


def double(x: float) -> float:
    return x * 2


class Shelf:
    """Keeps what is too large for a spec."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def put(self, value: Any, *, key: bytes | None = None) -> Reference:
        self.values.append(value)
        return Reference(type="Cached", cache_key=key)


def spec_of(*steps: Any, limit: int = _LIMIT) -> dict[str, Any]:
    spec = compile_once(pipeline(*steps)).spec(plan_id="p", mode="forward", input=1.0, default_tag="cpu")
    sent: dict[str, Any] = unpack(pack(offload_spec(spec, Shelf(), limit)))
    return sent


def output_of(spec: dict[str, Any], folder: Path) -> Any:
    request = {"plan_id": "p", "spec": pack(spec), "store": str(folder), "inline_limit": _LIMIT, "worker_id": "w"}
    kind, content = run_plan(request, Wire(lambda frame: None, lambda what, payload: {}), lambda run: None)
    assert kind == "done", content
    return content["output"]


def test_it_travels_once(tmp_path: Path) -> None:
    spec = spec_of(increment, double, increment, double, increment)
    assert [entry["pickle"] for entry in spec["filters"]] == [0, 1, 0, 1, 0]
    assert len(spec["pickles"]) == 2
    assert output_of(spec, tmp_path) == 11.0


def test_filters_that_differ_are_as_they_were(tmp_path: Path) -> None:
    spec = spec_of(increment, double)
    assert "pickles" not in spec
    assert all(isinstance(entry["pickle"], bytes) for entry in spec["filters"])
    assert output_of(spec, tmp_path) == 4.0


def test_parts_that_run_elsewhere_have_it_too(tmp_path: Path) -> None:
    spec = spec_of(increment, increment, double)
    (*_, last) = [entry["node_id"] for entry in spec["filters"]]
    child = {
        "path": "2",
        "node_id": last,
        "node_ids": [last],
        "target": {"Tag": "gpu"},
        "plan": spec["plan"]["Sequence"][2],
        "input": 3.0,
    }
    (submission,) = child_plans(claim(spec=pack(spec)), spec, [child])
    assert output_of(unpack(submission.spec), tmp_path) == 6.0


def test_what_counts_as_large_is_what_travels() -> None:
    size = len(compile_once(increment).filters[0].pickle)
    assert "pickles" in spec_of(*[increment] * 50, limit=2 * size)
    assert isinstance(spec_of(*[increment] * 50, limit=size - 1)["filters"], Reference)
