"""Plans, their events and results as people and programs read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from somatize_worker.cli.output import STATE_STYLES, ago, console, errors
from somatize_worker.readable import duration

if TYPE_CHECKING:
    from somatize_worker import protocol
    from somatize_worker.coordinator import RunResult
    from somatize_worker.ledger import Record

_MADE_ID: Final = re.compile(r"([0-9a-f]{32})(\.[\w.]+)?")
_SHORT_ID: Final = 10
_ROOMY: Final = 110  # columns from which on a table shows everything
_CAUSE_CHARS: Final = 120
_ALIASES: Final = {"running": "leased", "leased": "running"}
_STATES: Final = ("queued", "running", "waiting", "succeeded", "failed", "cancelled")


def state_text(state: str) -> str:
    """A state of the ledger's as people call it."""
    return _ALIASES.get(state, state) if state == "leased" else state


def ledger_state(word: str) -> str:
    """The state of the ledger's that somebody means.

    Raises:
        typer.BadParameter: there is no such state.
    """
    if word not in _STATES and word != "leased":
        raise typer.BadParameter(f"{word!r} is no state: choose from {', '.join(_STATES)}", param_hint="--state")
    return _ALIASES[word] if word == "running" else word


def short_id(plan_id: str) -> str:
    """The beginning of an id that was made up; one that somebody chose as it is."""
    return plan_id[:_SHORT_ID] if _MADE_ID.fullmatch(plan_id) else plan_id


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────


def print_records(records: Sequence[Record]) -> None:
    """A table of plans; with more columns where there is room, and everything on one line in a pipe."""
    piped = not console.is_terminal
    roomy = piped or console.width >= _ROOMY
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("plan", no_wrap=True)
    table.add_column("what", min_width=12, overflow="fold")
    table.add_column("state", no_wrap=True)
    if roomy:
        table.add_column("queue", overflow="fold")
    table.add_column("worker", overflow="fold")
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("submitted", justify="right", no_wrap=True)
    if piped:
        table.add_column("why")
    for record in records:
        state = state_text(record.state)
        what, why = Text(record.summary), "" if record.state == "succeeded" else _one_line(record.cause)
        if why and not piped:
            what.append(f"\n{why if len(why) <= _CAUSE_CHARS else f'{why[:_CAUSE_CHARS]}…'}", "dim")
        runs = len(_ended_runs(record))
        table.add_row(
            record.plan_id if piped else short_id(record.plan_id),
            what,
            f"[{STATE_STYLES[state]}]{state}[/]{f' [dim]×{runs}[/]' if runs > 1 else ''}",
            *([record.queue] if roomy else []),
            record.worker or (record.history[-1]["worker"] if record.history else ""),
            _took(record),
            ago(record.created),
            *([escape(why)] if piped else []),
        )
    console.print(table)


def _ended_runs(record: Record) -> list[Mapping[str, Any]]:
    """Its runs, without those that ended because it had to wait for parts that run elsewhere."""
    return [entry for entry in record.history if entry.get("why") != "waiting"]


def _took(record: Record) -> str:
    if not record.started:
        return ""
    end = record.finished or int(datetime.now(UTC).timestamp() * 1000)
    return duration(max(0, end - record.started) / 1000)


def record_json(record: Record) -> dict[str, Any]:
    """A record for programs; times are milliseconds since 1970, null for not yet."""
    names = ("plan_id", "kind", "state", "summary", "queue", "priority", "epoch", "attempts", "max_attempts")
    times = ("created", "started", "finished")
    return {
        **{name: getattr(record, name) for name in (*names, "worker", "parent", "root", "node", "cause", "history")},
        **{name: getattr(record, name) or None for name in times},
    }


def print_attempts(record: Record, parts: Sequence[Record]) -> None:
    """How a plan ended, with each run of it and of its parts where there was more than one."""
    state = state_text(record.state)
    errors.print(f"[{STATE_STYLES[state]}]{state}[/] {escape(_one_line(record.cause))}".rstrip(), highlight=False)
    for one in (record, *parts):
        ends = _ended_runs(one)
        if len(ends) > 1 or one is not record:
            name = f"part {one.plan_id.removeprefix(record.plan_id)}" if one is not record else "runs"
            errors.print(f"  {escape(name)} [dim]{escape(one.summary)}[/]", highlight=False)
            for entry in ends:
                errors.print(f"    {_run_text(entry)}", highlight=False)


