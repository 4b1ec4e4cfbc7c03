"""A live picture of a plan in the terminal: one line for each node, with what it did, where, and for how long."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from somatize_worker import protocol

_MARKS = {"done": Text("✓", "green"), "failed": Text("✗", "red"), "cached": Text("≡", "cyan")}


@dataclass
class NodeView:
    """What the events have told of one node."""

    node_id: str
    worker_id: str
    state: str = "running"
    progress: float | None = None
    started: float = field(default_factory=time.monotonic)
    seconds: float | None = None
    note: str = ""


class PlanView:
    """Events in, a table out."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.nodes: dict[str, NodeView] = {}
        self.metrics: dict[str, str] = {}
        self.end = ""
        self._spinner = Spinner("dots", style="cyan")

    def take(self, message: protocol.EventMessage) -> None:
        """Add what one event tells."""
        event, worker = message.event, message.worker_id
        node_id = getattr(event, "node_id", None)
        if node_id is not None:
            node = self.nodes.get(node_id)
            if node is None or isinstance(event, protocol.NodeStarted):
                node = self.nodes[node_id] = NodeView(node_id, worker)
            self._take_node(node, event)
        elif isinstance(event, protocol.TrialMetric):
            self.metrics[event.metric.name] = f"{event.metric.value:.4g}"
        elif isinstance(event, protocol.RunFailed):
            self.end = event.error

    def _take_node(self, node: NodeView, event: protocol.Event) -> None:
        if isinstance(event, protocol.NodeProgress):
            node.progress = event.progress
        elif isinstance(event, protocol.NodeCompleted):
            node.state, node.seconds, node.note = "done", event.duration / 1000, event.output_summary
        elif isinstance(event, protocol.NodeCacheHit):
            node.state, node.seconds, node.note = "cached", event.load_time / 1000, "from the cache"
        elif isinstance(event, protocol.NodeFailed):
            node.state, node.note = "failed", event.error

    def __rich__(self) -> RenderableType:
        table = Table(box=None, padding=(0, 1), title=self.title, title_justify="left", title_style="bold")
        table.add_column("", width=1)
        table.add_column("node")
        table.add_column("worker", style="dim")
        table.add_column("", width=14)
        table.add_column("time", justify="right")
        table.add_column("output", style="dim", overflow="ellipsis", no_wrap=True)
        for node in self.nodes.values():
            seconds = node.seconds if node.seconds is not None else time.monotonic() - node.started
            table.add_row(
                _MARKS.get(node.state, self._spinner),
                node.node_id,
                node.worker_id,
                ProgressBar(total=1.0, completed=node.progress, width=14) if node.progress is not None else "",
                f"{seconds:.2f} s",
                node.note,
            )
        parts: list[RenderableType] = [table]
        if self.metrics:
            parts.append(Text("  ".join(f"{name} {value}" for name, value in self.metrics.items()), "magenta"))
        if self.end:
            parts.append(Text(self.end, "red"))
        return Group(*parts)


def show(title: str, messages: Iterable[protocol.EventMessage], console: Console | None = None) -> PlanView:
    """Show a plan for as long as messages come. Returns the last picture."""
    view = PlanView(title)
    with Live(view, console=console or Console(stderr=True), refresh_per_second=12):
        for message in messages:
            view.take(message)
    return view
