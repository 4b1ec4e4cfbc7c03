"""Branches of a ``Parallel`` at the same time: the first here, others in helper processes once that pays.

The main thread takes branches from the queue, one after the other. If the first takes longer than starting a helper is
worth, a dispatcher thread starts helpers and gives them what still waits. Short branches never see another process.
"""

from __future__ import annotations

import contextlib
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from somatize_worker.errors import HostDied, SomaError, Unrepresentable
from somatize_worker.hosts.inside.failures import Failure, NodeFailed
from somatize_worker.hosts.inside.helpers import Helper
from somatize_worker.hosts.inside.running import Run, pack_task
from somatize_worker.hosts.inside.tasks import Task
from somatize_worker.hosts.inside.transport import discard, unpack_live

_HEAD_START_S: Final = 0.02
_LOOK_EVERY_S: Final = 0.02
_FINISH_WITHIN_S: Final = 0.1

AskLater = Callable[[str, dict[str, Any], Callable[[dict[str, Any]], None]], None]


@dataclass
class _Work:
    """A branch that a helper runs."""

    run: Run
    task: Task
    group: _Group
    packed: dict[str, Any]


@dataclass
class _Group:
    """The branches of one ``Parallel``: those that wait, and what helpers have sent back."""

    waiting: deque[Task]
    away: int = 0
    back: deque[tuple[Task, list[Any]]] = field(default_factory=deque)
    since_s: float = field(default_factory=time.monotonic)

    def takes_long(self) -> bool:
        """Whether its first branch runs for so long that other processes help."""
        return time.monotonic() - self.since_s > _HEAD_START_S


