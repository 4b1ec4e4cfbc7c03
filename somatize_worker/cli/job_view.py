"""A live picture of a Python job: its phases, its own progress, its latest metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from somatize_worker.readable import duration

if TYPE_CHECKING:
    from somatize_worker import protocol

_PHASES: Final = {
    "environment": "environment",
    "write_files": "files",
    "execute": "run",
    "collect_results": "results",
}
_COLLECTING_FAILED: Final = "somatize_worker.errors.Store"
_MARKS: Final = {"done": ("✓", "green"), "now": ("●", "cyan"), "ahead": ("○", "dim"), "broken": ("✗", "red")}


class JobView:
    """Progress messages in, a picture out."""

    def __init__(self, title: str, job_id: str) -> None:
        self._title = title
        self._job_id = job_id
        self._since = time.monotonic()
        self._phase = ""
        self._worker = ""
        self._message = ""
        self._steps = (0, 0)
        self._metrics: dict[str, object] = {}
        self._end = ""
        self._took: float | None = None

    def take(self, message: protocol.JobProgress) -> None:
        """Add what one message tells."""
        # The first message of a phase is the worker's own, "execute 3 of 4"; what follows in it is the job's.
        own = self._phase == message.phase == "execute"
        self._phase = message.phase
        self._worker = message.worker_id
        metrics = message.metrics if isinstance(message.metrics, dict) else {}
        if message.phase == "environment":
            self._message = str(metrics.get("message", ""))
        elif own:
            self._steps = (message.step, message.total)
            self._metrics.update(metrics)

    def ended(self, state: str, error_type: str = "") -> None:
        """It is over. What a failed job left is collected, too: so the last phase does not say where it failed."""
        if state == "failed" and self._phase == "collect_results" and not error_type.startswith(_COLLECTING_FAILED):
            self._phase = "execute"
        self._end = state
        self._took = time.monotonic() - self._since

    def __rich__(self) -> RenderableType:
        took = self._took if self._took is not None else time.monotonic() - self._since
        title = Text.assemble((self._title, "bold"), "  ", (self._job_id, "dim"), "  ", (duration(took), "dim"))
        if self._worker:
            title.append(f"  {self._worker}", "cyan")
        parts: list[RenderableType] = [title, self._phases()]
        step, total = self._steps
        if total:
            bar = Table.grid(padding=(0, 1))
            bar.add_row("", ProgressBar(total=total, completed=step, width=40), f"{step}/{total}")
            parts.append(bar)
        if self._metrics:
            shown = "  ".join(f"{name} {_short(value)}" for name, value in list(self._metrics.items()))
            parts.append(Text(f" {shown}", "magenta", no_wrap=True, overflow="ellipsis"))
        if self._phase == "environment" and self._message and not self._end:
            parts.append(Text(f" {self._message}", "dim", no_wrap=True, overflow="ellipsis"))
        return Group(*parts)

    def _phases(self) -> Text:
        names = list(_PHASES)
        reached = names.index(self._phase) if self._phase in _PHASES else -1
        line = Text(" ")
        for number, name in enumerate(names):
            if number < reached or self._end == "succeeded":
                mark, style = _MARKS["done"]
            elif number > reached:
                mark, style = _MARKS["ahead"]
            else:
                mark, style = _MARKS["broken" if self._end else "now"]
            line.append(f"{mark} {_PHASES[name]}  ", style)
        if reached < 0 and not self._end:
            line.append("waiting for a worker", "dim")
        return line


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
