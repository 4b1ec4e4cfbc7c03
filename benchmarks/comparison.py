"""Which contestants play which jobs, how often, and what this package is to reach."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks import work
from benchmarks.player import Failed, Player
from benchmarks.rounds import Effort, Score, take_turns
from benchmarks.stage import huge_pages, stage
from benchmarks.work import Work
from somatize_worker.settings import Settings

OURS: Final = "somatize-worker"
SILENT: Final = "somatize-worker, events off"
BARE: Final = "bare Celery, threads"
PREFORK: Final = "bare Celery, prefork"
DASK: Final = "Dask distributed"
RAY: Final = "Ray"
HUGE: Final = "somatize-worker, store on huge pages"
NUMPY: Final = "numpy alone, in memory"
FILES: Final = "numpy alone, same copies through files"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """``ours`` is to be at most ``factor`` × the other's median (or, of a maximum, that many units)."""

    other: str
    factor: float


@dataclass(frozen=True)
class Comparison:
    """One job: who plays it, and how it is shown.

    ``unit`` is ``ms``, ``s``, ``items/s`` (values are then seconds for all items) or ``MB`` (no time at all).
    """

    title: str
    job: str
    players: tuple[str, ...]
    effort: Effort
    targets: tuple[Target, ...] = ()
    unit: str = "ms"
    jobs: Mapping[str, str] | None = None
    """Other jobs for some players."""
    limit: float | None = None
    """A target of its own, in the unit, for values that are compared with nobody's."""
    durable: bool = False
    """Against a server that keeps an append-only file."""
    note: str = ""

    def job_of(self, player: str) -> str:
        """What this player does."""
        return (self.jobs or {}).get(player, self.job)


@dataclass(frozen=True)
class Result:
    """A comparison and its scores, in the order of its players."""

    comparison: Comparison
    scores: tuple[Score, ...]
    seconds: float


_CLUSTERS: Final = (BARE, DASK, RAY)

COMPARISONS: Final[dict[str, Comparison]] = {
    "round-trip": Comparison(
        "round trip of a warm one-node plan",
        work.ROUND_TRIP,
        (OURS, BARE, PREFORK, DASK, RAY),
        Effort(turns=400, seconds=12, warm=20),
        (Target(BARE, 1.25), Target(DASK, 1.0), Target(RAY, 1.0)),
        note="One at a time, the contestants in turn.",
    ),
    "back-to-back": Comparison(
        "round trips one right after the other",
        work.ROUND_TRIP,
        (OURS, BARE, PREFORK, DASK, RAY),
        Effort(turns=20, seconds=12, burst=25),
        (Target(BARE, 1.25), Target(DASK, 1.0), Target(RAY, 1.0)),
        note="25 in a row, then the next contestant.",
    ),
    "chain": Comparison(
        "a chain of 100 small nodes",
        work.CHAINED,
        (OURS, BARE, DASK, RAY),
        Effort(turns=10, seconds=12, burst=4),
        tuple(Target(name, 1 / 50) for name in _CLUSTERS),
        note="bare Celery: a canvas chain; Dask and Ray: a task for each node, on the one before. Four in a row.",
    ),
    "tensor": Comparison(
        "an 80 MB float64 tensor in, doubled, and out",
        work.TENSOR,
        (OURS, HUGE, BARE, DASK, RAY, FILES, NUMPY),
        Effort(turns=15, seconds=14),
        (Target(RAY, 0.6), Target(FILES, 2.0)),
        note="bare Celery: pickled; Dask: scattered; Ray: put. The client sums the result. Files lie in shared memory, "
        "mapped, as this package's are. Making and mapping their pages, 4 KB each, takes most of the time: a tmpfs "
        "mounted with `huge=within_size` has larger ones. Ray's store uses its pages again.",
    ),
    "map": Comparison(
        "a small function over 10,000 items",
        work.MAPPED,
        (OURS, BARE, PREFORK, DASK, RAY),
        Effort(turns=3, seconds=10, warm=0),
        tuple(Target(name, 1 / 5) for name in _CLUSTERS),
        unit="items/s",
        note="bare Celery: a group; Dask: Client.map; Ray: a task for each item.",
    ),
    "map-batched": Comparison(
        "the same, where the others are told to send items in batches",
        work.MAPPED_IN_BATCHES,
        (OURS, BARE, PREFORK, DASK, RAY),
        Effort(turns=6, seconds=5),
        unit="items/s",
        jobs={OURS: work.MAPPED},
        note="bare Celery: chunks; Dask: a bag; Ray: its multiprocessing Pool. No target.",
    ),
    "memory": Comparison(
        "growth of the worker process while a 1 GB tensor passes",
        work.MEMORY,
        (OURS,),
        Effort(turns=3, seconds=30, warm=1),
        unit="MB",
        limit=50.0,
    ),
    "events": Comparison(
        "events on against events off, a chain of 100 nodes",
        work.CHAINED,
        (OURS, SILENT),
        Effort(turns=60, seconds=10, burst=5, warm=2),
        (Target(SILENT, 1.1),),
        jobs={SILENT: work.CHAINED_SILENTLY},
    ),
    "durability": Comparison(
        "what durability costs: a one-node plan with its ledger, on a server that keeps an append-only file",
        work.ROUND_TRIP,
        (OURS, BARE),
        Effort(turns=300, seconds=10, warm=20),
        durable=True,
    ),
}


