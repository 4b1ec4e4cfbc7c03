"""Commands about the cluster: start one, start a worker, look at it, find out what is wrong."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from somatize_worker import protocol
from somatize_worker import settings as settings_module
from somatize_worker.cli.checks import run_checks
from somatize_worker.cli.output import Json, Url, console, print_json, share_bar, size_text
from somatize_worker.coordinator import Coordinator, WorkerInfo

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def up(
    workers: Annotated[
        list[str] | None, typer.Option("--worker", "-w", help="TAG=NUMBER; may be repeated. Default: cpu=1.")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Plans that each worker runs at once; default: cores.")] = None,
    port: Annotated[int, typer.Option(help="Port of the embedded server; 0 finds a free one.")] = 6379,
    folder: Annotated[Path | None, typer.Option(help="Keep data here; without it, all goes at the end.")] = None,
    json: Json = False,
) -> None:
    """Start a server and workers on this machine, until Ctrl-C.

    Example: [cyan]somatize up -w cpu=2 -w gpu=1[/]
    """
    from somatize_worker.local import LocalCluster

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    wanted = _wanted(workers or ["cpu=1"])
    with LocalCluster(wanted, slots=slots, folder=folder, port=port) as cluster:
        if json:
            print_json({"environ": cluster.environ(), "workers": [w.worker_id for w in cluster.workers]})
        else:
            _print_up(cluster)
        sys.stdout.flush()
        stop.wait()
        if not json:
            console.print("stopping …", style="dim")


def _wanted(words: list[str]) -> dict[str, int]:
    wanted = {}
    for word in words:
        tags, _, number = word.partition("=")
        if not tags or not (number or "1").isdigit():
            raise typer.BadParameter(f"{word!r}: write TAG=NUMBER, as in gpu=2", param_hint="--worker")
        wanted[tags] = int(number or 1)
    return wanted


def _print_up(cluster: Any) -> None:
    table = Table("worker", "tags", "slots", "pid", box=None, padding=(0, 2))
    for worker in cluster.workers:
        table.add_row(worker.worker_id, worker.tags, str(worker.slots), str(worker.pid))
    console.print(table)
    console.print("\nIn another terminal:\n")
    for name, value in cluster.environ().items():
        console.print(f"  export {name}={value}", style="cyan", highlight=False, soft_wrap=True)
    console.print("  somatize workers\n\nCtrl-C stops it.", highlight=False)


def worker(
    context: typer.Context,
    tags: Annotated[str, typer.Option("--tags", "-Q", help="Tags to serve, as in gpu,training.")] = "cpu",
    slots: Annotated[int | None, typer.Option("--slots", "-c", help="Plans at once; default: cores.")] = None,
    url: Url = None,
) -> None:
    """Start one worker: the same as `celery -A somatize_worker worker -Q TAGS`; further options go to Celery.

    Example: [cyan]somatize worker -Q gpu,training -c 2[/]
    """
    if url:
        os.environ[settings_module.variable("redis_url")] = url
    command = [sys.executable, "-m", "celery", "-A", "somatize_worker", "worker", "-Q", tags, "--loglevel", "INFO"]
    command += [*(["-c", str(slots)] if slots else []), *context.args]
    os.execv(sys.executable, command)


def workers(url: Url = None, json: Json = False) -> None:
    """The live workers: what they have, and how busy they are.

    Example: [cyan]somatize workers[/]
    """
    with Coordinator(url) as coordinator:
        found = coordinator.workers()
    if json:
        print_json([_worker_json(worker) for worker in found])
        return
    if not found:
        console.print("no worker is running. Start one: [cyan]celery -A somatize_worker worker -Q cpu[/]")
        return
    table = Table(box=None, padding=(0, 1))
    for name in ("worker", "tags", "host", "cores", "memory", "GPUs"):
        table.add_column(name)
    for name in ("plans", "waiting"):
        table.add_column(name, justify="right")
    table.add_column("CPU")
    table.add_column("RAM")
    for info in found:
        capabilities, load = info.capabilities, info.load
        gpus = ", ".join(f"{gpu.name} {size_text(gpu.memory_bytes)}" for gpu in capabilities.gpus) or "–"
        table.add_row(
            info.worker_id,
            f"[cyan]{', '.join(info.tags)}[/]",
            info.host,
            str(capabilities.cpu_cores),
            size_text(capabilities.ram_bytes),
            gpus,
            f"{load.active_plans}/{info.slots}",
            str(load.queue_depth),
            share_bar(load.cpu_usage),
            share_bar(load.memory_usage),
        )
    console.print(table)


def _worker_json(info: WorkerInfo) -> dict[str, Any]:
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

    Example: [cyan]somatize doctor[/]
    """
    checks = list(run_checks(url))
    if json:
        print_json([{"check": c.name, "ok": c.ok, "found": c.found, "remedy": c.remedy} for c in checks])
    else:
        for check in checks:
            mark = "[green]✓[/]" if check.ok else "[red]✗[/]"
            console.print(f"{mark} [bold]{check.name}[/]  {escape(check.found)}", highlight=False)
            if check.remedy:
                console.print(f"  [yellow]→ {escape(check.remedy)}[/]", highlight=False)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
