"""Where the time of a round goes: processor time of every process that takes part in it, and by which code.

    python -m benchmarks.anatomy [--seconds 8]

One job after the other, each by this package and by the others, with one client. Processor time is the kernel's count
for the process (proc(5)); what is left of a round's length is waiting, most of it for another process to be woken. With
``py-spy`` installed, the worker's threads are sampled too, in rounds of their own: which package its time is spent in.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import celery_app
from benchmarks.stage import stage
from benchmarks.work import CHAINED, ROUND_TRIP, Job, Work

_WARM_ROUNDS: Final = 50
_PACKAGE: Final = re.compile(r"\((?:.*/)?(kombu|celery|redis|somatize_worker)/")
_WAITS: Final = ("wait ", "acquire", "poll ", "select", "_worker (concurrent", "get (queue", "<idle>")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anatomy", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each row")
    seconds = parser.parse_args().seconds
    console, work = Console(), Work()
    table = Table("job", "by", "a round takes, ms", "processor time in it, ms", "of that", title="Where a round goes")
    with stage(["threads"]) as environ:
        os.environ.update(environ)
        importlib.reload(celery_app)  # which reads them
        from benchmarks.contestants import bare_celery, ours

        with ours.play(work) as mine, bare_celery.play(work, "threads") as bare:
            for job in (ROUND_TRIP, CHAINED):
                table.add_row(job, "somatize-worker", *_row(mine[job], seconds))
                table.add_row(job, "bare Celery, threads", *_row(bare[job], seconds))
            sampled = _sampled(mine[ROUND_TRIP], seconds)
    try:
        from benchmarks.contestants import ray_local

        with ray_local.play(work) as others:
            for job in (ROUND_TRIP, CHAINED):
                table.add_row(job, "Ray", *_row(others[job], seconds))
    except ImportError as error:
        console.print(f"without Ray: {error}")
    console.print(table)
    if sampled:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in sampled)
        console.print(f"Of the samples of a round trip's worker in which it did not wait, by package: {shares}")


def _row(job: Job, seconds: float) -> tuple[str, str, str]:
    for _ in range(_WARM_ROUNDS):
        job()
    before = _processor_times()
    started, rounds = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        job()
        rounds += 1
    took = time.monotonic() - started
    spent: defaultdict[str, float] = defaultdict(float)
    for pid, (role, used) in _processor_times().items():
        spent[role] += used - before.get(pid, (role, 0.0))[1]
    each = {role: 1000 * used / rounds for role, used in spent.items() if used > 0.01 * took}
    parts = ", ".join(f"{role} {used:.2f}" for role, used in sorted(each.items(), key=lambda item: -item[1]))
    return f"{1000 * took / rounds:.2f}", f"{sum(each.values()):.2f}", parts


def _processor_times() -> dict[int, tuple[str, float]]:
    """Seconds of processor time of this process and all below it, with what each is."""
    me = psutil.Process()
    found = {me.pid: ("client", sum(me.cpu_times()[:2]))}
    for process in me.children(recursive=True):
        try:
            found[process.pid] = _role(process), sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return found


def _role(process: psutil.Process) -> str:
    words = process.cmdline()
    line = " ".join(words)
    if "valkey" in line or "redis-server" in line:
        return "server"
    if "hosts/inside" in line:
        return "host"
    if any(mark in line for mark in ("somatize_worker.worker", "benchmarks.celery_app", "ray::")):
        return "worker"
    return Path(words[0]).name if words else process.name()


def _sampled(job: Callable[[], object], seconds: float) -> list[tuple[str, float]]:
    """Packages by their share of the worker's samples outside of waits; empty without py-spy."""
    program = shutil.which("py-spy")
    below = psutil.Process().children(recursive=True)
    workers = [one.pid for one in below if "-m somatize_worker.worker" in _line(one)]
    if program is None or not workers:
        return []
    with tempfile.NamedTemporaryFile("r") as file:
        command = [
            program,
            "record",
            "--duration",
            f"{seconds:.0f}",
            "--rate",
            "500",
            "--format",
            "raw",
            "--nonblocking",
        ]
        sampling = subprocess.Popen(
            [*command, "--output", file.name, "--pid", str(workers[-1])],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while sampling.poll() is None:
            job()
        counts: Counter[str] = Counter()
        for line in file:
            stack, _, count = line.rpartition(" ")
            if not any(wait in stack.rpartition(";")[2] for wait in _WAITS):
                packages = _PACKAGE.findall(stack)
                counts[packages[-1] if packages else "other"] += int(count)
    total = sum(counts.values()) or 1
    return [(name, count / total) for name, count in counts.most_common()]


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


if __name__ == "__main__":
    main()
