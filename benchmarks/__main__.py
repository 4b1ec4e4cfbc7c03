"""Side by side with a bare Celery task, a Celery canvas, Dask distributed and Ray, in one run on one machine.

    python -m benchmarks                  all of it, about five minutes; writes benchmarks/RESULTS.md
    python -m benchmarks round-trip map   some of it; only prints
    python -m benchmarks --quick          a tenth of the rounds; only prints

Every contestant has a process of its own and as many workers (or threads in its worker) as there are cores. They take
turns. Functions, pipelines and data exist before the first round, warm-up rounds are not counted, and every result is
read and checked. What a contestant cannot do is said in its row. Needs ``benchmarks/requirements.txt``; a contestant
that is not installed fails in its row.

More, each with ``--help``: ``python -m benchmarks.anatomy``, ``.inline_limit``, ``.jobs`` and
``python -m benchmarks.soak``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console

from benchmarks import machine, report
from benchmarks.comparison import COMPARISONS, compare
from benchmarks.stage import ROOT

RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> None:
    """Measure, print, and write the results of a full run down."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(COMPARISONS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--write", type=Path, help=f"where to write the tables; default, for a full run: {RESULTS}")
    options = parser.parse_args()
    if unknown := set(options.names) - set(COMPARISONS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(COMPARISONS)}")
    # What a worker or a contestant unpickles by name is found there.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])

    console = Console()
    heading = machine.describe()
    with console.status("starting") as status:
        results = compare(options.names or list(COMPARISONS), quick=options.quick, tell=status.update)
    report.show(results, console)
    path = options.write or (None if options.names or options.quick else RESULTS)
    if path is not None:
        report.write(results, heading, path)
        console.print(f"written to {path}")


if __name__ == "__main__":
    main()
