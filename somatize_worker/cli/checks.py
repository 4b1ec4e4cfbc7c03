"""What ``somatize doctor`` looks at, in the order in which one thing needs the other."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from somatize_worker import readable
from somatize_worker.coordinator import Coordinator
from somatize_worker.errors import PlanFailed, ResultTimeout, SomaError
from somatize_worker.ledger import hide_password
from somatize_worker.settings import Settings, variable
from somatize_worker.values import summary

_MIN_FREE_BYTES: Final = 1 << 30
_PLAN_WITHIN_S: Final = 30.0
_FIRST_IN_QUEUE: Final = 0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def run_checks(url: str | None) -> Iterator[Check]:
    """Look at everything; what needs the server is left out when there is none."""
    yield Check("python", sys.version_info >= (3, 11), f"{sys.version.split()[0]} at {sys.executable}")
    try:
        settings = Settings.from_env()
    except SomaError as error:
        yield Check("settings", False, error.message, "correct or unset the variable")
        return
    yield Check("settings", True, _settings(settings.to_env()))
    try:
        coordinator = Coordinator(url, settings=settings)
    except SomaError as error:
        yield Check("server", False, error.message)
        return
    with coordinator:
        yield from _check_cluster(coordinator)


def _check_cluster(coordinator: Coordinator) -> Iterator[Check]:
    info = coordinator.ledger.client.info()
    version = info.get("valkey_version") or info["redis_version"]
    where = hide_password(coordinator.settings.redis_url)
    yield Check("server", True, f"{info.get('server_name', 'redis')} {version} at {where}")
    yield _durability(info)
    yield _attempt("store", lambda: _try_store(coordinator))
    yield _space(coordinator.settings)
    yield _workers(coordinator)
    tags = sorted({tag for worker in coordinator.workers() for tag in worker.tags})
    for tag in tags:
        yield _attempt(f"plan on {tag}", lambda tag=tag: _try_plan(coordinator, tag))  # type: ignore[misc]


def _settings(environ: Mapping[str, str]) -> str:
    url = variable("redis_url")
    shown = {name: hide_password(value) if name == url else value for name, value in environ.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items()) or "all defaults"


def _attempt(name: str, what: Callable[[], str]) -> Check:
    try:
        return Check(name, True, what())
    except ResultTimeout:
        return Check(
            name,
            False,
            f"not done within {_PLAN_WITHIN_S:g} s",
            "see whether the workers are busy (`somatize workers`), and what their logs say",
        )
    except PlanFailed as error:
        return Check(name, False, error.message, "see `somatize plans` and the workers' logs")
    except SomaError as error:
        return Check(name, False, error.message)


def _durability(info: Mapping[str, object]) -> Check:
    policy = str(info.get("maxmemory_policy", "noeviction"))
    saves = bool(info.get("aof_enabled"))
    remedy = ""
    if policy != "noeviction":
        remedy = "set maxmemory-policy noeviction: an evicted record is a lost plan"
    elif not saves:
        remedy = "fine for a cluster that comes and goes; with appendonly yes, plans outlive the server"
    found = f"eviction: {policy}, append-only file: {'yes' if saves else 'no'}"
    return Check("durability", policy == "noeviction", found, remedy)


def _try_store(coordinator: Coordinator) -> str:
    sent = np.arange(1000.0)
    reference = coordinator.store.put(sent)
    try:
        same = np.array_equal(coordinator.store.get(reference), sent)
    finally:
        coordinator.store.delete(reference)
    if not same:
        raise SomaError(f"{coordinator.store.url} gave back something else than was written")
    return f"{coordinator.store.url}: what was written was read back"


def _space(settings: Settings) -> Check:
    url = settings.store_url
    folder = Path(url.removeprefix("file://")) if url.startswith("file://") else Path(tempfile.gettempdir())
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    ok = free >= _MIN_FREE_BYTES
    remedy = _faster_pages(folder) if ok else "large values need room: free some, or name another folder in SOMA_STORE"
    return Check("space", ok, f"{readable.size(free)} free in {folder}", remedy)


def _faster_pages(folder: Path) -> str:
    """Advice for a folder in memory whose pages are small."""
    mounts = [mount for mount in psutil.disk_partitions(all=True) if folder.is_relative_to(mount.mountpoint)]
    mount = max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
    if mount is None or mount.fstype != "tmpfs" or "huge=" in mount.opts:
        return ""
    return f"for faster large arrays, as root: mount -o remount,huge=within_size {mount.mountpoint}"


def _workers(coordinator: Coordinator) -> Check:
    workers = coordinator.workers()
    if not workers:
        return Check("workers", False, "none", "start one: celery -A somatize_worker worker -Q cpu")
    pythons = sorted({env.split(" (")[0] for worker in workers for env in worker.capabilities.python_envs})
    mine = f"Python {sys.version_info.major}.{sys.version_info.minor}."
    found = f"{', '.join(worker.worker_id for worker in workers)} ({', '.join(pythons)})"
    if not all(python.startswith(mine) for python in pythons):
        return Check("workers", False, found, f"pipelines pickled here need workers with {mine.rstrip('.')}, too")
    return Check("workers", True, found)


def _try_plan(coordinator: Coordinator, tag: str) -> str:
    """A value that goes through the store, doubled by a worker, and back."""
    sent = np.arange(float(coordinator.settings.inline_limit_bytes // 8 + 1000))
    run = coordinator.forward(lambda x: x * 2, sent, on=tag, priority=_FIRST_IN_QUEUE)
    try:
        result = run.result(timeout=_PLAN_WITHIN_S)
    except ResultTimeout:
        run.cancel("somatize doctor waited in vain")
        raise
    run.discard()
    if not np.array_equal(result.output, sent * 2):
        raise SomaError(f"{result.worker_id} was to double {summary(sent)}, and gave {summary(result.output)}")
    return f"{summary(sent)} doubled on {result.worker_id}, through the store"
