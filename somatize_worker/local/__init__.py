"""A cluster on this machine, for laptops, notebooks, tests and ``somatize up``."""

from somatize_worker.local.cluster import LocalCluster
from somatize_worker.local.process import WorkerProcess

__all__ = ["LocalCluster", "WorkerProcess"]
