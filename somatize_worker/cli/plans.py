"""Commands about plans: submit one, list them, follow one, cancel one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from somatize_worker import protocol
from somatize_worker.cli.output import STATE_STYLES, Json, Url, ago, console, errors, print_json, print_json_line
from somatize_worker.coordinator import Coordinator, PlanHandle
from somatize_worker.errors import InvalidMessage
from somatize_worker.ledger import TERMINAL, Record

PlanId = Annotated[str, typer.Argument(metavar="PLAN", help="Id of the plan or job.")]


def submit(
    file: Annotated[Path, typer.Argument(metavar="PLAN.json", help="A SerializedPlan or AssignPlan message.")],
    on: Annotated[str, typer.Option(help="Tag or worker id.")] = "cpu",
    wait: Annotated[bool, typer.Option(help="Queue it even if nobody serves the tag yet.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the plan's id and return at once.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Deadline for the plan, in seconds.")] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Submit a plan in the protocol's JSON, show it while it runs, print its result.

    Example: [cyan]somatize submit plan.json --on gpu[/]
    """
    plan = _read_plan(file)
    with Coordinator(url) as coordinator:
        handle = coordinator.assign_plan(plan, on, wait=wait, timeout_s=timeout)
        if detach:
            print_json({"plan_id": handle.plan_id}) if json else console.print(handle.plan_id, highlight=False)
            return
        result = handle.result(progress=not json)
        if json:
            value = protocol.plain_to_value(result.output)
            print_json_line(protocol.to_json(value))
        else:
            console.print(f"[green]succeeded[/] in {result.duration.total_seconds():.3g} s on {result.worker_id}")
            console.print(result.output)


def _read_plan(file: Path) -> protocol.SerializedPlan:
    try:
        text = file.read_bytes()
    except OSError as error:
        raise InvalidMessage(f"{file} cannot be read: {error.strerror}") from error
    if b'"AssignPlan"' in text[:200] or text.rstrip().endswith(b'"AssignPlan"}'):
        message = protocol.from_json(protocol.CoordinatorToWorker, text)
        if isinstance(message, protocol.AssignPlan):
            return message.plan
    return protocol.from_json(protocol.SerializedPlan, text)


def plans(
    state: Annotated[list[str] | None, typer.Option(help="Only these states; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.")] = 20,
    url: Url = None,
    json: Json = False,
) -> None:
    """The newest plans and jobs: state, attempts, where each ran, and why it ended.

    Example: [cyan]somatize plans --state failed[/]
    """
    with Coordinator(url) as coordinator:
        records = coordinator.plans(limit=limit, states=state)
    if json:
        print_json([_record_json(record) for record in records])
        return
    table = Table(box=None, padding=(0, 1))
    table.add_column("plan", no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("state")
    table.add_column("queue")
    table.add_column("runs", justify="right")
    table.add_column("worker", overflow="fold")
    table.add_column("took", justify="right")
    table.add_column("submitted", justify="right")
    table.add_column("why", overflow="fold", style="dim")
    for record in records:
        table.add_row(
            record.plan_id,
            escape(record.summary),
            f"[{STATE_STYLES[record.state]}]{record.state}[/]",
            record.queue,
            str(len(record.history)),
            record.worker,
            _took(record),
            ago(record.created),
            escape(record.cause),
        )
    console.print(table)


def _took(record: Record) -> str:
    if not record.started:
        return ""
    end = record.finished or int(datetime.now(UTC).timestamp() * 1000)
    return f"{(end - record.started) / 1000:.2f} s"


def _record_json(record: Record) -> dict[str, Any]:
    names = ("plan_id", "kind", "state", "summary", "queue", "priority", "epoch", "attempts", "max_attempts")
    times = ("created", "started", "finished")
    return {
        **{name: getattr(record, name) for name in (*names, "worker", "parent", "root", "node", "cause", "history")},
        **{name: getattr(record, name) or None for name in times},
    }


def events(
    plan_id: PlanId,
    after: Annotated[int, typer.Option(help="Only events after this number.")] = 0,
    url: Url = None,
    json: Json = False,
) -> None:
    """A plan's events from the first, live until it ends.

    Example: [cyan]somatize events 3f2a… --json[/]
    """
    with Coordinator(url) as coordinator:
        handle = coordinator.plan(plan_id)
        for message in handle.messages(after):
            if json:
                print_json_line(protocol.to_json(message))
                continue
            console.print(_event_line(message), highlight=False)
        if not json:
            _print_attempts(handle)


def _event_line(message: protocol.EventMessage) -> str:
    event = protocol.to_data(message.event)
    kind = event.pop("event_type")
    event.pop("run_id", None)
    node = event.pop("node_id", "")
    style = {"NodeFailed": "red", "RunFailed": "red", "NodeCompleted": "green", "RunCompleted": "green"}.get(
        kind, "cyan"
    )
    rest = "  ".join(f"{key}={value}" for key, value in event.items())
    return f"[{style}]{kind:<14}[/] [bold]{escape(str(node)):<18}[/] [dim]{message.worker_id}[/]  {escape(rest)}"


def _print_attempts(handle: PlanHandle) -> None:
    record = handle.record
    style = STATE_STYLES[record.state]
    errors.print(f"[{style}]{record.state}[/] {escape(record.cause)}", highlight=False)
    if len(record.history) > 1:
        for entry in record.history:
            errors.print(f"  run {entry['epoch']} on {entry['worker']}: {escape(str(entry.get('why') or 'done'))}")


def logs(
    plan_id: PlanId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the plan ends.")] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """What a plan or job printed.

    Example: [cyan]somatize logs 3f2a… --follow[/]
    """
    with Coordinator(url) as coordinator:
        handle = coordinator.plan(plan_id)
        if json and not follow:
            print_json(list(handle.output_lines()))
            return
        for line in handle.output_lines(follow=follow):
            print_json_line(line)


def cancel(plan_id: PlanId, url: Url = None, json: Json = False) -> None:
    """Cancel a plan or job, wherever it is; one that no worker has seen yet will not run.

    Example: [cyan]somatize cancel 3f2a…[/]
    """
    with Coordinator(url) as coordinator:
        coordinator.cancel_plan(plan_id, "cancelled from the command line")
        handle = coordinator.plan(plan_id)
        state = handle.state
    if json:
        print_json({"plan_id": plan_id, "state": state})
    else:
        console.print(f"{plan_id}: {state if state in TERMINAL else 'being cancelled'}", highlight=False)
