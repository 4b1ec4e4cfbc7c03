"""Events, from the running plan to the wire: made as JSON text here, sent in batches off the plan's path.

An event goes at once if the last batch is more than 10 ms old, else with the next tick of the flusher (every 20 ms),
else with the plan's last frame. A hundred small nodes cost one frame.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final

import numpy as np

from somatize_worker.hosts.inside.calls import Step
from somatize_worker.hosts.inside.note import Note
from somatize_worker.values import summary

Send = Callable[[list[Any]], None]

_BATCH_AFTER_NS: Final = 10_000_000
_NODE_AFTER_NS: Final = 50_000_000
_PROGRESS_EVERY_NS: Final = 50_000_000
_EVENTS_IN_FRAME: Final = 5_000
_NUMBERS: Final = frozenset({int, float})
_NUMBER: Final = quoted(summary(0))  # the commonest of all
_SUMMARISED: Final = frozenset({np.ndarray, dict, list, str, int, float, bool, bytes, type(None)})


def shown(output: Any) -> str:
    """An output in a few words: shape or size of plain data, the type's name of anything else."""
    kind = type(output)
    if kind in _SUMMARISED:
        return summary(output)
    if isinstance(output, np.generic):
        return summary(np.asarray(output))
    return f"{kind.__module__}.{kind.__qualname__}"


