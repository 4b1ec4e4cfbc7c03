"""A live picture of a Python job: its phases, its own progress, its latest metrics."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from somatize_worker import protocol

_PHASES = ("environment", "write_files", "execute", "collect_results")


class JobView:
    """Progress messages in, a picture out."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._phase = ""
        self._steps = (0, 0)
        self._metrics: dict[str, object] = {}
        self._end = ""

    def take(self, message: protocol.JobProgress) -> None:
        """Add what one message tells."""
        own = self._phase == "execute" and message.phase == "execute"
        self._phase = message.phase
        if own:
            self._steps = (message.step, message.total)
        if isinstance(message.metrics, dict):
            self._metrics.update(message.metrics)

    def ended(self, state: str) -> None:
        """It is over."""
        self._end = state

    def __rich__(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        table.add_row(Text.from_markup(self._title, style="bold"))
        reached = _PHASES.index(self._phase) if self._phase in _PHASES else -1
        marks = []
        for number, phase in enumerate(_PHASES):
            done = number < reached or self._end == "succeeded"
            style = "green" if done else "cyan" if number == reached and not self._end else "dim"
            marks.append(f"[{style}]{'✓' if done else '●' if number == reached else '○'} {phase}[/]")
        table.add_row(Text.from_markup("  ".join(marks)))
        parts: list[RenderableType] = [table]
        step, total = self._steps
        if total:
            bar = Table.grid(padding=(0, 1))
            bar.add_row(ProgressBar(total=total, completed=step, width=40), f"{step}/{total}")
            parts.append(bar)
        if self._metrics:
            shown = "  ".join(f"{name} {_short(value)}" for name, value in self._metrics.items())
            parts.append(Text(shown, "magenta"))
        return Group(*parts)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
