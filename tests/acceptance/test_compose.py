"""docker-compose.yml for real: the cluster comes up, runs a plan sent from outside, and shows it in Flower."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from somatize_worker import Coordinator, Filter, PlanFailed
from tests.support.server import free_port, poll

ROOT = Path(__file__).parents[2]
BASE_IMAGES = ("python:3.11-slim-bookworm", "valkey/valkey:9-alpine")
SERVICES = ("server", "worker-cpu", "worker-gpu", "flower")

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(900)]


def run(*words: str, timeout_s: float, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command to its end, its output as text; the caller looks at its exit status."""
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        check=False,
    )


def compose_command() -> list[str]:
    """The compose tool of this machine, version 2 or 1; skips where there is no engine to run it."""
    if shutil.which("docker") is None:
        pytest.skip("no container engine: the `docker` command is not installed")
    if run("docker", "info", timeout_s=30).returncode != 0:
        pytest.skip("no container engine: `docker info` reaches none")
    if run("docker", "compose", "version", timeout_s=30).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose") is None:
        pytest.skip("neither `docker compose` nor `docker-compose` is installed")
    return ["docker-compose"]


def need_base_images() -> None:
    for image in BASE_IMAGES:
        if run("docker", "image", "inspect", image, timeout_s=30).returncode != 0:
            try:
                pulled = run("docker", "pull", "--quiet", image, timeout_s=180).returncode == 0
            except subprocess.TimeoutExpired:
                pulled = False
            if not pulled:
                pytest.skip(f"the base image {image} is neither on this machine nor to be had from a registry")


