"""``python -m somatize_worker.worker -Q gpu -n NAME -c SLOTS``: a worker that is ready sooner.

It is the worker that ``celery -A somatize_worker worker`` starts, without Celery's command line around it, which loads
all of its commands and plugins (Flower, an interactive shell) first, and takes as long for that as the worker itself.
:class:`~somatize_worker.local.LocalCluster` starts its workers so.
"""

from __future__ import annotations

import argparse

from celery.utils.nodenames import default_nodename, host_format

from somatize_worker.worker.application import app


def main() -> None:
    """Run a worker until it is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m somatize_worker.worker", description=main.__doc__)
    parser.add_argument("-Q", "--queues", required=True, help="tags to serve, as in gpu,training")
    parser.add_argument("-n", "--hostname", default=None, help="node name, as in gpu1@%%h; default: celery@HOST")
    parser.add_argument("-c", "--concurrency", type=int, default=None, help="plans at once; default: cores")
    options = parser.parse_args()
    worker = app.Worker(
        hostname=host_format(options.hostname or default_nodename(None)),
        queues=options.queues.split(","),
        concurrency=options.concurrency,
        loglevel="INFO",
        without_mingle=True,
        without_gossip=True,
        quiet=True,
    )
    worker.start()
    raise SystemExit(worker.exitcode)


if __name__ == "__main__":
    main()
