"""The filter hosts of one worker: warm ones for filters seen before, started spares for the others."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from somatize_worker.errors import HostNotReady
from somatize_worker.hosts.host import INSIDE, Home, Host
from somatize_worker.hosts.limits import Limits
from somatize_worker.hosts.nursery import Nursery
from somatize_worker.hosts.process import Launch
from somatize_worker.settings import Settings, passed_on

SPARE_HOMES: Final = 4  # environments for which spares are kept: the most recently used ones
STOP_GRACE_S: Final = 2.0  # how long a host that is not needed may take to end by itself
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_log = logging.getLogger(__name__)


class HostPool:
    """Hands out hosts. All methods may be called from any thread.

    Args:
        settings: ``spare_hosts``, ``idle_hosts``, ``host_ready_timeout_s``, ``memory_limit_bytes``,
            ``log_limit_bytes``, ``host_env``.
        store_folder: where the data store's files lie on this machine; mapping them costs a host nothing.
        worker_id: for log lines.
        inside: the program that a host runs.
    """

    def __init__(self, settings: Settings, store_folder: Path, worker_id: str, *, inside: Path = INSIDE) -> None:
        self.nursery = Nursery(store_folder)
        self._settings = settings
        self._worker_id = worker_id
        self._inside = inside
        self._busy: set[Host] = set()
        self._idle: deque[Host] = deque()  # least recently used first
        self._spares: OrderedDict[Home, deque[Host]] = OrderedDict()  # likewise
        self._leaving: list[tuple[Host, float]] = []
        self._lock = threading.Lock()
        self._closed = False
        self.nursery.watch.every_time(self.tidy)

    def prepare(self, python: Path | None = None, environ: Mapping[str, str] = _NOTHING) -> None:
        """Start the spares of an environment (default: this interpreter's own) without waiting for them."""
        self._replenish(Home.of(python or Path(sys.executable), environ))

    def acquire(self, code: str, python: Path | None = None, environ: Mapping[str, str] = _NOTHING) -> Host:
        """A ready host of this environment that has run nothing, or nothing but the same filters.

        Args:
            code: digest of the filters; hosts are kept warm for it.
            python: the environment's interpreter; default: the worker's own.
            environ: variables that the host gets beside the inherited ones.

        Raises:
            HostNotReady: the environment's hosts do not start; the message has what they printed.
        """
        home = Home.of(python or Path(sys.executable), environ)
        host = self._take_idle(code, home) or self._take_spare(home) or self._fresh(home)
        host.begin(code)
        self._replenish(home)
        return host

    def release(self, host: Host, *, reuse: bool) -> None:
        """Give a host back, once, whatever became of it.

        With ``reuse`` it is kept for the same filters, if it is alive, silent and has no child processes left. Say
        False unless the host itself reported that it is clean (no threads left behind).
        """
        keep = reuse and host.idle() and host.alone()
        with self._lock:
            self._busy.discard(host)
            keep = keep and not self._closed
            if keep:
                self._idle.append(host)
            surplus = [self._idle.popleft() for _ in range(len(self._idle) - self._settings.idle_hosts)]
        self._dismiss([*surplus] if keep else [*surplus, host])

    def close(self) -> None:
        """Kill every host, busy ones too (who supervises them gets HostDied and gives them back)."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            hosts = [*self._idle, *(host for spares in self._spares.values() for host in spares)]
            hosts += [host for host, _ in self._leaving]
            self._idle.clear()
            self._spares.clear()
            self._leaving.clear()
        self.nursery.close()
        for host in hosts:
            host.close()

    def counts(self) -> dict[str, int]:
        """How many hosts are ``busy``, ``idle`` and ``spare``."""
        with self._lock:
            spares = sum(len(hosts) for hosts in self._spares.values())
            return {"busy": len(self._busy), "idle": len(self._idle), "spare": spares}

    def interpreters(self) -> set[Path]:
        """Interpreters whose environment is in use by some host and must not be removed."""
        with self._lock:
            hosts = [*self._busy, *self._idle, *(host for host, _ in self._leaving)]
            return {host.home.python for host in hosts} | {home.python for home in self._spares}

    def tidy(self) -> None:
        """Let go of hosts that died or were told to stop, and of idle ones that a left-behind process lives in.

        Called twice a second by the nursery's watch.
        """
        now = time.monotonic()
        with self._lock:
            gone = [host for host in self._idle if not (host.idle() and host.alone())]
            self._idle = deque(host for host in self._idle if host not in gone)
            for spares in self._spares.values():
                dead = [host for host in spares if host.exited()]
                gone += dead
                for host in dead:
                    spares.remove(host)
            ended = [host for host, deadline in self._leaving if now > deadline or host.exited()]
            self._leaving = [(host, deadline) for host, deadline in self._leaving if host not in ended]
        for host in [*gone, *ended]:
            host.close()

    def _take_idle(self, code: str, home: Home) -> Host | None:
        dead: list[Host] = []
        found = None
        with self._lock:
            for host in reversed(self._idle):
                if host.code == code and host.home == home:
                    if host.idle():
                        found = host
                        break
                    dead.append(host)
            self._idle = deque(host for host in self._idle if host is not found and host not in dead)
            if found is not None:
                self._busy.add(found)
        self._dismiss(dead)
        return found

    def _take_spare(self, home: Home) -> Host | None:
        """A spare that is, or becomes, ready; None without one. One that died is no error: a fresh one may do."""
        while True:
            with self._lock:
                spares = self._spares.get(home)
                host = spares.popleft() if spares else None
                if host is None:
                    return None
                self._busy.add(host)
            try:
                host.wait_ready(self._settings.host_ready_timeout_s)
            except HostNotReady as error:
                _log.warning("a spare host of worker %s was lost: %s", self._worker_id, error)
                self._forget(host)
            else:
                if host.idle():
                    return host
                self._forget(host)

    def _fresh(self, home: Home) -> Host:
        host = self._start(home)
        with self._lock:
            self._busy.add(host)
        try:
            host.wait_ready(self._settings.host_ready_timeout_s)
        except BaseException:
            self._forget(host)
            raise
        return host

    def _forget(self, host: Host) -> None:
        with self._lock:
            self._busy.discard(host)
        host.close()

    def _replenish(self, home: Home) -> None:
        """Start the spares that are missing, and dismiss those of environments not used for long."""
        with self._lock:
            if self._closed:
                return
            spares = self._spares.setdefault(home, deque())
            self._spares.move_to_end(home)
            try:
                while len(spares) < self._settings.spare_hosts:
                    spares.append(self._start(home))
            except HostNotReady as error:  # who needs it will hear of it; this one has a host
                _log.warning("worker %s has no spare host: %s", self._worker_id, error)
            surplus: list[Host] = []
            while len(self._spares) > SPARE_HOMES:
                surplus += self._spares.popitem(last=False)[1]
        self._dismiss(surplus)

    def _start(self, home: Home) -> Host:
        launch = Launch(
            argv=[str(home.python), "-u", str(self._inside)],
            environ={**passed_on(self._settings.host_env), **dict(home.environ)},
            limits=Limits(memory_bytes=self._settings.memory_limit_bytes),
            output_limit_bytes=self._settings.log_limit_bytes,
        )
        return Host(self.nursery, launch, home)

    def _dismiss(self, hosts: list[Host]) -> None:
        """Ask hosts to end, so that what they registered for their exit happens; :meth:`tidy` sees to it."""
        for host in hosts:
            host.ask_to_stop()
        deadline = time.monotonic() + STOP_GRACE_S
        with self._lock:
            closed = self._closed
            if not closed:
                self._leaving += [(host, deadline) for host in hosts]
        if closed:
            for host in hosts:
                host.close()
