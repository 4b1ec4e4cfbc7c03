"""A live picture of a plan in the terminal: one line for each node, with what it did, where, and for how long."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from somatize_worker import protocol
from somatize_worker.coordinator.showing import showing
from somatize_worker.readable import duration

_MARKS: Final = {"done": ("✓", "green"), "failed": ("✗", "red"), "cached": ("≡", "cyan")}
_BAR_WIDTH: Final = 16
_LINES_AROUND: Final = 4  # title, "more" line, and what stands above and below in the terminal
_FEWEST_SHOWN: Final = 5
_SHOWN_ELSEWHERE: Final = 50  # where the picture is printed once, at the end


@dataclass
class NodeView:
    """What the events have told of one node."""

    node_id: str
    worker_id: str
    state: str = "running"
    runs: int = 1
    progress: float | None = None
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    """What its finished runs took together."""
    note: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    def begin(self, worker_id: str) -> None:
        """It runs once more: a loop's next round, or another attempt of the plan."""
        self.runs += 1
        self.state, self.worker_id, self.progress, self.started = "running", worker_id, None, time.monotonic()

    def end(self, state: str, milliseconds: int | None, note: str) -> None:
        """One run of it is over; without a duration, what passed here counts."""
        passed = time.monotonic() - self.started
        self.seconds += passed if milliseconds is None else milliseconds / 1000
        self.state, self.note, self.progress = state, note, None

    @property
    def took(self) -> float:
        """Seconds, up to now while it runs."""
        return self.seconds + (time.monotonic() - self.started if self.state == "running" else 0.0)


class PlanView:
    """Events in, a picture out: ``nodes`` by id in the order in which they started."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.nodes: dict[str, NodeView] = {}
        self.metrics: dict[str, float] = {}
        self.state = "waiting"
        self._since = time.monotonic()
        self._took: float | None = None
        self._spinner = Spinner("dots", style="cyan")

    def take(self, message: protocol.EventMessage) -> None:
        """Add what one event tells."""
        event = message.event
        if isinstance(event, protocol.TrialMetric):
            value = event.metric.value
            node = self.nodes.get(event.trial_id)
            (self.metrics if node is None else node.metrics)[event.metric.name] = value
        elif isinstance(event, protocol.RunStarted):
            self.state = "running"
        elif isinstance(event, protocol.RunCompleted):
            # Whoever comes late sees all events at once; whoever was there from the start knows the time between runs.
            self._end("done", max(event.duration / 1000, time.monotonic() - self._since))
        elif isinstance(event, protocol.RunFailed):
            self._end("failed", time.monotonic() - self._since)
        elif (node_id := getattr(event, "node_id", None)) is not None:
            self._take_node(node_id, message.worker_id, event)

    def _take_node(self, node_id: str, worker_id: str, event: protocol.Event) -> None:
        node = self.nodes.get(node_id)
        if node is None:
            node = self.nodes[node_id] = NodeView(node_id, worker_id)
        elif isinstance(event, protocol.NodeStarted):
            node.begin(worker_id)
        if isinstance(event, protocol.NodeProgress):
            node.progress = event.progress
        elif isinstance(event, protocol.NodeCompleted):
            node.end("done", event.duration, event.output_summary)
        elif isinstance(event, protocol.NodeCacheHit):
            node.end("cached", event.load_time, "from the cache")
        elif isinstance(event, protocol.NodeFailed):
            node.end("failed", None, event.error)

    def _end(self, state: str, seconds: float) -> None:
        self.state = state
        self._took = seconds
        for node in self.nodes.values():
            if node.state == "running":  # it was killed, or the plan failed elsewhere
                node.end("stopped", None, "stopped")

    # ── the picture ──────────────────────────────────────────────────────────────────────────────────────────────

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_height - _LINES_AROUND if console.is_terminal else _SHOWN_ELSEWHERE
        yield self._headline()
        shown = self._shown(max(_FEWEST_SHOWN, room))
        hidden = len(self.nodes) - len(shown)
        if hidden:
            yield Text(f" … {hidden} more, done", "dim")
        if shown:
            yield self._table(shown)
        if self.metrics:
            yield Text(f"   {_metrics(self.metrics)}", "magenta", no_wrap=True, overflow="ellipsis")

    def _headline(self) -> Table:
        mark, style = _MARKS.get(self.state, ("", ""))
        took = self._took if self._took is not None else time.monotonic() - self._since
        note = "  waiting for a worker" if self.state == "waiting" else ""
        line = Table.grid(padding=(0, 1))
        line.add_row(
            Text(mark, style) if mark else self._spinner,
            Text.assemble(
                (self.title, "bold"), (f"  {duration(took)}{note}", "dim"), no_wrap=True, overflow="ellipsis"
            ),
        )
        return line

    def _shown(self, room: int) -> list[NodeView]:
        """All nodes if there is room for them, else all that are not done, and the latest of the others."""
        nodes = list(self.nodes.values())
        if len(nodes) <= room:
            return nodes
        busy = [node for node in nodes if node.state not in ("done", "cached")][-room:]
        rest = [node for node in nodes if node.state in ("done", "cached")]
        kept = {id(node) for node in [*busy, *rest[len(rest) - (room - len(busy)) :]]}
        return [node for node in nodes if id(node) in kept]

    def _table(self, nodes: list[NodeView]) -> Table:
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(width=2)
        table.add_column(max_width=28, no_wrap=True, overflow="ellipsis")
        table.add_column(style="cyan", max_width=20, no_wrap=True, overflow="ellipsis")
        table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for node in nodes:
            mark, style = _MARKS.get(node.state, ("–", "dim"))
            table.add_row(
                Text(f" {mark}", style) if node.state != "running" else _indented(self._spinner),
                Text(node.node_id + (f" ×{node.runs}" if node.runs > 1 else "")),
                node.worker_id,
                duration(node.took),
                _detail(node),
            )
        return table


def _indented(spinner: Spinner) -> Table:
    grid = Table.grid()
    grid.add_row(" ", spinner)
    return grid


def _detail(node: NodeView) -> Table | Text:
    metrics = _metrics(node.metrics)
    if node.state == "running" and node.progress is not None:
        bar = Table.grid(padding=(0, 1))
        bar.add_column(width=_BAR_WIDTH)
        bar.add_column(justify="right", width=4)
        bar.add_column(no_wrap=True, overflow="ellipsis")
        bar.add_row(
            ProgressBar(total=1.0, completed=node.progress, width=_BAR_WIDTH),
            f"{node.progress:.0%}",
            Text(metrics, "magenta"),
        )
        return bar
    style = "red" if node.state == "failed" else "dim"
    note = node.note.splitlines()[0] if node.note else ""
    return Text.assemble((metrics, "magenta"), "  " if note and metrics else "", (note, style))


def _metrics(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in list(metrics.items()))


def show(title: str, messages: Iterable[protocol.EventMessage], console: Console | None = None) -> PlanView:
    """Show a plan for as long as messages come; returns the last picture.

    In a terminal and in a notebook the picture is live; elsewhere (a pipe, a log) it is printed once, at the end.
    """
    view = PlanView(title)
    with showing(view, console or Console(stderr=True)):
        for message in messages:
            view.take(message)
    return view
