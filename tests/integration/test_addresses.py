"""Celery finds the cluster's server by any URL that the settings take, and by no other."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from somatize_worker import Coordinator
from somatize_worker.messaging import make_app
from somatize_worker.server import EmbeddedServer
from somatize_worker.settings import Settings


def test_a_socket(tmp_path: Path) -> None:
    """A worker started by hand and a client, both by ``unix://``."""
    with EmbeddedServer(unix_socket=tmp_path / "s") as server:
        settings = Settings(redis_url=f"unix://:{server.password}@{tmp_path}/s?db=3", store="redis", worker_id="w")
        command = [sys.executable, "-m", "celery", "-A", "somatize_worker", "worker", "-Q", "cpu", "-c", "1"]
        with subprocess.Popen(command, env={**os.environ, **settings.to_env()}, stderr=subprocess.DEVNULL) as worker:
            try:
                with Coordinator(settings=settings) as coordinator:
                    run = coordinator.forward(lambda x: x + 1, 1, wait=True)
                    assert run.result(timeout=60).output == 2
                    assert "in" in coordinator.app.AsyncResult(run.plan_id).get(timeout=10)
                    assert coordinator.workers()[0].worker_id == "w"
            finally:
                worker.terminate()


def test_tls_checks_certificates_unless_told_otherwise() -> None:
    secure = make_app(Settings(redis_url="rediss://soma:pw@server:6380/2?ssl_ca_certs=/ca.crt"))
    assert secure.backend.connparams["ssl_cert_reqs"] == ssl.CERT_REQUIRED
    assert secure.backend.connparams["ssl_ca_certs"] == "/ca.crt"
    assert secure.connection_for_write().transport_cls == "soma-rediss"
    trusting = make_app(Settings(redis_url="rediss://server:6380/2?ssl_cert_reqs=none"))
    assert trusting.backend.connparams["ssl_cert_reqs"] == ssl.CERT_NONE


def test_variables_of_another_celery_application_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.setenv(name, "redis://elsewhere:1/0")
    app = make_app(Settings(redis_url="redis://here:2/0"))
    assert app.connection_for_read().hostname == "here"
    assert app.connection_for_write().hostname == "here"
    assert app.connection().hostname == "here"
    assert app.backend.connparams["host"] == "here"