def compare(names: Sequence[str], *, quick: bool, tell: Tell) -> list[Result]:
    """Run the comparisons in their order, on as few starts as possible."""
    chosen = [COMPARISONS[name] for name in COMPARISONS if name in names]
    if quick:
        chosen = [replace(comparison, effort=comparison.effort.quick()) for comparison in chosen]
    results: list[Result] = []
    for durable in (False, True):
        group = [comparison for comparison in chosen if comparison.durable is durable]
        if group:
            results += _run(group, durable, tell)
    return results


def _run(group: Sequence[Comparison], durable: bool, tell: Tell) -> Iterator[Result]:
    names = {name for comparison in group for name in comparison.players}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if durable else None
        players, failures = stack.enter_context(_players(names, folder, tell))
        for comparison in group:
            started = time.monotonic()
            playing = [players[name] for name in comparison.players if name in players]
            jobs = {player.name: comparison.job_of(player.name) for player in playing}
            scores = {score.name: score for score in take_turns(playing, jobs, comparison.effort, tell)}
            for name in comparison.players:
                scores.setdefault(name, Score(name, failure=failures.get(name, "")))
            yield Result(comparison, tuple(scores[name] for name in comparison.players), time.monotonic() - started)


@contextmanager
def _players(names: set[str], folder: Path | None, tell: Tell) -> Iterator[tuple[dict[str, Player], dict[str, str]]]:
    """The players that are ready, by name, and why the others are not."""
    data = Work()
    pools = [pool for name, pool in ((BARE, "threads"), (PREFORK, "prefork")) if name in names]
    tell("starting the server and its workers")
    with ExitStack() as on_huge_pages, stage(pools, folder=folder) as environ:
        made = {
            OURS: lambda: Player(OURS, "ours", data, environ),
            SILENT: lambda: Player(SILENT, "ours", data, environ),
            BARE: lambda: Player(BARE, "bare_celery", data, environ, pool="threads"),
            PREFORK: lambda: Player(PREFORK, "bare_celery", data, environ, pool="prefork"),
            DASK: lambda: Player(DASK, "dask_distributed", data),
            RAY: lambda: Player(RAY, "ray_local", data),
            FILES: lambda: Player(FILES, "numpy_alone", data, through_files=True),
            NUMPY: lambda: Player(NUMPY, "numpy_alone", data, through_files=False),
        }
        players, failures = {}, {}
        if HUGE in names:
            try:
                elsewhere = on_huge_pages.enter_context(huge_pages())
            except Failed as failure:
                failures[HUGE] = str(failure)
            else:
                settings = Settings(store=f"file://{elsewhere}")
                theirs = on_huge_pages.enter_context(stage([], settings=settings))
                made[HUGE] = lambda: Player(HUGE, "ours", data, theirs)
        try:
            for name in [name for name in made if name in names]:
                tell(f"starting {name}")
                players[name] = made[name]()
            for name, player in list(players.items()):
                try:
                    player.wait_ready()
                except Failed as failure:
                    failures[name] = str(failure)
                    players.pop(name).stop()
            yield players, failures
        finally:
            for player in players.values():
                player.stop()