def _run_text(entry: Mapping[str, Any]) -> str:
    took = duration(max(0, entry["ended"] - entry["started"]) / 1000) if entry.get("started") else "?"
    return f"{escape(str(entry['worker']))}  [dim]{took}[/]  {escape(_one_line(str(entry.get('why') or 'done')))}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

_EVENT_STYLES: Final = {"NodeCompleted": "green", "RunCompleted": "green", "NodeFailed": "red", "RunFailed": "red"}


def message_line(message: protocol.EventMessage | protocol.JobProgress) -> str:
    """An event: its type, its node, the worker that told it, and what else it says. Or a step of a job."""
    from somatize_worker import protocol

    if isinstance(message, protocol.JobProgress):
        said = escape(_fields(message.metrics) if isinstance(message.metrics, Mapping) else "")
        step = f"{message.step}/{message.total}" if message.total else str(message.step)
        return f"[cyan]{message.phase:<15}[/] {step:<8} [dim]{escape(message.worker_id):<10}[/] {said}".rstrip()
    event = protocol.to_data(message.event)
    kind = event.pop("event_type")
    node = event.pop("node_id", None) or event.pop("trial_id", None) or ""
    describe = _DESCRIBED.get(kind, _fields)
    style = _EVENT_STYLES.get(kind, "cyan")
    return (
        f"[{style}]{kind:<13}[/] [bold]{escape(str(node)):<16}[/] [dim]{escape(message.worker_id):<10}[/] "
        f"{escape(describe(event))}"
    ).rstrip()


def _fields(event: Mapping[str, Any]) -> str:
    return "  ".join(f"{key}={value}" for key, value in event.items() if value is not None and key != "run_id")


def _metric(event: Mapping[str, Any]) -> str:
    metric = event["metric"]
    value = metric["value"]
    return f"{metric['name']} = {value:.6g} at {metric['step']}" if value is not None else f"{metric['name']} = nan"


_DESCRIBED: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "RunStarted": lambda event: f"{event['plan_summary']['total_nodes']} nodes",
    "NodeStarted": lambda event: str(event["kind"]).lower(),
    "NodeProgress": lambda event: f"{event['progress']:.0%}",
    "NodeCompleted": lambda event: f"{duration(event['duration'] / 1000)}  {event['output_summary']}",
    "NodeCacheHit": lambda event: f"{duration(event['load_time'] / 1000)}  from the cache",
    "NodeFailed": lambda event: _one_line(str(event["error"])),
    "RunCompleted": lambda event: duration(event["duration"] / 1000),
    "RunFailed": lambda event: _one_line(str(event["error"])),
    "TrialMetric": _metric,
}


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────


def print_result(result: RunResult) -> None:
    """What came out, for people."""
    attempts = f", attempt {result.attempts}" if result.attempts > 1 else ""
    took = duration(result.duration.total_seconds())
    console.print(f"[green]succeeded[/] in {took} on {escape(result.worker_id)}{attempts}", highlight=False)
    console.print(result.output)


def result_json(result: RunResult) -> dict[str, Any]:
    """What came out, for programs: output and states as the protocol's values, NaN as null."""
    return {
        "plan_id": result.plan_id,
        "state": "succeeded",
        "worker_id": result.worker_id,
        "attempts": result.attempts,
        "duration_ms": round(result.duration.total_seconds() * 1000),
        "output": _value(result.output),
        "states": {node: _value(state) for node, state in result.states.items()},
    }


def _value(plain: Any) -> Any:
    import msgpack

    from somatize_worker import protocol
    from somatize_worker.errors import Unrepresentable
    from somatize_worker.values import summary

    try:  # through MessagePack, which has the JSON's form, and NaN
        return msgpack.unpackb(protocol.to_msgpack(protocol.plain_to_value(plain)), strict_map_key=False)
    except Unrepresentable:
        return {"type": "Json", "data": summary(plain)}
