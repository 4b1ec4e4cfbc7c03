"""What children may use, and the one thread that watches that they do.

Memory is counted as what exists because of the child: private pages and the shared memory that it made, a page that
several of its processes share once (Linux's proportional set size). Mapped files, the data store's above all, do not
count: they are there for everybody, and the kernel can drop them. Reading that exactly costs milliseconds, so it is
done only when the cheap upper bound, the sum of the resident sizes, is over the limit.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from somatize_worker.hosts import family

WATCH_INTERVAL_S: Final = 0.5
_AT_MOST_SHARE: Final = 20  # a look that took t seconds is not repeated before 20 t: watching costs at most 5 %
_log = logging.getLogger(__name__)
_SHARED_MEMORY: Final = ("/dev/shm/", "/memfd:", "/SYSV", "/dev/zero")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child and all processes it started may use together; 0: no limit."""

    memory_bytes: int = 0
    processes: int = 0

    def any(self) -> bool:
        """Whether there is anything to watch."""
        return bool(self.memory_bytes or self.processes)


class Watched(Protocol):
    """A child as the watch sees it."""

    @property
    def pid(self) -> int:
        """The process, which leads its own group and session."""
        ...

    @property
    def limits(self) -> Limits:
        """What it may use."""
        ...

    def note_peak(self) -> None:
        """Remember how much memory it uses, for a death certificate."""
        ...

    def kill_soon(self, reason: str, detail: str = "") -> None:
        """Send SIGKILL to the group and return at once."""
        ...


def excess(limits: Limits, processes: int, memory_bytes: int) -> tuple[str, str] | None:
    """Which limit is exceeded, as (reason, detail), or None."""
    if limits.processes and processes > limits.processes:
        return "process limit", f"{processes} processes, {limits.processes} allowed"
    if limits.memory_bytes and memory_bytes > limits.memory_bytes:
        return "memory limit", f"{readable(memory_bytes)} used, {readable(limits.memory_bytes)} allowed"
    return None


def readable(size_bytes: float) -> str:
    """``"312 MiB"``, ``"1.5 GiB"``."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.3g} GiB"


def own_memory(pids: Iterable[int], excluded: Path | None = None) -> int:
    """Bytes that exist because of these processes. ``excluded``: a folder whose files never count."""
    return sum(_own_memory(pid, excluded) for pid in pids)


def _own_memory(pid: int, excluded: Path | None) -> int:
    total, counts = 0, False
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            for line in file:
                first = line[:1]
                if first == b"P" and line.startswith(b"Pss:"):
                    total += int(line.split()[1]) if counts else 0
                elif first.islower() or first.isdigit():  # "7f00-7f10 rw-p 0 00:00 0   /path": a new mapping
                    counts = _counts(line.split(maxsplit=5), excluded)
    except (FileNotFoundError, ProcessLookupError):
        return total << 10  # it ended while we read
    except PermissionError:  # it changed its user: what we may still see
        process = family.look(pid)
        return process.resident_bytes if process else 0
    return total << 10


def _counts(fields: list[bytes], excluded: Path | None) -> bool:
    if len(fields) < 6:
        return True
    path = fields[5].decode(errors="replace").strip()
    if not path.startswith("/"):
        return True  # [heap], [stack], [anon:...]
    if excluded is not None and path.startswith(f"{excluded}/"):
        return False
    return path.startswith(_SHARED_MEMORY)


def kernel_kills() -> int:
    """How often the kernel's out-of-memory killer has struck here: in our control group if it tells, else at all."""
    for path, key in _kill_counters():
        try:
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == key:
                    return int(value)
        except OSError:
            continue
    return 0


def _kill_counters() -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    with contextlib.suppress(OSError):  # hidden in this container: then the last one counts
        found += _group_counters(Path("/proc/self/cgroup").read_text())
    return [*found, (Path("/proc/vmstat"), "oom_kill")]


def _group_counters(groups: str) -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    for line in groups.splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            found.append((Path(f"/sys/fs/cgroup{group}/memory.events"), "oom_kill"))
        elif "memory" in controllers.split(","):
            found.append((Path(f"/sys/fs/cgroup/memory{group}/memory.oom_control"), "oom_kill"))
    return found


class Watch:
    """One thread that looks at all children twice a second.

    Args:
        excluded: the data store's folder; its mapped files do not count.
    """

    def __init__(self, excluded: Path | None = None, interval_s: float = WATCH_INTERVAL_S) -> None:
        self.looks = 0
        """How often all children were looked at."""
        self._excluded = excluded
        self._interval_s = interval_s
        self._children: dict[int, Watched] = {}
        self._errands: list[Callable[[], None]] = []
        self._look_again: dict[int, float] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, child: Watched) -> None:
        """Watch this child from now on."""
        with self._lock:
            self._children[child.pid] = child
            self._start()

    def remove(self, child: Watched) -> None:
        """Watch it no more."""
        with self._lock:
            self._children.pop(child.pid, None)
            self._look_again.pop(child.pid, None)

    def every_time(self, errand: Callable[[], None]) -> None:
        """Call this too whenever the thread looks; it must not wait."""
        with self._lock:
            self._errands.append(errand)
            self._start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="soma-watch", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        pause_s = self._interval_s
        while not self._stop.wait(pause_s):
            started = time.monotonic()
            with self._lock:
                children, errands = list(self._children.values()), list(self._errands)
            try:
                self.look(children)
                for errand in errands:
                    errand()
            except Exception:
                _log.exception("watching the children of this worker failed; trying again")  # say, no open files
            self.looks += 1
            pause_s = max(self._interval_s, _AT_MOST_SHARE * (time.monotonic() - started))

    def look(self, children: Iterable[Watched]) -> None:
        """Look at these children once."""
        limited = [child for child in children if child.limits.any()]
        for child in children:
            child.note_peak()
        if limited:
            processes = family.snapshot()
            for child in limited:
                self._check(child, processes)

    def _check(self, child: Watched, processes: Mapping[int, family.Process]) -> None:
        members = family.members(processes, child.pid)
        memory = sum(process.resident_bytes for process in members)
        if child.limits.memory_bytes and memory > child.limits.memory_bytes:
            memory = self._exact(child, [process.pid for process in members])
        found = excess(child.limits, len(members), memory)
        if found is not None:
            child.kill_soon(*found)

    def _exact(self, child: Watched, pids: list[int]) -> int:
        started = time.monotonic()
        if started < self._look_again.get(child.pid, 0.0):
            return 0
        memory = own_memory(pids, self._excluded)
        now = time.monotonic()
        with self._lock:
            if child.pid in self._children:
                self._look_again[child.pid] = now + _AT_MOST_SHARE * (now - started)
        return memory
