"""Names of the ledger's keys and channels.

The scripts make the same names (``scripts/common.lua``); those here are for what is read or watched from Python.

    soma:plan:<id>       hash     the record
    soma:plans           zset     plan -> created (ms)
    soma:queued          zset     plan -> last wake-up (ms)
    soma:delayed         zset     plan -> due (ms): queued plans whose retry has to wait
    soma:leases          zset     plan -> lease expiry (ms)
    soma:deadlines       zset     plan -> deadline (ms), for plans with a timeout that have started
    soma:finished        zset     plan -> record expiry (ms)
    soma:cancelling      zset     plans that ended while children below them are still to be cancelled
    soma:log:<root>      list     texts of events, JSON, one a line; their numbers follow from their places
    soma:output:<root>   list     printed lines
    soma:journal:<id>    hash     path -> packed entry
    soma:children:<id>   set      unfinished children
    soma:family:<root>   set      all plans below a root that there ever were
    soma:watchers:<id>   set      reply channels
    soma:store           string   the cluster's store, while there are workers (expires)
    soma:worker:<id>     string   a live worker's packed registration (expires)
    soma:workers         set      worker ids
    soma:sweeper         string   who sweeps (expires)
"""

from __future__ import annotations

from typing import Final

PLANS: Final = "soma:plans"
QUEUED: Final = "soma:queued"
DELAYED: Final = "soma:delayed"
LEASES: Final = "soma:leases"
DEADLINES: Final = "soma:deadlines"
ENDED: Final = "soma:finished"
CANCELLING: Final = "soma:cancelling"
WORKERS: Final = "soma:workers"
SWEEPER: Final = "soma:sweeper"
STORE: Final = "soma:store"
REGISTRIES: Final = (PLANS, QUEUED, DELAYED, LEASES, DEADLINES, ENDED, CANCELLING, WORKERS)
"""Keys that never expire; their entries are removed when they are over."""

WORKER_EVENTS: Final = "soma:events:workers"
"""Channel of the workers' own messages (Register, Heartbeat)."""

_PRIORITY_SEPARATOR: Final = "\x06\x16"
_PRIORITY_STEPS: Final = (0, 3, 6, 9)
LIST_SUFFIXES: Final = tuple(f"{_PRIORITY_SEPARATOR}{step}" if step else "" for step in _PRIORITY_STEPS)
"""A Celery queue is several Redis lists, one for each priority step: the queue's name and these endings.
Kombu's defaults (``kombu.transport.redis``: ``sep`` and ``priority_steps``)."""


def plan(plan_id: str) -> str:
    return f"soma:plan:{plan_id}"


def log(root: str) -> str:
    return f"soma:log:{root}"


def output(root: str) -> str:
    return f"soma:output:{root}"


def journal(plan_id: str) -> str:
    return f"soma:journal:{plan_id}"


def children(plan_id: str) -> str:
    return f"soma:children:{plan_id}"


def family(root: str) -> str:
    return f"soma:family:{root}"


def watchers(plan_id: str) -> str:
    return f"soma:watchers:{plan_id}"


def worker(worker_id: str) -> str:
    return f"soma:worker:{worker_id}"


def events_channel(root: str) -> str:
    """Channel of a root plan's events: JSON of the protocol's Event message plus ``seq``."""
    return f"soma:events:{root}"


def job_channel(job_id: str) -> str:
    """Channel of a job's progress: JSON of the protocol's JobProgress message plus ``seq``."""
    return f"soma:jobs:{job_id}"


def output_channel(root: str) -> str:
    """Channel of a root plan's printed lines, one a message."""
    return f"soma:output:{root}"


def control_channel(worker_id: str) -> str:
    """Channel of packed orders to one worker: ``{"cancel": plan_id}``."""
    return f"soma:control:{worker_id}"


def reply_channel(client_id: str) -> str:
    """Channel on which a client hears of the end of its plans: packed ``{"plan_id", "state", "result"}``."""
    return f"soma:reply:{client_id}"


def celery_result(task_id: str) -> str:
    """The key that Celery's Redis result backend reads, and the channel that it listens to."""
    return f"celery-task-meta-{task_id}"
