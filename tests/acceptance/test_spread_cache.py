"""The content-addressed cache: what has been computed once is computed by nobody again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from somatize_worker import Coordinator, Filter, protocol
from somatize_worker.coordinator import PlanHandle
from somatize_worker.pipeline.steps import fork
from tests.support.busy import Says, ran
from tests.support.cluster import Cluster, short
from tests.support.plans import write_line


@pytest.fixture(scope="module", params=["file", "redis"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two workers, with each kind of store."""
    settings = short(store="" if request.param == "file" else "redis", inline_limit_bytes=10_000)
    with Cluster({"cpu": 1, "gpu": 1}, slots=1, settings=settings) as running:
        yield running


class Scales(Filter):
    """Notes each run."""

    def __init__(self, folder: Path, name: str, factor: float = 2.0) -> None:
        self.folder = str(folder)
        self.name_ = name
        self.factor = factor

    def forward(self, x: Any, state: Any = None) -> Any:
        write_line(f"{self.folder}/ran", self.name_)
        return x * self.factor


class Learns(Filter):
    """Notes each fit and each run."""

    def __init__(self, folder: Path, name: str, shift: float = 0.0) -> None:
        self.folder = str(folder)
        self.name_ = name
        self.shift = shift

    def fit(self, x: Any, y: Any = None) -> Any:
        write_line(f"{self.folder}/ran", f"fit-{self.name_}")
        return {"mean": np.mean(x, axis=0) + self.shift}

    def forward(self, x: Any, state: Any) -> Any:
        write_line(f"{self.folder}/ran", self.name_)
        return x - state["mean"]


class Always(Scales):
    _cacheable = True


class Never(Scales):
    _cacheable = False


def new_runs(folder: Path) -> list[str]:
    """What ran since the last look."""
    seen = folder / "seen"
    before = int(seen.read_text()) if seen.exists() else 0
    now = ran(folder)
    seen.write_text(str(len(now)))
    return now[before:]


def hits(run: PlanHandle) -> list[str]:
    return [event.node_id for event in run.events() if isinstance(event, protocol.NodeCacheHit)]


def forward(c: Coordinator, pipeline: Any, x: Any, **options: Any) -> tuple[Any, list[str]]:
    """Output, and the nodes that came from the cache."""
    run = c.forward(pipeline, x, **options)
    return run.result(timeout=30).output, hits(run)


def data(seed: int = 0, rows: int = 500) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random((rows, 4))


def test_an_unchanged_plan_computes_nothing(c: Coordinator, tmp_path: Path) -> None:
    x = data()
    for expected_runs, expected_hits in ((["a", "b"], []), ([], ["a", "b"])):
        pipeline = Scales(tmp_path, "a").named("a") >> Scales(tmp_path, "b", 3.0).named("b")
        output, found = forward(c, pipeline, x, cache=True)
        np.testing.assert_allclose(output, 6 * x)
        assert (new_runs(tmp_path), found) == (expected_runs, expected_hits)
    run = c.forward(pipeline, x, cache=True)
    run.result(timeout=30)
    kinds = [event.event_type for event in run.events()]
    assert kinds == ["RunStarted", "NodeCacheHit", "NodeCacheHit", "RunCompleted"]


def test_a_changed_parameter_computes_what_depends_on_it(c: Coordinator, tmp_path: Path) -> None:
    x = data(1)

    def pipeline(first: float, second: float, third: float) -> Any:
        factors = zip("abc", (first, second, third), strict=True)
        a, b, d = (Scales(tmp_path, name, factor).named(name) for name, factor in factors)
        return a >> b >> d

    forward(c, pipeline(1.0, 2.0, 3.0), x, cache=True)
    assert new_runs(tmp_path) == ["a", "b", "c"]
    output, found = forward(c, pipeline(1.0, 5.0, 3.0), x, cache=True)
    np.testing.assert_allclose(output, 15 * x)
    assert (new_runs(tmp_path), found) == (["b", "c"], ["a"])
    _, found = forward(c, pipeline(1.0, 2.0, 3.0), x, cache=True)
    assert (new_runs(tmp_path), found) == ([], ["a", "b", "c"])


def test_changed_data_computes_everything(c: Coordinator, tmp_path: Path) -> None:
    pipeline = Scales(tmp_path, "a").named("a") >> Scales(tmp_path, "b").named("b")
    forward(c, pipeline, data(2), cache=True)
    changed = data(2)
    changed[0, 0] += 1e-9
    new_runs(tmp_path)
    assert forward(c, pipeline, changed, cache=True)[1] == []
    assert new_runs(tmp_path) == ["a", "b"]
    assert forward(c, pipeline, data(2).astype(np.float32), cache=True)[1] == []
    assert new_runs(tmp_path) == ["a", "b"]


def test_filters_say_for_themselves(c: Coordinator, tmp_path: Path) -> None:
    x = data(3)
    pipeline = Always(tmp_path, "always").named("a") >> Scales(tmp_path, "plain").named("b")
    forward(c, pipeline, x)
    assert new_runs(tmp_path) == ["always", "plain"]
    assert forward(c, pipeline, x)[1] == ["a"]
    assert new_runs(tmp_path) == ["plain"]
    pipeline = Scales(tmp_path, "plain").named("a") >> Never(tmp_path, "never").named("b")
    forward(c, pipeline, x, cache=True)
    new_runs(tmp_path)
    assert forward(c, pipeline, x, cache=True)[1] == ["a"]
    assert new_runs(tmp_path) == ["never"]