class Events:
    """What happens in one plan, told to whoever watches. Node ids go on the wire even where events are off.

    Args:
        send: sends a frame; called from the plan's thread and from the flusher.
        run_id: under which the events appear.
        enabled: whether any event is made.
        trial: study id and trial id for metrics, where they are not the run's and the node's.
        note: keeps the running node where it is found after a crash.
    """

    def __init__(
        self,
        send: Send,
        run_id: str,
        *,
        enabled: bool = True,
        trial: tuple[str | None, str | None] = (None, None),
        note: Note | None = None,
    ) -> None:
        self._send = send
        self._enabled = enabled
        self._trial = trial
        self._note = note
        self._run_id = run_id
        self._run = quoted(run_id)
        self._quoted: dict[str, str] = {}
        self._buffer: deque[str] = deque()
        self._sending = threading.Lock()
        self._clock = time.perf_counter_ns
        self._last_sent = self._clock()
        #: No node events (and no note), say while a plan runs for each of many items.
        self.quiet = False
        self.node: str | None = None
        self._node_since = 0
        self._node_told: str | None = None
        self._progress: dict[str, float] = {}
        self._progress_sent: dict[str, int] = {}
        self._steps: dict[tuple[str, str], int] = {}

    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────

    def run_started(self, plan_summary: dict[str, int]) -> None:
        """The plan starts for the first time."""
        self._add(f'{{"event_type":"RunStarted","run_id":{self._run},"plan_summary":{json.dumps(plan_summary)}}}')

    def run_completed(self, duration_ms: int) -> None:
        """The whole plan is done."""
        self._add(f'{{"event_type":"RunCompleted","run_id":{self._run},"duration":{duration_ms}}}')

    def run_failed(self, error: str) -> None:
        """The plan failed."""
        self._add(f'{{"event_type":"RunFailed","run_id":{self._run},"error":{quoted(error)}}}')

    # ── nodes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def started(self, step: Step) -> int:
        """A node starts; the clock in ns, for :meth:`completed`."""
        now = self._clock()
        if self.quiet:
            return now
        node_id = step.node_id
        self.node, self._node_since = node_id, now
        if self._note is not None:
            self._note.write(node_id)
        if self._enabled:
            node = self._quoted.get(node_id) or self._quote(node_id)
            self._buffer.append(
                f'{{"event_type":"NodeStarted","run_id":{self._run},"node_id":{node},"kind":"{step.kind}"}}'
            )
            if now - self._last_sent > _BATCH_AFTER_NS:
                self.flush()
        return now

    def completed(self, node_id: str, started_ns: int, output: Any) -> None:
        """A node is done."""
        if self.quiet:
            return
        self.node = None
        if self._note is not None:
            self._note.clear()
        if self._progress:
            self._add_progress(node_id)
        if self._enabled:
            now = self._clock()
            self._buffer.append(
                f'{{"event_type":"NodeCompleted","run_id":{self._run},"node_id":{self._quote(node_id)},'
                f'"duration":{(now - started_ns) // 1_000_000},'
                f'"output_summary":{_NUMBER if type(output) in _NUMBERS else quoted(shown(output))}}}'
            )
            if now - self._last_sent > _BATCH_AFTER_NS:
                self.flush()

    def failed(self, node_id: str, error: str) -> None:
        """A node failed."""
        if not self.quiet:
            self._add_progress(node_id)
            self._add(
                f'{{"event_type":"NodeFailed","run_id":{self._run},"node_id":{self._quote(node_id)},'
                f'"error":{quoted(error)}}}'
            )

    def cache_hit(self, node_id: str, key: bytes, tier: str, load_ms: int) -> None:
        """A node's output was found in the cache."""
        if not self.quiet:
            self._add(
                f'{{"event_type":"NodeCacheHit","run_id":{self._run},"node_id":{self._quote(node_id)},'
                f'"key":{json.dumps(list(key))},"tier":"{tier}","load_time":{load_ms}}}'
            )

    # ── what user code reports ───────────────────────────────────────────────────────────────────────────────────

    def report(self, progress: float | None, metrics: dict[str, float], step: int | None) -> None:
        """:func:`somatize_worker.report.report`, called by the running node, from any of its threads."""
        node_id = self.node
        if node_id is None or not self._enabled:
            return
        if progress is not None:
            self._progress[node_id] = progress
            if self._clock() - self._progress_sent.get(node_id, 0) > _PROGRESS_EVERY_NS:
                self._add_progress(node_id)
        for name, value in metrics.items():
            self._add(self._metric(node_id, name, value, step))

    def node_progress(self, node_id: str, progress: float) -> None:
        """A part of a node's work is done, as far as the interpreter knows."""
        if not self.quiet and self._enabled:
            self._progress[node_id] = progress

    def _metric(self, node_id: str, name: str, value: float, step: int | None) -> str:
        count = self._steps.get((node_id, name), 0)
        self._steps[node_id, name] = count + 1
        study_id, trial_id = self._trial
        return json.dumps(
            {
                "event_type": "TrialMetric",
                "study_id": study_id or self._run_id,
                "trial_id": trial_id or node_id,
                "metric": {
                    "name": name,
                    "value": value if math.isfinite(value) else None,
                    "step": max(0, count if step is None else step),
                    "timestamp": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
                },
            }
        )

    def _add_progress(self, node_id: str) -> None:
        progress = self._progress.pop(node_id, None)
        if progress is not None:
            self._progress_sent[node_id] = self._clock()
            self._add(
                f'{{"event_type":"NodeProgress","run_id":{self._run},"node_id":{self._quote(node_id)},'
                f'"progress":{progress!r}}}'
            )

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _quote(self, node_id: str) -> str:
        text = self._quoted.get(node_id)
        if text is None:
            text = self._quoted[node_id] = quoted(node_id)
        return text

    def _add(self, text: str) -> None:
        if self._enabled:
            self._buffer.append(text)
            if self._clock() - self._last_sent > _BATCH_AFTER_NS:
                self.flush()

    def relay(self, texts: Iterable[str]) -> None:
        """Events of a helper process."""
        self._buffer.extend(texts)
        if self._clock() - self._last_sent > _BATCH_AFTER_NS:
            self.flush()

    def flush(self) -> None:
        """Send what is there, in order."""
        with self._sending:
            while texts := self._taken(_EVENTS_IN_FRAME):
                self._send(["events", texts])
            self._last_sent = self._clock()

    def take(self) -> list[str]:
        """What was not sent yet, for the plan's last frame."""
        for node_id in list(self._progress):
            self._add_progress(node_id)
        with self._sending:
            while len(self._buffer) > _EVENTS_IN_FRAME:
                self._send(["events", self._taken(_EVENTS_IN_FRAME)])
            return self._taken(_EVENTS_IN_FRAME)

    def _taken(self, limit: int) -> list[str]:
        buffer = self._buffer
        return [buffer.popleft() for _ in range(min(limit, len(buffer)))]

    def tick(self) -> None:
        """Every 20 ms, from the flusher's thread: send what waits; tell which node runs, once it takes long."""
        now = self._clock()
        for node_id in list(self._progress):
            if now - self._progress_sent.get(node_id, 0) > _PROGRESS_EVERY_NS:
                self._add_progress(node_id)
        if self._buffer:
            self.flush()
        node = self.node
        if node is not None and node != self._node_told and now - self._node_since > _NODE_AFTER_NS:
            self._node_told = node
            self._send(["node", node])