class Cluster:
    """One run of docker-compose.yml under a project name and on ports of its own."""

    def __init__(self, command: list[str]) -> None:
        self.server_port, self.flower_port = free_port(), free_port()
        self._words = [*command, "--project-name", f"soma-test-{uuid.uuid4().hex[:8]}"]
        self._env = {
            "SOMA_PORT": str(self.server_port),
            "FLOWER_PORT": str(self.flower_port),
            "SOMA_IMAGE": "somatize-worker:test",
        }

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.server_port}/0"

    def __call__(self, *words: str, timeout_s: float = 120) -> str:
        done = run(*self._words, *words, timeout_s=timeout_s, env=self._env)
        assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def look(self, service: str, what: str) -> str:
        """A field of the service's container: ``.State.Health.Status``."""
        container = self("ps", "--all", "--quiet", service).strip()
        return run("docker", "inspect", "--format", f"{{{{{what}}}}}", container, timeout_s=30).stdout.strip()

    def healthy(self) -> set[str]:
        """The services whose containers are healthy."""
        return {service for service in SERVICES if self.look(service, ".State.Health.Status") == "healthy"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    command = compose_command()
    need_base_images()
    cluster = Cluster(command)
    try:
        cluster("build", timeout_s=600)
        cluster("up", "--detach")
        try:
            poll(lambda: cluster.healthy() >= {"server", "flower"}, timeout_s=120, every_s=1, what="server and Flower")
        except AssertionError as late:
            raise AssertionError(f"{late}\n{cluster('ps')}\n{cluster('logs', '--tail', '60')}") from None
        yield cluster
    finally:
        cluster("down", "--volumes", "--timeout", "30")


@pytest.fixture(scope="module")
def coordinator(cluster: Cluster) -> Iterator[Coordinator]:
    with Coordinator(cluster.url) as coordinator:
        yield coordinator


class Double(Filter):
    _kind = "stateless"

    def forward(self, x: Any, state: Any) -> Any:
        return 2 * x


class Refuse(Filter):
    _kind = "stateless"

    def forward(self, x: Any, state: Any) -> Any:
        raise ValueError("this filter refuses everything")


class WhoAmI(Filter):
    """Tells who runs user code, and whether it can see the server's address."""

    _kind = "stateless"

    def forward(self, x: Any, state: Any) -> Any:
        import os

        return {"uid": os.getuid(), "secrets": [name for name in os.environ if "REDIS" in name]}


def test_both_workers_announce_themselves(coordinator: Coordinator) -> None:
    workers = poll(lambda: len(found := coordinator.workers()) == 2 and found, timeout_s=30, what="two workers")
    assert {worker.capabilities.tags for worker in workers} == {("cpu",), ("gpu",)}


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the image has Python 3.11, and so must have the sender")
def test_a_plan_from_outside(coordinator: Coordinator) -> None:
    result = coordinator.forward(Double(), np.arange(3.0), on="gpu").result(timeout=60)
    np.testing.assert_array_equal(result.output, [0.0, 2.0, 4.0])
    who = coordinator.forward(WhoAmI(), np.arange(3.0), on="cpu").result(timeout=60).output
    assert who["uid"] != 0
    assert who["secrets"] == []


def browse(url: str, folder: Path) -> str:
    """The text of a web page as headless Chromium shows it, after its scripts have run."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("Chromium is not installed")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --virtual-time-budget=5000 --window-size=1600,900"
    page = run(chromium, *flags.split(), f"--user-data-dir={folder / 'profile'}", "--dump-dom", url, timeout_s=60)
    assert page.returncode == 0, page.stderr
    visible = re.sub(r"<(script|style)\b.*?</\1>", " ", page.stdout, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", visible).split())


@pytest.mark.browser
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the image has Python 3.11, and so must have the sender")
def test_flower_shows_what_ran(cluster: Cluster, coordinator: Coordinator, tmp_path: Path) -> None:
    good = coordinator.forward(Double().named("double"), np.arange(3.0), on="cpu")
    good.result(timeout=60)
    bad = coordinator.forward(Refuse().named("refuse"), np.arange(3.0), on="gpu")
    with pytest.raises(PlanFailed, match="refuses everything"):
        bad.result(timeout=60)

    base = f"http://127.0.0.1:{cluster.flower_port}"
    tasks = poll(
        lambda: all(one in (text := browse(f"{base}/tasks", tmp_path)) for one in ("SUCCESS", "FAILURE")) and text,
        timeout_s=60,
        every_s=1,
        what="both plans in Flower's list",
    )
    assert "somatize.assign_plan" in tasks
    assert {"double", "refuse"} <= set(tasks.split())  # a short readable line, not the message
    assert good.plan_id in tasks
    assert "Tensor(shape=[3]" in tasks
    assert "refuses everything" in browse(f"{base}/task/{bad.plan_id}", tmp_path)
    workers = browse(f"{base}/", tmp_path)
    assert workers.count("worker@") >= 2
    assert "Online" in workers


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the image has Python 3.11, and so must have the sender")
def test_records_outlive_the_server(cluster: Cluster, coordinator: Coordinator) -> None:
    handle = coordinator.forward(Double(), np.arange(2.0), on="cpu")
    handle.result(timeout=60)
    cluster("restart", "--timeout", "10", "server")
    poll(lambda: "server" in cluster.healthy(), timeout_s=60, every_s=0.5, what="the server is back")
    with Coordinator(cluster.url) as again:
        np.testing.assert_array_equal(again.plan(handle.plan_id).result(timeout=30).output, [0.0, 2.0])
        late = again.forward(Double(), np.arange(2.0), on="gpu", wait=True)
        np.testing.assert_array_equal(late.result(timeout=60).output, [0.0, 2.0])


def test_every_service_is_healthy(cluster: Cluster) -> None:
    poll(lambda: cluster.healthy() == set(SERVICES), timeout_s=120, every_s=1, what="every service is healthy")


def test_ports_are_published_on_the_loopback_interface_only(cluster: Cluster) -> None:
    for service, port in (("server", "6379"), ("flower", "5555")):
        assert cluster("port", service, port).startswith("127.0.0.1:")


def test_workers_stop_in_order(cluster: Cluster, coordinator: Coordinator) -> None:
    cluster("stop", "worker-cpu", "worker-gpu")
    assert [cluster.look(service, ".State.ExitCode") for service in ("worker-cpu", "worker-gpu")] == ["0", "0"]
    poll(lambda: coordinator.workers() == [], timeout_s=20, what="no worker is announced any more")
