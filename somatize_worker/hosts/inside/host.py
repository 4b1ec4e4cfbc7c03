"""The process: set up to die with its worker, told what to run over its wire, one plan at a time.

Threads: the main one runs plans, because user code may insist on it. A reader takes frames in, so that the end of the
wire is noticed during long calls into C; a flusher sends events and journal entries while a plan runs.
"""

from __future__ import annotations

import _thread
import gc
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import cloudpickle  # noqa: F401  so that the first plan need not wait for it

from somatize_worker.errors import HostError, SomaError
from somatize_worker.hosts.frames import Channel
from somatize_worker.hosts.inside import system
from somatize_worker.hosts.inside.branches import Branches
from somatize_worker.hosts.inside.failures import Failure
from somatize_worker.hosts.inside.note import Note
from somatize_worker.hosts.inside.running import Run, Wire, failed, run_branch, run_plan
from somatize_worker.report import send_to

_TICK_S: Final = 0.02
_GRACE_S: Final = 0.05
_COLLECT_AFTER_S: Final = 1.0
_OWN_THREADS: Final = 2

Answer = Callable[[dict[str, Any]], None]


class Host:
    """One filter host (or helper of one), from its first frame to its last."""

    def __init__(self, channel: Channel, *, helper_note: Note | None = None) -> None:
        self._channel = channel
        self._is_helper = helper_note is not None
        self._helper_note = helper_note
        self._frames: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._answers: dict[int, Answer] = {}
        self._asked = 0
        self._asking = threading.Lock()
        self._ending = threading.Lock()
        self._watched: Run | None = None
        self._is_watching = threading.Event()
        self._kept: dict[tuple[str, bytes], Any] = {}
        self._branches = Branches(self._ask_later, self._fail_now)
        self._folder = os.getcwd()
        self._last_note: tuple[str | None, Note | None] = (None, None)

    def serve(self) -> None:
        """Say that this host is ready, then run what comes, until it is told to stop."""
        threading.Thread(target=self._read, name="soma-reader", daemon=True).start()
        threading.Thread(target=self._flush, name="soma-flusher", daemon=True).start()
        os.register_at_fork(after_in_child=self._leave_fork)
        gc.collect()
        gc.freeze()  # what is loaded now stays: later collections need not look at it
        self._send(["ready", {"pid": os.getpid(), "python": sys.version.split()[0]}])
        while (frame := self._frames.get())[0] != "stop":
            kind, request = frame
            started = time.monotonic()
            reply = run_branch(request, self._wire({})) if kind == "branch" else self._run(request)
            self._reply(reply)
            del reply, request, frame
            gc.collect(2 if time.monotonic() - started > _COLLECT_AFTER_S else 1)

    def _run(self, request: dict[str, Any]) -> list[Any]:
        return run_plan(request, self._wire(request), self._branches.begin)

    def _wire(self, request: dict[str, Any]) -> Wire:
        note = self._helper_note if self._is_helper else self._note(request.get("note"))
        if not request.get("keep"):
            self._kept.clear()
        return Wire(self._send, self._ask, self._watch, note, self._kept)

    def _note(self, path: str | None) -> Note | None:
        known, note = self._last_note
        if note is not None and path != known:
            note.close()
            note = None
        if path is not None and note is None:
            note = Note.at(path)
        if note is not None:
            note.clear()
        self._last_note = (path, note)
        return note

    def _reply(self, frame: list[Any]) -> None:
        self._restore_process()
        threads = _OWN_THREADS + self._branches.threads
        helpers = self._branches.pids
        clean = _settled(lambda: _thread._count() <= threads and not system.children(helpers))
        about_process = {"clean": clean, "helpers": helpers}
        with self._ending:
            try:
                self._send([frame[0], {**frame[1], **about_process}])
            except (HostError, TypeError) as error:  # too large for one frame, most likely
                failure = Failure.of(error if isinstance(error, SomaError) else HostError(str(error)))
                self._send(["failed", {**failure.to_dict(), "duration_ms": 0, "events": [], **about_process}])

    def _restore_process(self) -> None:
        """Undo what user code may have done to the process as a whole, and get out what it has printed."""
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            system.flush(stream)
        system.flush_c_streams()
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        try:
            os.chdir(self._folder)
        except OSError:  # the folder was removed: it is nobody's any more
            self._folder = "/"
            os.chdir(self._folder)

    def _fail_now(self, failure: Failure) -> None:
        """Another branch has failed while the main thread is in user code: end the plan, and this process with it."""
        with self._ending:
            run = self._watched
            if run is None:
                return
            kind, content = failed(run, failure)
            self._send([kind, {**content, "clean": False, "helpers": []}])
            system.end_group()

    # ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, frame: list[Any]) -> None:
        try:
            self._channel.send(frame)
        except OSError:
            self._end()

    def _read(self) -> None:
        while True:
            try:
                frame = self._channel.receive()
            except (EOFError, OSError):
                self._end()
            if frame is None:
                continue
            if frame[0] == "answer":
                _, number, answer = frame
                self._answers.pop(number)(answer)
            else:
                self._frames.put(frame)

    def _end(self) -> None:
        """The worker is gone (or, for a helper, its host): nothing of this may go on."""
        if self._is_helper:
            os._exit(1)
        system.end_group()

    def _leave_fork(self) -> None:
        """In a child that user code forked: the wire is not its own, and its end of it must not stay open."""
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nowhere, self._channel.fileno(), inheritable=False)
        os.close(nowhere)
        self._channel = _Forked()  # type: ignore[assignment]

    # ── questions to the worker ──────────────────────────────────────────────────────────────────────────────────

    def _ask(self, what: str, payload: dict[str, Any]) -> dict[str, Any]:
        answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._ask_later(what, payload, answers.put)
        answer = answers.get()
        if "error" in answer:
            raise SomaError.from_dict(answer["error"])
        return answer

    def _ask_later(self, what: str, payload: dict[str, Any], take: Answer) -> None:
        with self._asking:
            self._asked += 1
            number = self._asked
        self._answers[number] = take
        self._send(["ask", number, what, payload])

    # ── while a plan runs ────────────────────────────────────────────────────────────────────────────────────────

    def _watch(self, run: Run | None) -> None:
        self._watched = run
        if run is None:
            self._is_watching.clear()
            send_to(None)
        else:
            send_to(run.events.report)
            self._is_watching.set()

    def _flush(self) -> None:
        while True:
            self._is_watching.wait()
            time.sleep(_TICK_S)
            run = self._watched
            if run is not None and time.perf_counter_ns() - run.started_ns > _TICK_S * 5e8:
                run.events.tick()
                if entries := run.journal.take():
                    self._send(["journal", entries])


class _Forked:
    """The wire of a forked child: it has none."""

    def fileno(self) -> int:
        return -1

    def send(self, frame: Any) -> None:
        os._exit(0)


def _settled(condition: Callable[[], bool]) -> bool:
    """Whether it holds, if not at once then after a collection and a short while: threads of a pool that was dropped
    need a moment to end."""
    if condition():
        return True
    gc.collect()
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.002)
    return False


def main(arguments: list[str]) -> None:
    """Arguments: the wire's descriptor; in a helper also ``helper`` and the descriptor of its note."""
    parent = os.getppid()
    is_helper = arguments[1:2] == ["helper"]
    if not is_helper and os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    system.die_with_parent(parent)
    system.be_killed_first()
    note = Note(int(arguments[2])) if is_helper else None
    Host(Channel.from_fd(int(arguments[0])), helper_note=note).serve()
