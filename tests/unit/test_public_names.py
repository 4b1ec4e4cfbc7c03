"""The names that users rely on, and what it costs to import them."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import somatize_worker
from somatize_worker import errors

NAMES = {
    "Coordinator",
    "Filter",
    "LocalCluster",
    "__version__",
    "app",
    "protocol",
    "report",
    *(kind.__name__ for kind in errors.family(errors.SomaError) if kind.__module__ == errors.__name__),
}
HEAVY = ("pydantic", "celery", "kombu", "redis", "numpy", "msgpack", "cloudpickle", "typer", "rich", "psutil")


def python(code: str, *, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_names_are_these() -> None:
    assert set(somatize_worker.__all__) == NAMES
    assert set(dir(somatize_worker)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_is_there(name: str) -> None:
    value = getattr(somatize_worker, name)
    assert value is getattr(import_module("somatize_worker"), name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Coordinatr'"):
        somatize_worker.Coordinatr  # noqa: B018
    assert not hasattr(somatize_worker, "__wrapped__")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, somatize_worker; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert python(code) == "[]"


def test_the_protocol_needs_no_server_side() -> None:
    code = (
        "import sys; from somatize_worker import protocol; print([n for n in ('celery', 'redis') if n in sys.modules])"
    )
    assert python(code) == "[]"


def test_a_client_loads_no_worker() -> None:
    code = (
        "import sys; from somatize_worker import Coordinator\n"
        "print([n for n in sys.modules if n.startswith(('somatize_worker.worker', 'somatize_worker.hosts'))])"
    )
    assert python(code) == "[]"


@pytest.mark.parametrize("first", ["import somatize_worker.report", "import somatize_worker", "pass"])
def test_report_is_the_function_whatever_was_imported_first(first: str) -> None:
    assert python(f"{first}\nfrom somatize_worker import report\nprint(callable(report))") == "True"


def test_report_outside_a_host_does_nothing() -> None:
    assert python("from somatize_worker import report\nreport(progress=0.5, metrics={'loss': 1.0})") == ""


def test_the_version_is_the_installed_one_or_says_unknown(tmp_path: Path) -> None:
    assert somatize_worker.__version__
    (tmp_path / "somatize_worker").symlink_to(Path(somatize_worker.__file__).parent)
    code = "import importlib.metadata as m, somatize_worker\nprint(somatize_worker.__version__)"
    assert python(f"import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n{code}", cwd=tmp_path)


def test_types_are_shipped() -> None:
    assert (Path(somatize_worker.__file__).parent / "py.typed").is_file()
