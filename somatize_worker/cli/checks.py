"""What ``somatize doctor`` looks at, in the order in which one thing needs the other."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from somatize_worker.coordinator import Coordinator
from somatize_worker.errors import SomaError
from somatize_worker.settings import Settings

_MIN_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def run_checks(url: str | None) -> Iterator[Check]:
    """Look at everything; what needs the server is left out when there is none."""
    yield Check("python", sys.version_info >= (3, 11), sys.version.split()[0])
    try:
        settings = Settings.from_env()
    except SomaError as error:
        yield Check("settings", False, error.message, "correct or unset the variable")
        return
    yield Check("settings", True, " ".join(f"{k}={v}" for k, v in settings.to_env().items()) or "all defaults")
    try:
        coordinator = Coordinator(url, settings=settings)
    except SomaError as error:
        yield Check("server", False, error.message, "start one (`somatize up`), or set SOMA_REDIS_URL")
        return
    with coordinator:
        info = coordinator.ledger.client.info()
        version = info.get("valkey_version") or info["redis_version"]
        yield Check("server", True, f"{info.get('server_name', 'redis')} {version} at {coordinator.settings.redis_url}")
        yield _policy(info)
        yield _attempt("store", lambda: _try_store(coordinator))
        yield _space(settings)
        yield _workers(coordinator)
        if coordinator.workers():
            yield _attempt("a plan", lambda: _try_plan(coordinator))


def _attempt(name: str, what: Callable[[], str]) -> Check:
    try:
        return Check(name, True, what())
    except SomaError as error:
        return Check(name, False, error.message)


def _policy(info: dict[str, object]) -> Check:
    policy = str(info.get("maxmemory_policy", "noeviction"))
    saves = bool(info.get("aof_enabled"))
    remedy = ""
    if policy != "noeviction":
        remedy = "set maxmemory-policy noeviction: an evicted record is a lost plan"
    elif not saves:
        remedy = "without appendonly yes a server restart forgets its plans"
    return Check("durability", policy == "noeviction", f"eviction: {policy}, append-only file: {saves}", remedy)


def _try_store(coordinator: Coordinator) -> str:
    reference = coordinator.store.put(np.arange(1000.0))
    try:
        same = bool((coordinator.store.get(reference) == np.arange(1000.0)).all())
    finally:
        coordinator.store.delete(reference)
    return f"{coordinator.store.url}: what was written was read back{'' if same else ' WRONG'}"


def _space(settings: Settings) -> Check:
    url = settings.store_url
    folder = Path(url.removeprefix("file://")) if url.startswith("file://") else Path(tempfile.gettempdir())
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Check("space", free >= _MIN_FREE_BYTES, f"{free / (1 << 30):.1f} GiB free for {folder}", "")


def _workers(coordinator: Coordinator) -> Check:
    workers = coordinator.workers()
    tags = sorted({tag for worker in workers for tag in worker.tags})
    if not workers:
        return Check("workers", False, "none", "start one: celery -A somatize_worker worker -Q cpu")
    return Check("workers", True, f"{len(workers)}, serving {', '.join(tags)}")


def _try_plan(coordinator: Coordinator) -> str:
    worker = coordinator.workers()[0]
    result = coordinator.forward(lambda x: x * 2, np.arange(3.0), on=worker.tags[0]).result(timeout=60)
    return f"{np.arange(3.0)} doubled is {result.output}, on {result.worker_id}"