def test_fitted_states_are_cached(c: Coordinator, tmp_path: Path) -> None:
    x = data(4)

    def pipeline(shift: float = 0.0) -> Any:
        return Scales(tmp_path, "a").named("a") >> Learns(tmp_path, "b", shift).named("b")

    first = c.fit(pipeline(), x, cache=True).result(timeout=30)
    assert new_runs(tmp_path) == ["a", "fit-b", "b"]
    run = c.fit(pipeline(), x, cache=True)
    second = run.result(timeout=30)
    assert new_runs(tmp_path) == []
    assert hits(run) == ["a", "b"]
    np.testing.assert_array_equal(second.output, first.output)
    np.testing.assert_array_equal(second.states["b"]["mean"], first.states["b"]["mean"])
    c.fit(pipeline(1.0), x, cache=True).result(timeout=30)
    assert new_runs(tmp_path) == ["fit-b", "b"]
    c.fit(pipeline(), x, np.ones(len(x)), cache=True).result(timeout=30)  # other targets
    assert new_runs(tmp_path) == ["fit-b", "b"]
    new = data(5)
    output, found = forward(c, first.pipeline, new, cache=True)
    assert (new_runs(tmp_path), found) == (["a", "b"], [])
    again, found = forward(c, first.pipeline, new, cache=True)
    assert (new_runs(tmp_path), found) == ([], ["a", "b"])
    np.testing.assert_array_equal(again, output)


def test_all_workers_share_it(c: Coordinator, tmp_path: Path) -> None:
    x = data(6, rows=5_000)

    def pipeline(tag: str) -> Any:
        return Scales(tmp_path, "a").named("a").on(tag) >> fork(
            Scales(tmp_path, "b", 3.0).named("b"), Scales(tmp_path, "c", 4.0).named("c")
        )

    forward(c, pipeline("gpu"), x, cache=True)
    assert sorted(new_runs(tmp_path)) == ["a", "b", "c"]
    output, found = forward(c, pipeline("cpu"), x, cache=True)
    assert (new_runs(tmp_path), sorted(found)) == ([], ["a", "b", "c"])
    np.testing.assert_allclose(output["c"], 8 * x)
    output, found = forward(c, pipeline("gpu"), x, cache=True, on="gpu")
    assert (new_runs(tmp_path), sorted(found)) == ([], ["a", "b", "c"])


def test_it_does_not_matter_which_process_runs_a_branch(c: Coordinator, tmp_path: Path) -> None:
    """Branches that take a while run in helper processes; found in the cache, in the plan's own."""
    pipeline = Scales(tmp_path, "a").named("a") >> fork(*(Says(tmp_path, name, 0.2).named(name) for name in "bcd"))
    forward(c, pipeline, data(7), cache=True)
    assert sorted(new_runs(tmp_path)) == ["a", "b", "c", "d"]
    assert sorted(forward(c, pipeline, data(7), cache=True)[1]) == ["a", "b", "c", "d"]
    assert sorted(forward(c, pipeline, data(7), cache=True, spread=True)[1]) == ["a", "b", "c", "d"]
    assert new_runs(tmp_path) == []


# ── other processes, other code ──────────────────────────────────────────────────────────────────────────────────────

_PROGRAM = """
import json, os, sys
import numpy as np
from somatize_worker import Coordinator, Filter, protocol
from helper import note

class First(Filter):
    def forward(self, x, state=None):
        note({folder!r}, "first")
        return x + {first}

class Second(Filter):
    def fit(self, x, y=None):
        note({folder!r}, "fit")
        return {{"mean": x.mean()}}
    def forward(self, x, state):
        note({folder!r}, "second")
        return x - state["mean"]{second}

with Coordinator() as c:
    run = c.fit(First() >> Second(), np.arange({rows}.0), cache=True)
    result = run.result(timeout=60)
    found = [event.node_id for event in run.events() if isinstance(event, protocol.NodeCacheHit)]
    print(json.dumps([found, float(np.sum(result.output))]))
"""

_HELPER = """
import os

def note(folder, word):
    fd = os.open(folder + "/ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (word + "\\n").encode())
    os.close(fd){change}
"""


def test_from_another_process_and_after_changes_of_the_code(cluster: Cluster, tmp_path: Path) -> None:
    def run(first: str = "1", second: str = "", rows: int = 3000, change: str = "") -> tuple[list[str], list[str]]:
        """Nodes from the cache, and what ran."""
        (tmp_path / "program.py").write_text(
            _PROGRAM.format(folder=str(tmp_path), first=first, second=second, rows=rows)
        )
        (tmp_path / "helper.py").write_text(_HELPER.format(change=change))
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env={**os.environ, **cluster.environ()},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        return json.loads(done.stdout)[0], new_runs(tmp_path)

    everything = ["first", "fit", "second"]
    assert run() == ([], everything)
    assert run() == (["First", "Second"], [])
    assert run(second=" + 0") == (["First"], ["fit", "second"])
    assert run(first="2") == ([], everything)
    assert run(change="; word.strip()") == ([], everything)  # code that both use
    assert run(rows=2999) == ([], everything)
    assert run() == (["First", "Second"], [])
