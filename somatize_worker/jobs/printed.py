"""What a job prints: kept within a cap, and read for progress and metrics."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from somatize_worker.hosts.output import LINE_LIMIT_BYTES, OutputLine

_MAX_U32: Final = (1 << 32) - 1
_JSON_LIMIT_CHARS: Final = 1 << 20
_MAX_DEPTH: Final = 150
_STEPS_BURST: Final = 200
_STEPS_PER_S: Final = 50.0
_LIVE_BURST_BYTES: Final = 1 << 20
_LIVE_BYTES_PER_S: Final = 1 << 20
_LIVE_BATCH_BYTES: Final = 64 << 10


class Transcript:
    """Lines of text within a limit: the beginning and the end stay, what is between gives way to a note.

    Args:
        limit_bytes: for the text as UTF-8, without the note.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._head_room = limit_bytes // 2
        self._tail_limit = limit_bytes - self._head_room
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._tail_bytes = 0
        self._left_out_lines = self._left_out_bytes = 0

    def add(self, line: str) -> None:
        """Append one line, given without its end."""
        size = _size(line)
        if not self._tail and size <= self._head_room:
            self._head.append(line)
            self._head_room -= size
            return
        self._tail.append(line)
        self._tail_bytes += size
        while self._tail_bytes > self._tail_limit and self._tail:
            gone = _size(self._tail.popleft())
            self._tail_bytes -= gone
            self._left_out_bytes += gone
            self._left_out_lines += 1

    def lines(self) -> list[str]:
        """What is kept, with the note where something is missing."""
        note = []
        if self._left_out_lines:
            note = [f"[… {self._left_out_lines} lines, {self._left_out_bytes} bytes left out …]"]
        return [*self._head, *note, *self._tail]

    def text(self) -> str:
        """The same as text, each line with its end."""
        return "".join(f"{line}\n" for line in self.lines())


class Live:
    """Hands printed lines on as they come, but no more than anybody can read: beyond the rate, head and tail.

    Args:
        on_lines: takes what is shown.
        clock: seconds, never going back.
    """

    def __init__(self, on_lines: Callable[[list[str]], None], clock: Callable[[], float]) -> None:
        self._on_lines = on_lines
        self._clock = clock
        self._allowed, self._filled = float(_LIVE_BURST_BYTES), clock()
        self._held: Transcript | None = None

    def add(self, lines: list[str]) -> None:
        """Show these lines, or hold them back for a moment. Call this now and then without any, too."""
        now = self._clock()
        self._allowed = min(float(_LIVE_BURST_BYTES), self._allowed + (now - self._filled) * _LIVE_BYTES_PER_S)
        self._filled = now
        size = sum(map(_size, lines))
        if self._held is None and size <= self._allowed:
            self._show(lines, size)
            return
        self._held = self._held or Transcript(_LIVE_BATCH_BYTES)
        for line in lines:
            self._held.add(line)
        if self._allowed >= _LIVE_BATCH_BYTES:
            self.end()

    def end(self) -> None:
        """Show what is held back."""
        held, self._held = self._held, None
        if held is not None:
            self._show(held.lines(), _LIVE_BATCH_BYTES)

    def _show(self, lines: list[str], size: int) -> None:
        self._allowed -= size
        if lines:
            self._on_lines(lines)


def _size(line: str) -> int:
    return len(line.encode("utf-8", "surrogatepass")) + 1


@dataclass(frozen=True)
class Step:
    """Where a job is: ``step`` of ``total`` (0: not known), and any JSON as metrics."""

    step: int
    total: int
    metrics: Any = field(default_factory=dict)


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, if it is one that messages can carry.

    Numbers that JSON does not have (NaN, infinities) become null, halves of characters (``"\\ud800"``) a ``?``. An
    object that is nested deeper than messages may be is none.
    """
    text = text.strip()
    if not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        value: dict[str, Any] = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
        if "\\ud" in text or "\\uD" in text:
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value if text.count("{") + text.count("[") <= _MAX_DEPTH or _fits(value, _MAX_DEPTH) else None


def _fits(value: Any, levels: int) -> bool:
    """Whether data are nested at most so many levels deep."""
    if not isinstance(value, (dict, list)):
        return True
    return levels > 0 and all(
        _fits(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value)
    )


def step_of(value: dict[str, Any]) -> Step | None:
    """An object as progress, if it has a ``step``, perhaps a ``total`` and ``metrics``, and nothing else."""
    step, total = value.get("step"), value.get("total", 0)
    if not (is_count(step) and is_count(total) and value.keys() <= {"step", "total", "metrics"}):
        return None
    return Step(step, total, value.get("metrics", {}))


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def is_count(value: Any) -> TypeGuard[int]:
    """Whether it is a number that a message can carry as a step."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_U32


class Reader:
    """Finds progress and the final metrics in what a job prints on standard output, and in what it reports.

    Progress is handed on at once, except where a job reports faster than anybody can look: then the newest is.

    Args:
        on_step: takes each step that is handed on.
        clock: seconds, never going back.
    """

    def __init__(self, on_step: Callable[[Step], None], clock: Callable[[], float]) -> None:
        self._on_step = on_step
        self._clock = clock
        self._tokens, self._filled = float(_STEPS_BURST), clock()
        self._held: Step | None = None
        self._long = ""
        self._last_object: dict[str, Any] | None = None
        self._last_metrics: Any = None

    @property
    def metrics(self) -> Any:
        """The last JSON object printed that was not progress; without one, the metrics of the last progress."""
        return self._last_metrics if self._last_object is None else self._last_object

    def read(self, lines: Iterable[OutputLine]) -> None:
        """Look at printed lines."""
        for line in lines:
            if line.stream == "stdout":
                value = parse_object(self._joined(line.text))
                if value is not None:
                    self._take(value)

    def report(self, step: Step) -> None:
        """Take a step that was not printed but reported."""
        self._last_metrics = step.metrics or self._last_metrics
        self._hand_on(step)

    def tick(self) -> None:
        """Hand on what was held back, if it is time. Call this now and then."""
        if self._held is not None and self._may():
            held, self._held = self._held, None
            self._on_step(held)

    def end(self) -> None:
        """Nothing more comes: hand on what was held back."""
        held, self._held = self._held, None
        if held is not None:
            self._on_step(held)

    def _take(self, value: dict[str, Any]) -> None:
        step = step_of(value)
        if step is None:
            self._last_object = value
        else:
            self.report(step)

    def _hand_on(self, step: Step) -> None:
        if self._may():
            self._held = None
            self._on_step(step)
        else:
            self._held = step

    def _may(self) -> bool:
        now = self._clock()
        self._tokens = min(float(_STEPS_BURST), self._tokens + (now - self._filled) * _STEPS_PER_S)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _joined(self, text: str) -> str:
        """A long line comes in parts of a known length: put an object's together again."""
        if not self._long and not text.startswith("{"):
            return text
        whole = self._long + text
        is_part = len(text.encode()) > LINE_LIMIT_BYTES - 4
        self._long = whole if is_part and len(whole) <= _JSON_LIMIT_CHARS else ""
        return "" if is_part else whole
