"""Environments of jobs and filters through a whole cluster: built once, side by side, in the builder's words."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from somatize_worker import Coordinator, EnvironmentFailed, Filter, PlanFailed
from tests.support.cluster import Cluster, short
from tests.support.jobs import python_job


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers of ten slots and two tags, with no environment at first."""
    settings = short(env_folder=str(tmp_path_factory.mktemp("none-yet")))
    with Cluster({"cpu,gpu": 2}, slots=10, settings=settings) as running:
        yield running


def environments(cluster: Cluster) -> list[dict[str, Any]]:
    """What the cluster's environments say of themselves."""
    found = Path(cluster.settings.env_folder).glob("*/soma-environment.json")
    return [json.loads(path.read_text()) for path in found]


def test_twenty_jobs_ask_for_the_same_new_environment_at_once(cluster: Cluster, c: Coordinator) -> None:
    spellings = ["six==1.14.0", "  SIX == 1.14.0  # the same", "\n# comment\nSix==1.14.0\n"]
    source = "import six, sys\nprint(six.__version__, sys.prefix)"
    handles = [c.assign_python_job(python_job(source, requirements=spellings[n % 3])) for n in range(20)]
    results = [handle.result(timeout=60) for handle in handles]
    assert {result.worker_id for result in results} == {"cpu-1", "cpu-2"}
    (output,) = {result.output for result in results}
    assert output.startswith("1.14.0 ")
    said = [str(one.metrics.get("message")) for handle in handles for one in handle.progress()]
    assert said.count("+ six==1.14.0") == 1
    assert [one["requirements"] for one in environments(cluster)] == [["six==1.14.0"]]
    again = c.assign_python_job(python_job(source, requirements="six==1.14.0"))
    assert again.result(timeout=20).output == output
    assert not any("message" in one.metrics for one in again.progress())
    other = c.assign_python_job(python_job(source, requirements="six==1.15.0"))
    assert other.result(timeout=30).output.startswith("1.15.0 ")


def test_a_build_that_fails_fails_the_job_with_the_builders_words(cluster: Cluster, c: Coordinator) -> None:
    before = sorted(os.listdir(cluster.settings.env_folder))
    handle = c.assign_python_job(python_job("", requirements="six==99.99"))
    result = handle.result(timeout=30)
    assert not result.success
    assert "there is no version of six==99.99" in result.output
    assert handle.ending()[1]["error_type"] == "somatize_worker.errors.EnvironmentFailed"
    assert "there is no version of six==99.99" in handle.record.cause
    assert "\n" not in handle.record.cause
    after = [
        name for name in os.listdir(cluster.settings.env_folder) if (Path(cluster.settings.env_folder, name)).is_dir()
    ]
    assert set(after) <= set(before)


class Version(Filter):
    """Names the version of ``six`` that it runs with, and the process's environment."""

    def __init__(self, version: str, weight: bytes = b"") -> None:
        self.requirements = [f"six=={version}"]
        self.weight = weight

    def fit(self, x: Any, y: Any = None) -> Any:
        return {"fitted": importlib.import_module("six").__version__}

    def forward(self, x: Any, state: Any) -> Any:
        six = importlib.import_module("six")
        print("with", six.__version__)
        return {"six": six.__version__, "prefix": sys.prefix, "x": x, **(state or {})}


def test_plans_with_two_versions_of_a_package_side_by_side(c: Coordinator) -> None:
    runs = {version: c.fit(Version(version).named("v"), 1) for version in ("1.16.0", "1.15.0")}
    outputs = {version: run.result(timeout=60).output for version, run in runs.items()}
    for version, output in outputs.items():
        assert (output["six"], output["fitted"], output["x"]) == (version, version, 1)
        assert list(runs[version].output_lines()) == [f"with {version}"]
    assert len({output["prefix"] for output in outputs.values()}) == 2
    assert [event.event_type for event in runs["1.15.0"].events()][-2:] == ["NodeCompleted", "RunCompleted"]
    without = c.forward(lambda x: __import__("sys").prefix, 1).result(timeout=20).output
    assert without not in {output["prefix"] for output in outputs.values()}


def test_steps_that_run_apart_have_environments_of_their_own(c: Coordinator) -> None:
    together = Version("1.15.0").named("a") >> Version("1.16.0").named("b")
    with pytest.raises(PlanFailed, match=r"you require six==1.15.0 and six==1.16.0"):
        c.forward(together, 1).result(timeout=30)
    for weight in (b"", os.urandom(300_000)):  # filters that ride in the record, and filters in the store
        apart = Version("1.15.0", weight).named("a") >> Version("1.16.0", weight).named("b").on("gpu")
        output = c.fit(apart, 1).result(timeout=60).output
        assert (output["six"], output["x"]["six"], output["x"]["x"]) == ("1.16.0", "1.15.0", 1)
        assert output["prefix"] != output["x"]["prefix"]


def test_a_requirement_that_no_worker_would_take_is_refused_at_once(c: Coordinator) -> None:
    step = Version("")
    step.requirements = ["-r other.txt"]
    with pytest.raises(EnvironmentFailed, match="options are not accepted"):
        c.forward(step, 1)


@pytest.mark.parametrize(
    "requirement, said",
    [("six==99.99", "there is no version of six==99.99"), ("/x.whl", "paths are not accepted")],
)
def test_a_requirement_that_fails_fails_the_plan(requirement: str, said: str, c: Coordinator) -> None:
    step = Version("")
    step.requirements = [requirement]
    with pytest.raises(PlanFailed) as failed:
        c.forward(step, 1).result(timeout=30)
    assert said in failed.value.message
    assert failed.value.details["error_type"] == "somatize_worker.errors.EnvironmentFailed"
