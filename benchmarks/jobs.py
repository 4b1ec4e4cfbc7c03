"""How long from handing over a Python job until the first line of its code runs?

    python -c    `python -c ...` in the job's environment: what no isolation can be faster than
    job          somatize_worker's JobRunner, with a function as entry point: all but the queue
    ray          a task with ``runtime_env={"pip": [...]}``, in a cluster that is already up

*warm*: the environment is there. A Ray worker process that served the same environment before may be used again; the
row *new process* keeps Ray from that, so that it does what a job gets. *cold*: nobody has asked for the environment
before, and nothing is cached: Ray runs pip with ``--no-cache-dir``, and uv gets an empty cache here. *cold, packages
cached* is what a job meets that changes its requirements by a line.

    python benchmarks/jobs.py [--rounds 20] [--cold-rounds 3]

Needs ``benchmarks/requirements.txt``; without ray its rows are left out, with a note.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from somatize_worker.hosts.environments import Environments
from somatize_worker.jobs import JobRunner
from somatize_worker.settings import Settings
from somatize_worker.stores.files import FileStore

PACKAGES = ["six==1.16.0", "idna==3.10"]
SOURCE = "import time\n\ndef main():\n    return time.time()\n"

WARM, COLD = "warm", "cold"

Rows = list[tuple[str, str, list[float]]]


def job(requirements: list[str]) -> dict[str, Any]:
    """A job whose result is the time at which its first line ran."""
    return {
        "job_id": "benchmark",
        "files": [{"path": "train.py", "content": SOURCE}],
        "requirements": "\n".join(requirements),
        "entry_point": "train:main",
    }


def until_first_line(run: Callable[[], float]) -> float:
    """Milliseconds from now to the time that the user's code returns. Both clocks are this machine's."""
    started = time.time()
    return (run() - started) * 1000


def make_runner(folder: Path) -> JobRunner:
    """A runner with environments and a store of its own."""
    settings = Settings(env_folder=str(folder / "envs"), job_folder=str(folder / "jobs"))
    return JobRunner(settings, FileStore(folder / "store", settings), "benchmark", Environments(settings))


def run_job(runner: JobRunner) -> float:
    """The time at which the job's first line ran."""
    outcome = runner.run(job(PACKAGES))
    assert outcome.success, outcome.error
    return float(outcome.metrics)


def measure_cold(folder: Path, rounds: int, *, cached: bool) -> list[float]:
    """A new environment each time; with ``cached`` uv has the packages already."""
    times = []
    for number in range(rounds):
        os.environ["UV_CACHE_DIR"] = str(folder / ("cache" if cached else f"cache{number}"))
        runner = make_runner(folder / f"{cached}{number}")
        times.append(until_first_line(lambda runner=runner: run_job(runner)))  # type: ignore[misc]
        runner.close()
    return times


def measure_jobs(folder: Path, rounds: int, cold_rounds: int) -> Rows:
    """Ours, and the bare interpreter in the same environment."""
    cold = measure_cold(folder, cold_rounds, cached=False)
    cached = measure_cold(folder, cold_rounds + 1, cached=True)[1:]
    runner = make_runner(folder / "warm")
    python = next(folder.glob("True*/envs/*/bin/python"))
    command = [str(python), "-c", "import time; print(repr(time.time()))"]

    def run_bare() -> float:
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    # In turns, so that a busy moment of the machine hits both.
    pairs = [(until_first_line(run_bare), until_first_line(lambda: run_job(runner))) for _ in range(rounds + 2)][2:]
    runner.close()
    return [
        ("python -c", WARM, [bare for bare, _ in pairs]),
        ("job", WARM, [ours for _, ours in pairs]),
        ("job", "cold, packages cached", cached),
        ("job", COLD, cold),
    ]


def measure_ray(rounds: int, cold_rounds: int) -> Rows:
    """Ray's, each kind in its own cluster."""
    import ray

    def first_line() -> float:
        return time.time()

    def start() -> None:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        ray.get(ray.remote(first_line).remote())  # the cluster is up

    cold, warm, fresh = [], [], []
    for _ in range(cold_rounds):
        start()
        task = ray.remote(first_line).options(runtime_env={"pip": PACKAGES})
        cold.append(until_first_line(lambda task=task: float(ray.get(task.remote()))))  # type: ignore[misc]
        ray.shutdown()
    start()
    task = ray.remote(first_line).options(runtime_env={"pip": PACKAGES})
    once = ray.remote(max_calls=1)(first_line).options(runtime_env={"pip": PACKAGES})
    ray.get([task.remote(), once.remote()])
    for number in range(rounds + 2):
        warm.append(until_first_line(lambda: float(ray.get(task.remote()))))
        if number < cold_rounds + 2:  # each takes seconds
            ray.get(once.remote())  # takes the idle process and ends it
            fresh.append(until_first_line(lambda: float(ray.get(once.remote()))))
    ray.shutdown()
    return [
        ("ray", "warm, process used again", warm[2:]),
        ("ray", "warm, new process", fresh[2:]),
        ("ray", COLD, cold),
    ]


def show(rows: Rows, console: Console) -> None:
    """A table of medians, with ratios to the job of the same kind."""
    medians = {(who, kind): statistics.median(values) for who, kind, values in rows}
    table = Table(title="milliseconds until the first line of user code runs (median, range)")
    for column in ("what", "environment", "median", "range", "to our job"):
        table.add_column(column, justify="left" if column in ("what", "environment") else "right")
    for who, kind, values in rows:
        ours = medians["job", kind if ("job", kind) in medians else WARM]
        table.add_row(
            who,
            kind,
            f"{medians[who, kind]:.1f}",
            f"{min(values):.1f} – {max(values):.1f}",
            f"{medians[who, kind] / ours:.2f} ×",
        )
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cold-rounds", type=int, default=3)
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_jobs(Path(folder), options.rounds, options.cold_rounds)
    try:
        rows += measure_ray(options.rounds, options.cold_rounds)
    except ImportError as error:
        console.print(f"without Ray ({error}): pip install -r benchmarks/requirements.txt")
    show(rows, console)


if __name__ == "__main__":
    main()
