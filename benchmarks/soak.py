"""Thousands of plans of all kinds, while workers, hosts and the server are killed, paused and cut off at random.

    python -m benchmarks.soak                         10,000 plans, two minutes; writes benchmarks/RESULTS-soak.md
    python -m benchmarks.soak --seconds 20 --plans 500 --seed 7

Bounded in time, on the loopback interface only. Every plan's result is read and checked, and so is what is left at the
end: no result lost, none written twice, no process, key or file left behind, and memory that stays flat. The exit
status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.soaking import leaks
from benchmarks.soaking.chaos import Chaos
from benchmarks.soaking.client import Client, Ends
from benchmarks.soaking.requests import requests
from somatize_worker import LocalCluster
from somatize_worker.settings import Settings
from somatize_worker.stores import open_store

RESULTS = Path(__file__).with_name("RESULTS-soak.md")


@dataclass(frozen=True)
class Soak:
    """How long, how many, and how the cluster is set. Whatever comes last, time or plans, decides the end.

    ``pause_s``: from one blow to the next, at least and at most. ``expire``: wait until the records have expired, and
    look whether a key is left.
    """

    seconds: float = 120.0
    plans: int = 10_000
    seed: int = 1
    lease_s: float = 3.0
    result_ttl_s: float = 60.0
    pause_s: tuple[float, float] = (0.5, 3.0)
    expire: bool = True


@dataclass
class Report:
    """Figures, and what is wrong."""

    figures: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, what: str, value: object) -> None:
        """One more figure."""
        self.figures.append((what, f"{value:,}" if isinstance(value, int) else str(value)))

    def check(self, what: str, wrong: Sequence[str]) -> None:
        """A promise, and whether it was kept."""
        self.add(what, "yes" if not wrong else f"NO: {len(wrong)}")
        self.problems += [f"not so: {what}: {text}" for text in wrong[:20]]


def soak(options: Soak) -> Report:
    """Run it; the report says what happened."""
    report, run = Report(), uuid.uuid4().hex
    os.environ[leaks.MARK] = run
    settings = Settings(
        lease_s=options.lease_s,
        max_attempts=1000,  # the chaos hits the same plan again and again, and no plan is at fault
        grace_s=10.0,
        idle_hosts=12,  # as many as there are kinds of plans: what is measured is not the start of interpreters
        result_ttl_s=options.result_ttl_s,
        host_env=(leaks.MARK,),
    )
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="soma-soak-", dir=shared if shared.is_dir() else None) as folder:
        try:
            with LocalCluster({"cpu": 2, "gpu": 1}, slots=2, settings=settings, folder=folder) as cluster:
                _run(cluster, options, report, run, Path(folder))
        finally:
            del os.environ[leaks.MARK]
    left = leaks.gone(lambda: leaks.processes(run), 10.0)
    report.check("no process is left when the cluster is closed", [str(process) for process in left])
    return report


def _run(cluster: LocalCluster, options: Soak, report: Report, run: str, folder: Path) -> None:
    notes = folder / "notes"
    notes.mkdir()
    with cluster.coordinator() as c:
        empty_bytes = leaks.used_bytes(c.ledger.client)
        client = Client(c, requests(c, options.seed, notes), backlog=options.plans)
        ends, sampler = Ends(cluster.settings.redis_url), leaks.Sampler(cluster)
        chaos = Chaos(cluster, options.seed, options.pause_s)
        started = time.monotonic()
        chaos.start()
        while client.sent.total() < options.plans or time.monotonic() < started + options.seconds:
            client.send()
        chaos.stop()
        harmed_s = time.monotonic() - started
        client.finish()
        took_s = time.monotonic() - started
        sampler.close()
        _tell(report, client, chaos, harmed_s, took_s)
        _look(report, client, ends, chaos)
        _look_for_leaks(report, cluster, options, run, sampler.samples, empty_bytes)
        ends.close()


def _tell(report: Report, client: Client, chaos: Chaos, harmed_s: float, took_s: float) -> None:
    report.add("plans", client.sent.total())
    for kind, count in client.sent.most_common():
        report.add(f"– {kind}", count)
    report.add("harm done for", f"{harmed_s:.0f} s")
    report.add("all results after", f"{took_s:.0f} s, {client.collected / took_s:.0f} plans/s")
    for what, count in sorted(chaos.done.items()):
        report.add(f"– {what}", count)
    report.add("– workers started instead", chaos.started)
    for what, count in sorted(client.counts.items()):
        report.add(what, count)
    for how, count in sorted(client.ended.items()):
        report.add(f"plans that {'were ' if how in ('lost', 'cancelled') else ''}{how}", count)
    more = sum(count for epoch, count in client.attempts.items() if epoch > 1)
    report.add("plans leased more than once", f"{more:,} (most: {max(client.attempts, default=0)} times)")


def _look(report: Report, client: Client, ends: Ends, chaos: Chaos) -> None:
    report.check("every plan has the result that it should have", client.problems)
    twice = [f"{plan_id}: {count} times" for plan_id, count in ends.counts.items() if count > 1]
    report.check("no result was written twice", twice)
    report.add("ends seen to be written", ends.counts.total())
    report.check("the harness did what it meant to", chaos.failures)


def _look_for_leaks(
    report: Report, cluster: LocalCluster, options: Soak, run: str, samples: leaks.Samples, empty_bytes: int
) -> None:
    with leaks.connect(cluster) as server:
        report.check("no queue, lease or message is left", leaks.gone(lambda: leaks.unfinished(server)))
        report.check("every key expires", leaks.immortal(server))
        workers = [worker.pid for worker in cluster.workers if worker.running]
        report.check("no process has lost its worker", leaks.gone(lambda: leaks.orphans(run, workers), 10.0))
        if options.expire:
            left = leaks.gone(lambda: leaks.remaining(server), options.result_ttl_s + 20)
            report.check("no key is left when the records have expired", left)
            used = leaks.used_bytes(server)
            report.add("memory in use by the server then", f"{used / 1e6:.1f} MB; at the start {empty_bytes / 1e6:.1f}")
            report.check("the server's memory is free again", leaks.kept(empty_bytes, used))
    store = open_store(cluster.settings)
    root = store.workspace()
    count, size, partial = leaks.stored(root)
    report.add("files in the store", f"{count:,} ({size / 1e6:.0f} MB), {partial} of them incomplete")
    for name, values in (("first worker", samples.worker), ("server", samples.server)):
        before, after = leaks.growth(values)
        report.add(
            f"memory of the {name}", f"{before / 1e6:.0f} → {after / 1e6:.0f} MB, peak {max(values) / 1e6:.0f} MB"
        )
        if name == "first worker":
            report.check(f"memory of the {name} stays flat", [] if leaks.is_flat(values) else [f"{before} → {after}"])


def show(report: Report, console: Console) -> None:
    """Print the table, and what is wrong."""
    table = Table("what", "how much", title="soak", title_justify="left")
    for what, value in report.figures:
        style = "red" if value.startswith("NO") else "green" if value == "yes" else None
        table.add_row(what, value, style=style)
    console.print(table)
    for problem in report.problems:
        console.print(problem, style="red", markup=False, highlight=False)


def write(report: Report, options: Soak, path: Path) -> None:
    """Write the table as Markdown."""
    lines = ["# Soak", "", "Written by `python -m benchmarks.soak`.", ""]
    lines += [f"- {line}" for line in machine.describe()]
    lines += [f"- seed {options.seed}, a lease of {options.lease_s:g} s, three workers with two slots each", ""]
    lines += ["| what | how much |", "| --- | --- |"]
    lines += [f"| {what} | {value} |" for what, value in report.figures]
    lines += ["", *(f"- {problem}" for problem in report.problems)]
    path.write_text("\n".join(lines).rstrip() + "\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Soak()
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="how long harm is done, at least")
    parser.add_argument("--plans", type=int, default=defaults.plans, help="how many, at least")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--write", type=Path, help=f"where to write the table; default, for a full run: {RESULTS}")
    given = parser.parse_args()
    options = Soak(seconds=given.seconds, plans=given.plans, seed=given.seed)
    report = soak(options)
    show(report, Console())
    full = options.seconds >= defaults.seconds and options.plans >= defaults.plans
    if given.write or full:
        write(report, options, given.write or RESULTS)
    raise SystemExit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
