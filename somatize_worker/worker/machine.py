"""The machine as this worker may use it: its capabilities once, its load every few seconds.

What counts is the worker's share: a container's CPU quota and memory limit, the CPUs the process is bound to, the
GPUs it may see. Forms: the protocol's ``Capabilities`` and ``LoadMetrics``, as dictionaries.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import psutil

from somatize_worker.settings import visible_gpus
from somatize_worker.worker.cgroups import ControlGroup
from somatize_worker.worker.gpus import Gpus

_SHORTEST_PERIOD_S: Final = 0.5


def capabilities(tags: Sequence[str]) -> dict[str, Any]:
    """The protocol's ``Capabilities`` of this process's worker; read from the machine once."""
    return {**_hardware(), "tags": list(tags)}


@cache
def _hardware() -> dict[str, Any]:
    group = ControlGroup()
    return {
        "cpu_cores": usable_cores(group),
        "ram_bytes": usable_memory_bytes(group),
        "gpus": _gpus().describe(),
        "python_envs": [f"Python {platform.python_version()} ({sys.executable})"],
    }


def gpu_indices() -> list[int]:
    """Numbers, in NVML's order, of the GPUs that this worker may use."""
    return _gpus().indices


@cache
def _gpus() -> Gpus:
    return Gpus.open(visible_gpus())


def usable_cores(group: ControlGroup) -> int:
    """Whole cores that this process may keep busy, at least 1."""
    quota = group.cpu_cores()
    return max(1, len(_own_cpus()) if quota is None else min(len(_own_cpus()), int(quota)))


def usable_memory_bytes(group: ControlGroup) -> int:
    """The machine's memory, or the container's limit where that is less."""
    physical = int(psutil.virtual_memory().total)
    limit = group.memory_bytes()
    return physical if limit is None else min(physical, limit)


def _own_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


class Meter:
    """Measures load since the last look. Cheap: a few small files, no subprocess; any thread may ask."""

    def __init__(self, *, group: ControlGroup | None = None, gpus: Gpus | None = None) -> None:
        self._group = ControlGroup() if group is None else group
        self._gpus = _gpus() if gpus is None else gpus
        self._cores = usable_cores(self._group)
        self._lock = threading.Lock()
        self._since = (time.monotonic(), *self._busy())
        self._cpu_usage = 0.0

    def load(self, *, active_plans: int, queue_depth: int) -> dict[str, Any]:
        """The protocol's ``LoadMetrics``: shares from 0 to 1 of what this worker may use."""
        return {
            "cpu_usage": self.cpu_usage(),
            "memory_usage": self.memory_usage(),
            "gpu_usage": self._gpus.usage(),
            "active_plans": active_plans,
            "queue_depth": queue_depth,
            "timestamp": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        }

    def cpu_usage(self) -> float:
        """Share of the usable CPU time spent since the last look (of anybody, if no quota sets this worker apart)."""
        with self._lock:
            then, busy_then, available_then = self._since
            now = time.monotonic()
            if now - then >= _SHORTEST_PERIOD_S:  # over less, the clock's ticks would be the measure
                busy, available = self._busy()
                passed = available - available_then
                self._cpu_usage = _share(busy - busy_then, passed)
                self._since = (now, busy, available)
            return self._cpu_usage

    def memory_usage(self) -> float:
        """Share of the container's memory in use, or of the machine's where no limit is set."""
        limited = self._group.memory_usage()
        return float(psutil.virtual_memory().percent) / 100 if limited is None else limited

    def _busy(self) -> tuple[float, float]:
        """CPU seconds used and CPU seconds available, each from an arbitrary beginning."""
        if self._group.cpu_cores() is not None:
            used = self._group.cpu_seconds()
            if used is not None:
                return used, time.monotonic() * self._cores
        times = psutil.cpu_times(percpu=True)
        own = [times[cpu] for cpu in _own_cpus() if cpu < len(times)]
        idle = sum(one.idle + getattr(one, "iowait", 0.0) for one in own)
        # user and nice contain the guests' time already
        total = sum(sum(one) - getattr(one, "guest", 0.0) - getattr(one, "guest_nice", 0.0) for one in own)
        return total - idle, total


def _share(part: float, whole: float) -> float:
    return round(min(1.0, max(0.0, part / whole)), 4) if whole > 0 else 0.0
