"""What stays in the store: a plan's own input goes with the plan, what it learned is written once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from somatize_worker import (
    Coordinator,
    EnvironmentFailed,
    Filter,
    MissingData,
    NoWorker,
    PlanCancelled,
    PlanConflict,
    PlanFailed,
    ResultTimeout,
    protocol,
)
from somatize_worker.pipeline.steps import fork, loop
from tests.support.busy import Holds, held, let_go
from tests.support.cluster import Cluster, short
from tests.support.server import poll

X = np.arange(300_000, dtype=np.float64)


@pytest.fixture(scope="module", params=["file", "redis"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    url = "redis" if request.param == "redis" else f"file://{tmp_path_factory.mktemp('store')}"
    with Cluster({"cpu": 1, "gpu": 1}, slots=1, settings=short(store=url)) as running:
        yield running


def stored(c: Coordinator) -> int:
    """How many values the store has."""
    if c.store.url.startswith("file:"):
        root = Path(c.store.url.removeprefix("file://"))
        return sum(path.suffix in (".npy", ".bin", ".msgpack", ".json") for path in root.rglob("*"))
    return sum(key.count(b":") == 2 for key in c.ledger.client.scan_iter("soma:data:*"))  # heads, not parts


def settles_at(c: Coordinator, count: int) -> None:
    """A plan's input goes right after its end was told."""
    poll(lambda: stored(c) == count, timeout_s=10, what=f"{count} values in the store, not {stored(c)}")


class Adds(Filter):
    def __init__(self, amount: float) -> None:
        self.amount = amount

    def forward(self, x: Any, state: Any = None) -> Any:
        return x + self.amount


class Learns(Filter):
    """Keeps all that it was fitted on."""

    def fit(self, x: Any, y: Any = None) -> Any:
        return {"all": x, "targets": float(np.sum(y)) if y is not None else 0.0}

    def forward(self, x: Any, state: Any) -> Any:
        return x + state["all"][1]


def fails(x: Any) -> Any:
    raise ValueError(f"cannot use {x.shape}")


def dies(x: Any) -> Any:
    import os

    os._exit(3)


def test_the_input_goes_with_the_plan_and_the_output_stays(c: Coordinator) -> None:
    before = stored(c)
    output = c.forward(lambda x: x * 2, X).result(timeout=20).output
    settles_at(c, before + 1)
    np.testing.assert_array_equal(output, X * 2)


def test_a_plan_that_is_submitted_again_stores_nothing_more(c: Coordinator) -> None:
    before = stored(c)
    for x in (X, X, X.copy()):
        run = c.forward(Adds(1), x, plan_id=f"again-{c.settings.store_url[:4]}")
        np.testing.assert_array_equal(run.result(timeout=20).output, X + 1)
    with pytest.raises(PlanConflict):
        c.forward(Adds(1), X + 1, plan_id=run.plan_id)
    settles_at(c, before + 1)


def message_plan(c: Coordinator, step: Any, plan_id: str) -> protocol.SerializedPlan:
    """A plan of the protocol's own, with an input that is too large for a record."""
    spec = c.compile(step).spec(plan_id=plan_id, mode="forward", input=X[:30_000], default_tag="cpu")
    return protocol.spec_to_plan(spec)


def test_a_message_that_comes_again_stores_nothing_more(c: Coordinator) -> None:
    before = stored(c)
    plan = message_plan(c, lambda x: float(x.sum()), f"message-{c.settings.store_url[:4]}")
    message = protocol.to_json(protocol.AssignPlan(plan=plan)).decode()
    for _ in range(3):
        sent = c.app.send_task("somatize.assign_plan", [message], queue="cpu")
        sent.get(timeout=20, disable_sync_subtasks=False)
    settles_at(c, before)


def test_a_message_plan_that_is_refused_leaves_nothing(c: Coordinator) -> None:
    before = stored(c)
    with pytest.raises(NoWorker):
        c.assign_plan(message_plan(c, Adds(1), "nobody"), "tpu")
    step = Adds(1)
    step.requirements = ["-r other.txt"]
    with pytest.raises(EnvironmentFailed):
        c.assign_plan(message_plan(c, step, "options"))
    assert stored(c) == before


def test_an_input_that_is_the_output_stays(c: Coordinator) -> None:
    before = stored(c)
    run = c.forward(lambda x: x, X)
    run.result(timeout=20)
    settles_at(c, before + 1)
    np.testing.assert_array_equal(c.plan(run.plan_id).result(timeout=5).output, X)


