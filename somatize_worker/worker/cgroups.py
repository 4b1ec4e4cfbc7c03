"""The control group that this process runs in: what a container may use, and what it uses.

Reads version 2 and version 1, and machines that mount both (``cgroups(7)``, and the kernel's
``Documentation/admin-guide/cgroup-v2.rst``). A limit may stand on the group itself or on any group above it; the
tightest counts.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final

# Version 1 writes "no limit" as the largest page-aligned number.
_NO_LIMIT_BYTES: Final = 1 << 60


class ControlGroup:
    """This process's control group; each method reads the files anew. ``root`` is the file system's root."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._cpu = _folders(root, "cpu")
        self._accounting = _folders(root, "cpuacct")
        self._memory = _folders(root, "memory")

    def cpu_cores(self) -> float | None:
        """Cores' worth of CPU time that the quota allows (1.5 is possible), None without a quota."""
        limits = [limit for folder in self._cpu if (limit := _cpu_limit(folder)) is not None]
        return min(limits, default=None)

    def cpu_seconds(self) -> float | None:
        """CPU time that the group has used so far, None where that is not counted."""
        for folder in self._accounting:
            usage = _fields(folder / "cpu.stat").get("usage_usec")
            if usage is not None:
                return usage / 1e6
            usage = _number(folder / "cpuacct.usage")
            if usage is not None:
                return usage / 1e9
        return None

    def memory_bytes(self) -> int | None:
        """The memory limit, None without one."""
        limits = [limit for folder in self._memory if (limit := _memory_limit(folder)) is not None]
        return min(limits, default=None)

    def memory_usage(self) -> float | None:
        """Share (0 to 1) of the limit in use, where it is closest to it; None without a limit.

        File cache that the kernel can drop at once is not counted.
        """
        shares = []
        for folder in self._memory:
            limit, used = _memory_limit(folder), _memory_used(folder)
            if limit and used is not None:
                shares.append(min(1.0, used / limit))
        return max(shares, default=None)


def _cpu_limit(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:  # version 1
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit():  # "max", "-1", or no such file
        return None
    return int(quota) / int(period)


def _memory_limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = _number(folder / name)
        if limit is not None and limit < _NO_LIMIT_BYTES:
            return limit
    return None


def _memory_used(folder: Path) -> int | None:
    for name, droppable in (("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file")):
        used = _number(folder / name)
        if used is not None:
            return max(0, used - _fields(folder / "memory.stat").get(droppable, 0))
    return None


def _folders(root: Path, controller: str) -> list[Path]:
    """The folders of this process's group for one controller, and of every group above it that can be seen.

    Both versions' folders are listed where both are mounted: files that are not there are passed over.
    """
    paths = _group_paths(root)
    folders: list[Path] = []
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        key = {"cgroup2": "", "cgroup": controller}.get(kind)
        if key is None or key not in paths or (key and key not in options.split(",")):
            continue
        group, mounted, mount_point = paths[key], *map(PurePosixPath, mount.split(" ")[3:5])
        # A container may see its own group mounted as the root, under a path that names it from outside.
        inside = group.relative_to(mounted) if group.is_relative_to(mounted) else PurePosixPath()
        top = root / mount_point.relative_to("/")
        own = top / inside if (top / inside).is_dir() else top
        folders += [own, *(folder for folder in own.parents if folder.is_relative_to(top))]
    return folders


def _group_paths(root: Path) -> dict[str, PurePosixPath]:
    """The group's path for each version 1 controller, and under ``""`` for version 2 (``/proc/self/cgroup``)."""
    paths = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), PurePosixPath(path)))
    return paths


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # not there: another version, another controller, another operating system
        return ""


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.isdigit() else None


def _fields(path: Path) -> dict[str, int]:
    """A file of ``name number`` lines."""
    pairs = (line.partition(" ") for line in _read(path).splitlines())
    return {name: int(value) for name, _, value in pairs if value.isdigit()}