class Branches:
    """Runs branches for one host process, plan after plan.

    Args:
        ask_later: asks the worker something; the answer goes to the function given, on another thread.
        fail_now: ends the plan with this failure although the main thread is busy, and then the process.
    """

    def __init__(self, ask_later: AskLater, fail_now: Callable[[Failure], None]) -> None:
        self._ask_later = ask_later
        self._fail_now = fail_now
        self._changed = threading.Condition()
        self._wanted = threading.Event()
        self._groups: list[_Group] = []
        self._helpers: list[Helper] = []
        self._failure: Failure | None = None
        self._run: Run | None = None
        self._limit = 0
        self._dispatcher: threading.Thread | None = None

    @property
    def pids(self) -> list[int]:
        """The helper processes."""
        with self._changed:
            return [helper.pid for helper in self._helpers]

    @property
    def threads(self) -> int:
        """How many threads this object has started."""
        return 0 if self._dispatcher is None else 1

    def begin(self, run: Run) -> Branches | None:
        """A plan starts; None if it has one core to run on, or if its filters are to stay in this process."""
        self._limit = int(run.request.get("cores") or 1) - 1
        if self._limit < 1 or run.request.get("keep"):
            return None
        self._run, self._failure = run, None
        return self

    # ── the main thread ──────────────────────────────────────────────────────────────────────────────────────────

    def run(self, tasks: Sequence[Task], here: Callable[[Task], None]) -> None:
        """See :class:`~somatize_worker.hosts.inside.tasks.Runner`.

        Raises:
            NodeFailed: a branch failed, here or in a helper; all helpers that were at work are gone.
        """
        if len(tasks) < 2:
            for task in tasks:
                here(task)
            return
        with self._group(tasks) as group:
            while (mine := self._next(group)) is not None:
                here(mine)

    @contextlib.contextmanager
    def _group(self, tasks: Sequence[Task]) -> Iterator[_Group]:
        group = _Group(deque(tasks))
        with self._changed:
            self._groups.append(group)
        self._start_dispatcher()
        self._wanted.set()
        try:
            yield group
        except BaseException:
            with self._changed:
                group.waiting.clear()
                self._stop_work()
            raise
        finally:
            with self._changed:
                self._groups.remove(group)
                self._changed.notify_all()

    def _start_dispatcher(self) -> None:
        if self._dispatcher is None:
            # It lives as long as the process: helpers get a death signal when the thread that started them ends.
            self._dispatcher = threading.Thread(target=self._dispatch, name="soma-branches", daemon=True)
            self._dispatcher.start()

    def _next(self, group: _Group) -> Task | None:
        """The next branch to run here; None when all are done. Takes in what helpers send back meanwhile."""
        while True:
            with self._changed:
                while not (self._failure or group.back or group.waiting) and group.away:
                    self._changed.wait()
                if self._failure is not None:
                    raise NodeFailed(self._failure)
                if not group.back:
                    return group.waiting.popleft() if group.waiting else None
                finished = group.back.popleft()
            self._take_in(*finished)

    def _take_in(self, task: Task, reply: list[Any]) -> None:
        assert self._run is not None
        kind, content = reply
        if kind == "suspended":
            self._run.journal.adopt(content["journal"])
            task.children = content["children"]
            return
        self._run.exchange.written.update(content["written"])
        output, outputs = unpack_live(content["output"]), unpack_live(content["outputs"])
        discard(content["output"])
        discard(content["outputs"])
        self._run.journal.digests.take_names(output, content["names"]["output"])
        self._run.journal.digests.take_names(outputs, content["names"]["outputs"])
        assert self._run.interpreter is not None
        self._run.interpreter.accept(task, output, outputs, content["states"])

    # ── the dispatcher's thread ──────────────────────────────────────────────────────────────────────────────────

    def _dispatch(self) -> None:
        while True:
            self._wanted.wait()
            time.sleep(_HEAD_START_S)
            while self._is_busy():
                self._start_helpers()
                self._give_out()
                self._listen(_LOOK_EVERY_S)

    def _is_busy(self) -> bool:
        with self._changed:
            busy = bool(self._groups) or any(helper.work for helper in self._helpers)
            if not busy:
                self._wanted.clear()
            return busy

    def _start_helpers(self) -> None:
        with self._changed:
            groups = [group for group in self._groups if group.takes_long()]
            waiting = sum(not task.stays_here for group in groups for task in group.waiting)
            free = sum(helper.work is None for helper in self._helpers)
            missing = min(waiting - free, self._limit - len(self._helpers))
        for _ in range(missing):
            try:
                helper = Helper()
            except OSError as error:
                sys.stderr.write(f"soma: no process for the branches of a Parallel, they run one by one: {error}\n")
                self._limit = len(self._helpers)
                return
            with self._changed:
                self._helpers.append(helper)

    def _give_out(self) -> None:
        for helper in self._idle():
            taken = self._take_task()
            if taken is None:
                return
            group, task = taken
            run = self._run
            assert run is not None
            try:
                packed = pack_task(task, run)
            except Unrepresentable:
                task.stays_here = True
                self._give_back(group, task)
                continue
            except SomaError as error:
                self._fail(Failure.of(error))
                return
            request = {
                **{key: run.request[key] for key in ("spec", "store", "inline_limit", "worker_id")},
                "journal": run.journal.below(task.path),
                "task": packed,
            }
            with contextlib.suppress(OSError):  # it is gone; that is noticed when listening
                helper.begin(request, _Work(run, task, group, packed))

    def _give_back(self, group: _Group, task: Task) -> None:
        with self._changed:
            group.away -= 1
            group.waiting.append(task)
            self._changed.notify_all()

    def _idle(self) -> list[Helper]:
        with self._changed:
            return [helper for helper in self._helpers if helper.ready and helper.work is None]

    def _take_task(self) -> tuple[_Group, Task] | None:
        with self._changed:
            for group in filter(_Group.takes_long, self._groups):
                for task in group.waiting:
                    if not task.stays_here:
                        group.waiting.remove(task)
                        group.away += 1
                        return group, task
        return None

    def _listen(self, timeout_s: float) -> None:
        with self._changed:
            helpers = {helper.channel.fileno(): helper for helper in self._helpers}
        poll = select.poll()
        for fd in helpers:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(timeout_s * 1000):
            self._hear(helpers[fd])

    def _hear(self, helper: Helper) -> None:
        try:
            while (frame := helper.channel.receive_ready()) is not None:
                self._take_frame(helper, frame)
        except (EOFError, OSError):
            self._lost(helper)

    def _take_frame(self, helper: Helper, frame: list[Any]) -> None:
        kind, work = frame[0], helper.work
        if kind == "ready":
            helper.ready = True
        elif kind == "events":
            work.run.events.relay(frame[1])
        elif kind in ("journal", "node"):
            work.run.wire.send(frame)
        elif kind == "ask":
            _, number, what, payload = frame
            self._ask_later(what, payload, lambda answer: _answer(helper, number, answer))
        else:
            helper.work = None
            self._finished(helper, work, frame)

    def _finished(self, helper: Helper, work: _Work, frame: list[Any]) -> None:
        kind, content = frame
        self._clean_up(work)
        work.run.events.relay(content["events"])
        if kind == "failed":
            self._fail(NodeFailed.from_dict(content).failure)
        else:
            with self._changed:
                work.group.away -= 1
                work.group.back.append((work.task, [kind, content]))
                self._changed.notify_all()
        if not content["clean"]:
            self._remove(helper)

    @staticmethod
    def _clean_up(work: _Work) -> None:
        discard(work.packed["value"])
        discard(work.packed["scope"])

    def _remove(self, helper: Helper) -> None:
        with self._changed:
            if helper in self._helpers:
                self._helpers.remove(helper)
                helper.kill()

    def _lost(self, helper: Helper) -> None:
        """A helper's wire is closed. Unless we did that, the branch that it ran has failed."""
        with self._changed:
            if helper not in self._helpers:
                return
            self._helpers.remove(helper)
            node = helper.note.read()
            death = helper.death()
        if helper.work is not None:
            self._clean_up(helper.work)
            error = HostDied(f"{death}; the branch {helper.work.task.key!r} of a Parallel did not finish", node_id=node)
            self._fail(Failure.of(error))

    def _fail(self, failure: Failure) -> None:
        """The plan has failed. The main thread says so, unless it is in user code for longer."""
        with self._changed:
            if not self._groups:
                return
            self._failure = failure
            for group in self._groups:
                group.waiting.clear()
            self._stop_work()
            self._changed.notify_all()
            heard = self._changed.wait_for(lambda: not self._groups, _FINISH_WITHIN_S)
        if not heard:
            self._fail_now(failure)

    def _stop_work(self) -> None:
        """Kill the helpers that are at work. Called with the lock held."""
        for helper in [helper for helper in self._helpers if helper.work is not None]:
            self._helpers.remove(helper)
            helper.kill()
            self._clean_up(helper.work)


def _answer(helper: Helper, number: int, answer: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # it is gone, and its end is noticed elsewhere
        helper.channel.send(["answer", number, answer])
