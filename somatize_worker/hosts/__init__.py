"""Isolated processes, seen from the worker: filter hosts and what Python jobs run in.

Names are imported when first used: ``frames`` and ``inside`` are part of what filter hosts themselves load, in
environments that have nothing of the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from somatize_worker.hosts.certificate import describe
    from somatize_worker.hosts.environments import Environments
    from somatize_worker.hosts.frames import Channel
    from somatize_worker.hosts.host import WAKE, Host, Wake
    from somatize_worker.hosts.limits import Limits
    from somatize_worker.hosts.nursery import Nursery
    from somatize_worker.hosts.output import OutputLine
    from somatize_worker.hosts.pool import HostPool
    from somatize_worker.hosts.process import Child, Launch

_HOME = {
    "WAKE": "host",
    "Channel": "frames",
    "Child": "process",
    "Environments": "environments",
    "Host": "host",
    "HostPool": "pool",
    "Launch": "process",
    "Limits": "limits",
    "Nursery": "nursery",
    "OutputLine": "output",
    "Wake": "host",
    "describe": "certificate",
}

__all__ = [
    "WAKE",
    "Channel",
    "Child",
    "Environments",
    "Host",
    "HostPool",
    "Launch",
    "Limits",
    "Nursery",
    "OutputLine",
    "Wake",
    "describe",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
