"""Commands about the cluster: start one, start a worker, look at it, find out what is wrong."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from somatize_worker import readable
from somatize_worker import settings as settings_module
from somatize_worker.cli.client import connected
from somatize_worker.cli.output import Json, Url, console, errors, print_json, share_bar
from somatize_worker.settings import Settings

if TYPE_CHECKING:
    from somatize_worker.coordinator import WorkerInfo
    from somatize_worker.local import LocalCluster

PASS_ON: Final = {"allow_extra_args": True, "ignore_unknown_options": True}
_LOOK_EVERY_S: Final = 0.5


def up(
    workers: Annotated[
        list[str] | None,
        typer.Option("--worker", "-w", metavar="TAG=NUMBER", help="Workers of a tag; may be repeated. Default: cpu=1."),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Plans that each worker runs at once; default: cores.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the server; 0 finds a free one.")] = 0,
    folder: Annotated[
        Path | None, typer.Option(help="Keep plans and data here, for the next time; default: nothing is kept.")
    ] = None,
    logs: Annotated[bool, typer.Option("--logs", help="Show what the workers log.")] = False,
    json: Json = False,
) -> None:
    """Start a server and workers on this machine, until Ctrl-C.

    Example: [cyan]somatize up -w cpu=2 -w gpu=1[/]
    """
    from somatize_worker.local import LocalCluster

    wanted = dict(_wanted(workers or ["cpu=1"]))
    cluster = LocalCluster(wanted, slots=slots, folder=folder, port=port, on_log=_print_log if logs else None)
    stop = threading.Event()
    with _ended_by_signals():
        try:
            with console.status("starting a server and workers …") if not json else _nothing():
                cluster.start()
            if json:
                print_json(_up_json(cluster))
            else:
                _print_up(cluster)
            _watch(cluster, stop)
        except KeyboardInterrupt:
            if not json:
                console.print(f"stopping{_patience(folder)} …", style="dim", highlight=False)
        finally:
            cluster.close()


def _wanted(words: list[str]) -> Iterator[tuple[str, int]]:
    for word in words:
        tags, _, number = word.partition("=")
        if not tags or not (number or "1").isdigit():
            raise typer.BadParameter(f"{word!r}: write TAG=NUMBER, as in gpu=2", param_hint="--worker")
        yield tags, int(number or 1)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends ``up`` as Ctrl-C does; and so does SIGINT where a script's ``up &`` was started to ignore it."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _watch(cluster: LocalCluster, stop: threading.Event) -> None:
    """Wait for ever; tell of workers that end meanwhile."""
    gone: set[str] = set()
    while not stop.wait(_LOOK_EVERY_S):
        for worker in cluster.workers:
            if not worker.running and worker.worker_id not in gone:
                gone.add(worker.worker_id)
                errors.print(
                    f"worker {worker.worker_id} has ended ({worker.ending}); its plans go to other workers of its tag",
                    style="yellow",
                    highlight=False,
                )


def _patience(folder: Path | None) -> str:
    if folder is None:
        return ""
    return f"; running plans have {Settings.from_env().grace_s:g} s, Ctrl-C hands them back at once"


def _print_log(worker_id: str, line: str) -> None:
    errors.print(f"[dim]{worker_id}[/] {escape(line)}", highlight=False)


def _up_json(cluster: LocalCluster) -> dict[str, Any]:
    workers = [
        {"worker_id": worker.worker_id, "tags": worker.tags.split(","), "slots": worker.slots, "pid": worker.pid}
        for worker in cluster.workers
    ]
    return {"environ": cluster.environ(), "workers": workers, "pid": os.getpid()}


def _print_up(cluster: LocalCluster) -> None:
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column("worker", style="bold")
    table.add_column("tags", style="cyan")
    table.add_column("slots", justify="right")
    table.add_column("pid", justify="right", style="dim")
    for worker in cluster.workers:
        table.add_row(worker.worker_id, worker.tags, str(worker.slots), str(worker.pid))
    console.print(table)
    console.print("\nIn another terminal:\n", highlight=False)
    environ = cluster.environ()
    for name in (settings_module.variable("redis_url"), settings_module.variable("store")):
        console.print(f"  export {name}={environ[name]}", style="cyan", highlight=False)
    console.print("  somatize workers", style="cyan", highlight=False)
    console.print("\nCtrl-C stops it.", highlight=False)


def worker(
    context: typer.Context,
    tags: Annotated[str, typer.Option("--tags", "-Q", help="Tags to serve, as in gpu,training.")] = "cpu",
    slots: Annotated[int | None, typer.Option("--slots", "-c", min=1, help="Plans at once; default: cores.")] = None,
    url: Url = None,
) -> None:
    """Start one worker: the same as [cyan]celery -A somatize_worker worker -Q TAGS[/]; further options go to Celery.

    Example: [cyan]somatize worker -Q gpu,training -c 2[/]
    """
    if url:
        os.environ[settings_module.variable("redis_url")] = url
    command = [sys.executable, "-m", "celery", "-A", "somatize_worker", "worker", "-Q", tags]
    if not any(word.startswith(("-l", "--loglevel")) for word in context.args):
        command += ["--loglevel", "INFO"]
    command += [*(["-c", str(slots)] if slots else []), *context.args]
    os.execv(sys.executable, command)


def workers(url: Url = None, json: Json = False) -> None:
    """The live workers: what they have, and how busy they are.

    Example: [cyan]somatize workers[/]
    """
    with connected(url) as coordinator:
        found = coordinator.workers()
    if json:
        print_json([_worker_json(worker) for worker in found])
    elif found:
        console.print(_worker_table(found))
    else:
        errors.print("no worker is running. Start one: [cyan]celery -A somatize_worker worker -Q cpu[/]")


def _worker_table(found: list[WorkerInfo]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("worker", style="bold", overflow="fold")
    table.add_column("tags", style="cyan", overflow="fold")
    many_hosts = len({info.host for info in found}) > 1
    if many_hosts:
        table.add_column("host", overflow="fold")
    for name in ("plans", "queued", "cores"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("CPU", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    has_gpus = any(info.capabilities.gpus for info in found)
    if has_gpus:
        table.add_column("GPUs", overflow="fold")
    for info in found:
        capabilities, load = info.capabilities, info.load
        table.add_row(
            escape(info.worker_id),
            escape(", ".join(info.tags)),
            *([escape(info.host)] if many_hosts else []),
            f"{load.active_plans}/{info.slots}",
            str(load.queue_depth),
            str(capabilities.cpu_cores),
            share_bar(load.cpu_usage),
            f"{load.memory_usage:.0%} [dim]of[/] {readable.size(capabilities.ram_bytes)}",
            *(
                [", ".join(f"{gpu.name} {readable.size(gpu.memory_bytes)}" for gpu in capabilities.gpus)]
                if has_gpus
                else []
            ),
        )
    return table


def _worker_json(info: WorkerInfo) -> dict[str, Any]:
    from somatize_worker import protocol

    return {
        "worker_id": info.worker_id,
        "host": info.host,
        "pid": info.pid,
        "slots": info.slots,
        "started": info.started.isoformat(),
        "capabilities": protocol.to_data(info.capabilities),
        "load": protocol.to_data(info.load),
    }


def doctor(url: Url = None, json: Json = False) -> None:
    """Check settings, server, store, workers and hosts, and say what to do about what is wrong.

    The exit status is 0 if all is well.

    Example: [cyan]somatize doctor[/]
    """
    from somatize_worker.cli.checks import run_checks

    checks = []
    for check in run_checks(url):
        checks.append(check)
        if json:
            continue
        mark = "[green]✓[/]" if check.ok else "[red]✗[/]"
        console.print(f"{mark} [bold]{check.name:<10}[/] {escape(check.found)}", highlight=False)
        if check.remedy:
            console.print(f"  [yellow]→ {escape(check.remedy)}[/]", highlight=False)
    if json:
        print_json([{"check": c.name, "ok": c.ok, "found": c.found, "remedy": c.remedy} for c in checks])
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
