"""A contestant in a process of its own: started once, then told to play a few rounds whenever it is its turn.

What it and its workers print goes to a file, of which the last line is shown if the process is lost.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any, Final

from benchmarks.work import Job, Work

_START_S: Final = 120.0
_ROUNDS_S: Final = 180.0
_STOP_S: Final = 20.0


class Failed(Exception):
    """A contestant that cannot go on, or not with this job; says why."""


class Player:
    """Talks to one contestant.

    Args:
        name: as it appears in the tables.
        module: in :mod:`benchmarks.contestants`.
        environ: variables for its process.
        options: for the module's ``play``.
    """

    def __init__(
        self, name: str, module: str, work: Work, environ: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        self.name = name
        self._pipe, theirs = multiprocessing.Pipe()
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the player
        arguments = (theirs, module, work, dict(environ or {}), options, DupFd(self._printed.fileno()))
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=arguments)
        self._process.start()
        theirs.close()
        self.jobs: list[str] = []

    def wait_ready(self) -> None:
        """Wait until it can play.

        Raises:
            Failed: it cannot, and why.
        """
        self.jobs = self._answer(_START_S)

    def play(self, job: str, rounds: int) -> list[float]:
        """Play some rounds of a job; seconds of each, or what it measured itself.

        Raises:
            Failed: the result was wrong, it raised, or it took too long.
        """
        self._pipe.send((job, rounds))
        times: list[float] = self._answer(_ROUNDS_S)
        return times

    def stop(self) -> None:
        """Let it shut down; end it if it does not."""
        with contextlib.suppress(OSError):  # it is gone already
            self._pipe.send(None)
        self._process.join(_STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._printed.close()

    def _last_line(self) -> str:
        self._printed.seek(0)
        *_, last = self._printed.read().decode(errors="replace").splitlines() or ["(it printed nothing)"]
        return last

    def _answer(self, timeout_s: float) -> Any:
        try:
            if not self._pipe.poll(timeout_s):
                self._process.kill()
                raise Failed(f"no answer within {timeout_s:g} s")
            error, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(_STOP_S)
            raise Failed(f"its process ended with code {self._process.exitcode}: {self._last_line()}") from None
        if error:
            raise Failed(error)
        return answer


def _serve(
    pipe: Connection, module: str, work: Work, environ: dict[str, str], options: dict[str, Any], printed: Any
) -> None:
    file = printed.detach()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environ)
    try:
        play = importlib.import_module(f"benchmarks.contestants.{module}").play
        with play(work, **options) as jobs:
            pipe.send(("", list(jobs)))
            while (order := pipe.recv()) is not None:
                job, rounds = order
                pipe.send(_play(jobs[job], rounds))
    except Exception as error:
        pipe.send((_why(error), None))


def _play(job: Job, rounds: int) -> tuple[str, list[float] | None]:
    times = []
    try:
        for _ in range(rounds):
            started = time.perf_counter()
            measured = job()
            times.append(time.perf_counter() - started if measured is None else measured)
    except Exception as error:
        return _why(error), None
    return "", times


def _why(error: Exception) -> str:
    first, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first}"[:200]
