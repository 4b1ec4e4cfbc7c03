"""Data on its way: large arrays past the worker process, other stores, values and modules that cannot travel."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from somatize_worker import (
    Coordinator,
    Filter,
    InvalidPipeline,
    InvalidSettings,
    PlanFailed,
    PlanNotFound,
    ResultTimeout,
    ServerUnreachable,
    StoreMismatch,
    Unrepresentable,
    protocol,
)
from somatize_worker.pipeline.steps import loop, pipeline
from somatize_worker.settings import Settings
from somatize_worker.values import PICKLE_MAGIC
from tests.support.cluster import Cluster, short
from tests.support.server import free_port

_MB = 1_000_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster({"cpu": 1, "gpu": 1}, slots=1, settings=short()) as running:
        yield running


class Scales(Filter):
    def fit(self, x: Any, y: Any = None) -> Any:
        return {"scale": np.full(len(x), 2.0)}

    def forward(self, x: Any, state: Any) -> Any:
        return x * state["scale"]


def double(x: Any) -> Any:
    return x * 2


# ── large values ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("elsewhere", [False, True], ids=["one worker", "through another worker"])
def test_a_large_tensor_does_not_pass_through_the_worker_process(
    cluster: Cluster, c: Coordinator, elsewhere: bool
) -> None:
    c.forward(double, np.ones(10)).result(timeout=30)
    workers = [psutil.Process(worker.pid) for worker in cluster.workers]
    before = [worker.memory_info().rss for worker in workers]
    x = np.ones(200 * _MB // 8)
    run = c.forward(pipeline(double, pipeline(double).on("gpu")) if elsewhere else double, x)
    peaks = list(before)
    while not run.done():
        peaks = [max(peak, worker.memory_info().rss) for peak, worker in zip(peaks, workers, strict=True)]
        time.sleep(0.005)
    output = run.result(timeout=60).output
    assert output[-1] == (4.0 if elsewhere else 2.0)
    grown = [(peak - start) / _MB for peak, start in zip(peaks, before, strict=True)]
    print(f"grown by {[f'{mb:.1f} MB' for mb in grown]}")
    assert max(grown) < 50


def test_large_values_inside_other_data(c: Coordinator) -> None:
    x: dict[str, Any] = {
        "image": np.ones((500, 500)),
        "again": [np.zeros(100_000), 7],
        "raw": b"x" * 500_000,
        "note": "small",
    }

    def looks(x: Any) -> Any:
        return {
            "sum": float(x["image"].sum()),
            "again": [float(x["again"][0].sum()), x["again"][1]],
            "raw": len(x["raw"]),
            "back": {"inner": [x["image"] + 1]},
        }

    output = c.forward(looks, x).result(timeout=30).output
    assert (output["sum"], output["again"], output["raw"]) == (250_000.0, [0.0, 7], 500_000)
    np.testing.assert_array_equal(output["back"]["inner"][0], x["image"] + 1)


@pytest.mark.parametrize(
    "x",
    [
        np.float32(1.5), np.array(3), np.zeros((0, 3)), np.array([np.nan, np.inf]), np.arange(4, dtype=np.int8),
        np.array(["a", "bc"]), np.array([1 + 2j]), np.array([True]), "text", b"bytes", None, {"a": [1, None]}, 1 << 70,
    ],
    ids=lambda x: f"{type(x).__name__}",
)  # fmt: skip
def test_values_come_back_as_they_went(c: Coordinator, x: Any) -> None:
    output = c.forward(lambda x: x, x).result(timeout=30).output
    if isinstance(x, (np.ndarray, np.generic)):
        assert (output.dtype, output.shape) == (x.dtype, x.shape)
        np.testing.assert_array_equal(output, x)
    else:
        assert output == x


# ── stores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_works_with_the_servers_own_store(tmp_path: Path) -> None:
    with Cluster({"cpu": 1, "gpu": 1}, slots=1, settings=short(store="redis", inline_limit_bytes=10_000)) as cluster:
        c = cluster.coordinator()
        x = np.arange(100_000.0)
        run = c.fit(Scales().named("a") >> Scales().named("b").on("gpu"), x)
        result = run.result(timeout=60)
        np.testing.assert_array_equal(result.output, 4 * x)
        assert set(result.states) == {"a", "b"}
        again = c.forward(result.pipeline, x + 1).result(timeout=60)
        np.testing.assert_array_equal(again.output, 4 * (x + 1))
        outputs = list(c.map(double, [np.full(5_000, number) for number in range(10)]))
        assert [output[0] for output in outputs] == [2 * number for number in range(10)]
        nested = c.forward(lambda x: {"a": [x["x"] + 1]}, {"x": x}).result(timeout=60).output
        np.testing.assert_array_equal(nested["a"][0], x + 1)


def test_a_client_with_another_store_is_told_before_anything_runs(cluster: Cluster, tmp_path: Path) -> None:
    for store in (f"file://{tmp_path}/mine", "redis"):
        with Coordinator(settings=replace(cluster.settings, store=store)) as c:
            assert c.forward(double, 21).result(timeout=30).output == 42  # small values need no store
            with pytest.raises(StoreMismatch, match="SOMA_STORE"):
                c.forward(double, np.ones(100_000))
            assert all(record.state == "succeeded" for record in c.plans())


# ── what cannot travel ───────────────────────────────────────────────────────────────────────────────────────────────


def test_inputs_that_cannot_travel(c: Coordinator) -> None:
    before = len(c.plans())
    for x, words in (({1, 2}, "set"), ({"a": [1, {"b": object()}]}, r"\['a'\]\[1\]\['b'\]"), (double, "function")):
        with pytest.raises(Unrepresentable, match=words):
            c.forward(double, x)
    with pytest.raises(Unrepresentable, match="dtype object"):
        c.forward(double, np.array([object()]))
    assert len(c.plans()) == before


@pytest.mark.parametrize(("kind", "words"), [("set", "type set"), ("nested", r"type object at \['a'\]\[0\]")])
def test_outputs_that_cannot_travel(c: Coordinator, kind: str, words: str) -> None:
    def gives(x: Any) -> Any:
        return {1} if x == "set" else {"a": [object()]}

    with pytest.raises(PlanFailed, match=rf"the output of node 'gives': .*{words} cannot travel") as failure:
        c.forward(gives, kind).result(timeout=30)
    assert failure.value.details["error_type"] == "somatize_worker.errors.Unrepresentable"
    assert failure.value.details["node_id"] == "gives"


def test_what_cannot_be_a_step(c: Coordinator) -> None:
    import threading

    lock = threading.Lock()
    with pytest.raises(InvalidPipeline, match=r"variable lock is a _thread.lock"):
        c.forward(lambda x: lock, 1)
    with pytest.raises(InvalidPipeline, match="3 .int. cannot be a step"):
        c.forward(3, 1)


def test_a_pipeline_nested_too_deep(c: Coordinator) -> None:
    def nested(depth: int) -> Any:
        step: Any = loop(lambda x: [x, "done"][1], max_iterations=1)
        for _ in range(depth - 2):
            step = loop(step, max_iterations=1)
        return step

    assert c.forward(nested(100), 1).result(timeout=30).output == "done"
    with pytest.raises(InvalidPipeline, match=r"nested 101 deep.*limit of 100.*SOMA_MAX_PLAN_DEPTH"):
        c.forward(nested(101), 1)
    with pytest.raises(InvalidPipeline, match="too deep"):
        c.forward(nested(5_000), 1)


@pytest.mark.parametrize("plan_id", ["", "a\nb", "x" * 201])
def test_ids_that_are_none(c: Coordinator, plan_id: str) -> None:
    with pytest.raises(InvalidPipeline, match="plan_id"):
        c.forward(double, 1, plan_id=plan_id)


# ── the user's own code ──────────────────────────────────────────────────────────────────────────────────────────────

_PACKAGE = {
    "mine/__init__.py": "",
    "mine/numbers.py": "FACTOR = 3\n\ndef times(x):\n    return x * FACTOR\n",
    "mine/filters.py": (
        "from somatize_worker import Filter\nfrom mine.numbers import times\n\n"
        "class Times(Filter):\n    def forward(self, x, state=None):\n"
        "        from mine import late\n        return late.plus(times(x))\n"
    ),
    "mine/late.py": "def plus(x):\n    return x + 1\n",
    "main.py": (
        "from somatize_worker import Coordinator\nfrom mine.filters import Times\n"
        "with Coordinator() as c:\n    print(c.forward(Times(), 5).result(timeout=30).output)\n"
    ),
}


def test_a_package_that_only_the_client_has(cluster: Cluster, tmp_path: Path) -> None:
    for name, text in _PACKAGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        env={**os.environ, **cluster.environ()},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert done.stdout == "16\n"


def test_a_module_that_the_worker_lacks(c: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site-packages"  # so it counts as installed, and travels by name
    site.mkdir()
    (site / "only_here_installed.py").write_text("class Step:\n    def forward(self, x):\n        return x\n")
    monkeypatch.syspath_prepend(str(site))
    import only_here_installed  # type: ignore[import-not-found]

    with pytest.raises(PlanFailed, match=r"'Step'.*'only_here_installed' is missing.*requirements") as failure:
        c.forward(only_here_installed.Step(), 1).result(timeout=30)
    assert failure.value.details["error_type"] == "somatize_worker.errors.FilterNotLoadable"
    assert failure.value.details["module"] == "only_here_installed"


def test_a_state_from_another_python(c: Coordinator) -> None:
    state = PICKLE_MAGIC + b"3.9\0" + b"whatever"
    compiled = c.compile(Scales())
    spec = compiled.spec(plan_id="old-state", mode="forward", input=1.0, states={"Scales": state})
    assert spec["filters"][0]["state"] == state
    message = protocol.spec_to_plan({**spec, "metadata": {}})
    with pytest.raises(PlanFailed, match=r"3\.9"):
        c.assign_plan(message).result(timeout=30)


# ── servers and ids ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_that_is_not_there(cluster: Cluster) -> None:
    started = time.monotonic()
    with pytest.raises(ServerUnreachable, match=r"does not answer.*SOMA_REDIS_URL"):
        Coordinator(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(InvalidSettings, match="redis://host:6379/0"):
        Coordinator("localhost:6379")
    assert time.monotonic() - started < 10
    with pytest.raises(InvalidSettings, match="SOMA_STORE"):
        Coordinator(cluster.settings.redis_url, settings=Settings(store="ftp://x"))


def test_unknown_and_unfinished_plans(c: Coordinator) -> None:
    with pytest.raises(PlanNotFound, match="no-such-plan"):
        c.plan("no-such-plan")
    run = c.forward(lambda x: __import__("time").sleep(0.5), 1)
    with pytest.raises(ResultTimeout, match="it goes on"):
        run.result(timeout=0.05)
    assert run.result(timeout=30).output is None
