"""All children of one worker: started by exec from one thread, drained, watched, and killed when the worker is."""

from __future__ import annotations

import os
import queue
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import TypeVar

from somatize_worker.errors import HostNotReady
from somatize_worker.hosts import family
from somatize_worker.hosts.limits import Watch
from somatize_worker.hosts.output import Output, Pump
from somatize_worker.hosts.process import Child, Launch
from somatize_worker.settings import passed_on

T = TypeVar("T")


class _Spawner:
    """The thread that starts children. It lives as long as they do: a parent-death signal comes when the *thread*
    that started a child ends (prctl(2), PR_SET_PDEATHSIG)."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="soma-spawner", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._calls.put(run)
        return future

    def close(self) -> None:
        self._calls.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


class Nursery:
    """Starts children and looks after them. Made when first needed, after any fork.

    Args:
        store_folder: the data store's folder on this machine, whose mapped files do not count as a child's memory.
    """

    def __init__(self, store_folder: Path | None = None) -> None:
        self.watch = Watch(store_folder)
        self.prefix = f"{secrets.token_hex(8)}."
        self._numbers = count(1)
        self._pump = Pump()
        self._spawner = _Spawner()
        self._children: set[Child] = set()
        self._lock = threading.Lock()
        self._guard: subprocess.Popen[bytes] | None = None
        self._closed = False

    def start(self, launch: Launch) -> Child:
        """Start a process. Its standard input is empty; its output is captured.

        Raises:
            HostNotReady: the program does not exist or cannot be executed, or the machine lacks processes or files.
        """
        return self.start_soon(launch).result()

    def start_soon(self, launch: Launch) -> Future[Child]:
        """As :meth:`start`, without waiting."""
        with self._lock:
            if self._closed:
                raise HostNotReady("this worker is stopping and starts no more processes")
            return self._spawner.call(lambda: self._start(launch))

    def close(self) -> None:
        """Kill and reap every child, and end the threads. Nothing can be started any more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            last = self._spawner.call(lambda: None)
        last.result()  # what was asked for before is started by now
        with self._lock:
            children = list(self._children)
        for child in children:
            child.kill_soon("worker stopped")
        for child in children:
            child.kill("worker stopped")
        self._spawner.close()
        self.watch.close()
        self._pump.close()
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait()

    def _start(self, launch: Launch) -> Child:
        self._keep_guard()
        mark = f"{self.prefix}{next(self._numbers)}"
        pipes: dict[str, tuple[int, int]] = {}
        try:
            for stream in ("stdout", "stderr"):
                pipes[stream] = os.pipe()
            popen = subprocess.Popen(
                list(launch.argv),
                env={**launch.environ, family.MARK: mark},
                cwd=launch.folder,
                stdin=subprocess.DEVNULL,
                stdout=pipes["stdout"][1],
                stderr=pipes["stderr"][1],
                pass_fds=launch.pass_fds,
                start_new_session=True,
            )
        except OSError as error:
            for reading, _ in pipes.values():
                os.close(reading)
            raise HostNotReady(
                f"{launch.argv[0]} cannot be started: {error}. Is it still there, and are there processes and open "
                "files left (ulimit -u, ulimit -n)?",
                argv=list(launch.argv),
            ) from error
        finally:
            for _, writing in pipes.values():
                os.close(writing)
        output = Output({stream: reading for stream, (reading, _) in pipes.items()}, launch.output_limit_bytes)
        child = Child(popen, mark, output, launch.limits, self._ended)
        with self._lock:
            self._children.add(child)
        self._pump.add(output)
        self.watch.add(child)
        return child

    def _ended(self, child: Child) -> None:
        self.watch.remove(child)
        self._pump.remove(child.output)
        with self._lock:
            self._children.discard(child)

    def _keep_guard(self) -> None:
        """A process that outlives us for a moment and kills what we leave behind, whatever ended us."""
        if self._guard is not None and self._guard.poll() is None:
            return
        # -I -S: a bare interpreter, in which nothing of the user's runs.
        argv = [sys.executable, "-I", "-S", family.__file__, self.prefix]
        try:
            self._guard = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=passed_on(),
                cwd="/",
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise HostNotReady(f"the guard of this worker's processes cannot be started: {error}", argv=argv) from error