def test_inputs_for_parts_elsewhere_stay_until_the_whole_has_ended(c: Coordinator) -> None:
    before = stored(c)
    steps = Adds(1) >> fork(Adds(2).named("here"), Adds(3).named("there").on("gpu")) >> (lambda v: sum(v.values()))
    output = c.forward(steps, X).result(timeout=30).output
    np.testing.assert_array_equal(output, 2 * X + 7)
    settles_at(c, before + 1)


def test_what_the_rounds_of_a_loop_elsewhere_made_goes_too(c: Coordinator) -> None:
    before = stored(c)
    run = c.forward(loop(Adds(1).named("a") >> Adds(1).named("b").on("gpu"), max_iterations=5), X)
    np.testing.assert_array_equal(run.result(timeout=30).output, X + 10)
    settles_at(c, before + 1)
    run.discard()
    assert stored(c) == before
    np.testing.assert_array_equal(run.result().output, X + 10)
    with pytest.raises(MissingData):
        c.plan(run.plan_id).result(timeout=5)


def test_an_output_of_a_part_elsewhere_may_be_the_plans(c: Coordinator) -> None:
    before = stored(c)
    run = c.forward(Adds(1) >> Adds(2).on("gpu"), X)
    np.testing.assert_array_equal(run.result(timeout=30).output, X + 3)
    settles_at(c, before + 1)
    np.testing.assert_array_equal(c.plan(run.plan_id).result(timeout=5).output, X + 3)
    run.discard()
    assert stored(c) == before


def test_a_plan_that_has_not_ended_has_nothing_to_discard(c: Coordinator, tmp_path: Path) -> None:
    run = c.forward(Holds(tmp_path), X)
    held(tmp_path)
    with pytest.raises(ResultTimeout):
        run.discard()
    let_go(tmp_path)
    np.testing.assert_array_equal(run.result(timeout=20).output, X)


def test_a_map_leaves_nothing_behind(c: Coordinator) -> None:
    before = stored(c)
    outputs = list(c.map(lambda x: x * 2, [X, X + 1, X + 2]))
    for number, output in enumerate(outputs):
        np.testing.assert_array_equal(output, (X + number) * 2)
    settles_at(c, before)


@pytest.mark.parametrize("step", [fails, dies])
def test_it_goes_when_the_plan_fails(c: Coordinator, step: Any) -> None:
    before = stored(c)
    with pytest.raises(PlanFailed):
        c.forward(step, X).result(timeout=20)
    settles_at(c, before)


def test_it_is_there_for_another_attempt(c: Coordinator, tmp_path: Path) -> None:
    def fails_once(x: Any, marker: str = str(tmp_path / "once")) -> float:
        import os

        if not os.path.exists(marker):
            open(marker, "w").close()
            raise ValueError("once")
        return float(x.sum())

    before = stored(c)
    run = c.forward(fails_once, X, retries=1, retry_on=[ValueError], retry_delay=0)
    assert run.result(timeout=20).output == X.sum()
    settles_at(c, before)


def test_it_goes_when_the_plan_is_cancelled_or_out_of_time(c: Coordinator, tmp_path: Path) -> None:
    before = stored(c)
    run = c.forward(Holds(tmp_path), X)
    held(tmp_path)
    run.cancel()
    with pytest.raises(PlanCancelled):
        run.result(timeout=20)
    (tmp_path / "other").mkdir()
    with pytest.raises(PlanFailed, match="not done after"):
        c.forward(Holds(tmp_path / "other"), X, timeout=1).result(timeout=20)
    settles_at(c, before)


def test_a_large_state_is_written_once_for_all_plans(c: Coordinator) -> None:
    fitted = c.fit(Learns(), X, np.ones(3)).result(timeout=20).pipeline
    c.forward(fitted, 1.0).result(timeout=20)
    before = stored(c)
    for number in range(3):
        assert c.forward(fitted, float(number)).result(timeout=20).output == number + 1
    assert list(c.map(fitted, [1.0, 2.0, 3.0])) == [2.0, 3.0, 4.0]
    with Coordinator(settings=c.settings) as another:
        assert another.forward(fitted, 1.0).result(timeout=20).output == 2.0
    assert stored(c) == before
