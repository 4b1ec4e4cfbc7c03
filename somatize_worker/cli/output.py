"""What all commands share: the options they have in common, and how they print."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape

from somatize_worker.errors import SomaError

_WIDTH_OF_A_PIPE: Final = 4000

console = Console()
errors = Console(stderr=True)

STATE_STYLES: Final = {
    "queued": "yellow",
    "running": "cyan",
    "waiting": "blue",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
}

_for_programs = False


def _remember(wanted: bool) -> bool:
    global _for_programs
    _for_programs = wanted
    return wanted


Json = Annotated[
    bool, typer.Option("--json", callback=_remember, help="Print JSON on standard output, and nothing else.")
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url", help="The cluster's Redis or Valkey server; default: the variable SOMA_REDIS_URL.", show_default=False
    ),
]


def fit_pipe() -> None:
    """Where no terminal says how wide it is, and nobody set COLUMNS, keep a table's row on one line."""
    for stream in (console, errors):
        if not stream.is_terminal:
            stream.width = shutil.get_terminal_size((_WIDTH_OF_A_PIPE, 24)).columns


def let_go_of_output() -> None:
    """Nobody reads standard output any more: have the interpreter's last flush go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def print_json(data: Any) -> None:
    """One JSON document on standard output, as plain text whatever the terminal."""
    sys.stdout.write(json.dumps(json_ready(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def print_json_line(data: Any) -> None:
    """One JSON document on one line, at once."""
    sys.stdout.write(json.dumps(json_ready(data), ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def json_ready(data: Any) -> Any:
    """The same in what JSON has: no NaN and no infinity (they become null), text for what it does not know."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if data is None or isinstance(data, (bool, int, str)):
        return data
    if isinstance(data, Mapping):
        return {str(key): json_ready(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [json_ready(value) for value in data]
    return str(data)


def complain(error: SomaError) -> int:
    """Tell an error, in a sentence on standard error or (``--json``) as an object; returns the exit status."""
    if _for_programs:
        print_json_line(error.to_dict())
    else:
        errors.print(f"[bold red]error:[/] {escape(error.message)}", highlight=False)
    return 1


def ago(milliseconds: int) -> str:
    """A moment (milliseconds since 1970) as how long ago it was."""
    seconds = max(0.0, datetime.now(UTC).timestamp() - milliseconds / 1000)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def share_bar(share: float, width: int = 8) -> str:
    """A share of 1 as a small bar."""
    full = round(max(0.0, min(1.0, share)) * width)
    return f"{'█' * full}[dim]{'░' * (width - full)}[/] {share:4.0%}"
