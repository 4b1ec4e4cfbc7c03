"""Commands about plans: submit one, list them, follow one, cancel one."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from somatize_worker.cli import plan_views
from somatize_worker.cli.client import PlanId, connected, find_plan
from somatize_worker.cli.output import Json, Url, console, errors, print_json, print_json_line
from somatize_worker.errors import InvalidMessage, PlanNotFound

if TYPE_CHECKING:
    from somatize_worker import protocol
    from somatize_worker.coordinator import Coordinator

_CANCELLED_WITHIN_S: Final = 30.0


def submit(
    file: Annotated[
        Path, typer.Argument(metavar="PLAN.json", help="A SerializedPlan or AssignPlan message; - reads it from stdin.")
    ],
    on: Annotated[str, typer.Option(help="Tag or worker id.")] = "cpu",
    wait: Annotated[bool, typer.Option("--wait", help="Queue it even if nobody serves the tag yet.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the plan's id and return at once.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Deadline for the plan, in seconds.")] = None,
    priority: Annotated[int, typer.Option(min=0, max=9, help="0 goes first, 9 last.")] = 5,
    url: Url = None,
    json: Json = False,
) -> None:
    """Submit a plan in the protocol's JSON, show it while it runs, print its result.

    Ctrl-C stops watching; the plan goes on. The exit status is 0 if the plan succeeded.

    Example: [cyan]somatize submit plan.json --on gpu[/]
    """
    plan = _read_plan(file)
    with connected(url) as coordinator:
        handle = coordinator.assign_plan(plan, on, wait=wait, timeout=timeout, priority=priority)
        if detach:
            print_json({"plan_id": handle.plan_id}) if json else console.print(handle.plan_id, highlight=False)
            return
        try:
            result = handle.result(progress=not json)
        except KeyboardInterrupt:
            errors.print(f"the plan goes on: [cyan]somatize events {handle.plan_id}[/], or cancel", highlight=False)
            raise typer.Exit(130) from None
        if json:
            print_json(plan_views.result_json(result))
        else:
            plan_views.print_result(result)


def _read_plan(file: Path) -> protocol.SerializedPlan:
    from somatize_worker import protocol

    try:
        text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise InvalidMessage(f"{file} cannot be read: {error.strerror}") from error
    try:
        data = json_module.loads(text)
    except ValueError as error:
        raise InvalidMessage(f"{file} is not JSON: {error}") from error
    if not isinstance(data, dict) or "type" not in data:
        return protocol.from_data(protocol.SerializedPlan, data)
    message = protocol.from_data(protocol.CoordinatorToWorker, data)
    if isinstance(message, protocol.AssignPlan):
        return message.plan
    raise InvalidMessage(f"{file} is the message {data['type']}; submit takes an AssignPlan or a SerializedPlan")


def plans(
    state: Annotated[
        list[str] | None,
        typer.Option(help="Only these: queued, running, waiting, succeeded, failed, cancelled; may be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")] = 20,
    parts: Annotated[bool, typer.Option("--parts", help="Also those that are parts of other plans.")] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """The newest plans and jobs: state, attempts, where each ran, and why it ended.

    Example: [cyan]somatize plans --state failed[/]
    """
    wanted = None if state is None else [plan_views.ledger_state(word) for word in state]
    with connected(url) as coordinator:
        records = coordinator.ledger.records(limit=limit, states=wanted, children=parts)
    if json:
        print_json([plan_views.record_json(record) for record in records])
    elif records:
        plan_views.print_records(records)
    else:
        errors.print(f"no {' or '.join(state)} plans" if state else "no plans yet", style="dim", highlight=False)


def events(
    plan: PlanId,
    after: Annotated[int, typer.Option(min=0, help="Only events after this number.")] = 0,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Go on until the plan ends.")] = True,
    url: Url = None,
    json: Json = False,
) -> None:
    """A plan's events from the first, live until it ends; then how it ended, and each attempt.

    With [cyan]--json[/], one protocol message a line.

    Example: [cyan]somatize events 3f2a --json | jq .event.event_type[/]
    """
    from somatize_worker import protocol

    with connected(url) as coordinator:
        handle = coordinator.plan(find_plan(coordinator, plan))
        is_job = handle.record.kind == "job"
        told = coordinator.job(handle.plan_id).progress if is_job else handle.messages
        for message in told(after, timeout=None if follow else 0.0):
            if json:
                print_json_line(protocol.to_data(message))
            else:
                console.print(plan_views.message_line(message), highlight=False, soft_wrap=not console.is_terminal)
        if not json:
            plan_views.print_attempts(handle.record, coordinator.ledger.family(handle.plan_id))


def logs(
    plan: PlanId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the plan ends.")] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """What a plan or job printed. With [cyan]--json[/], one line's text a line.

    Example: [cyan]somatize logs 3f2a --follow[/]
    """
    with connected(url) as coordinator:
        handle = coordinator.plan(find_plan(coordinator, plan))
        for line in handle.output_lines(follow=follow):
            if json:
                print_json_line(line)
            else:
                console.out(line, highlight=False)


def cancel(
    plan: PlanId,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Take an id that is not known yet: a plan of that id will not run.")
    ] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Cancel a plan or job, wherever it is: its processes are killed.

    Example: [cyan]somatize cancel 3f2a[/]
    """
    with connected(url) as coordinator:
        plan_id, state = _cancel(coordinator, plan, unseen=unseen)
    if json:
        print_json({"plan_id": plan_id, "state": state})
    elif state == "cancelled":
        console.print(f"cancelled {plan_id}", highlight=False)
    else:
        errors.print(f"{plan_id} is not cancelled: it {state}", style="yellow", highlight=False)
    if state != "cancelled":
        raise typer.Exit(1)


def _cancel(coordinator: Coordinator, plan: str, *, unseen: bool) -> tuple[str, str]:
    try:
        plan_id = find_plan(coordinator, plan)
    except PlanNotFound:
        if not unseen:
            raise
        plan_id = plan
    coordinator.cancel_plan(plan_id, "cancelled from the command line")
    state, _ = coordinator.job(plan_id).ending(_CANCELLED_WITHIN_S)
    return plan_id, state
