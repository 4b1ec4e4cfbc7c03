"""What all commands share: the options they have in common, and how they print."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from somatize_worker.errors import SomaError

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Url = Annotated[
    str | None, typer.Option("--url", help="The Redis or Valkey server; default: SOMA_REDIS_URL.", show_default=False)
]

console = Console()
errors = Console(stderr=True)

STATE_STYLES = {
    "queued": "yellow",
    "leased": "cyan",
    "waiting": "blue",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
}


def print_json(data: Any) -> None:
    """One JSON document on standard output, as plain text whatever the terminal."""
    sys.stdout.write(json.dumps(data, indent=2, default=str, ensure_ascii=False) + "\n")


def print_json_line(text: str | bytes) -> None:
    """One JSON document on one line, at once."""
    sys.stdout.write((text.decode() if isinstance(text, bytes) else text) + "\n")
    sys.stdout.flush()


def complain(error: SomaError) -> int:
    """Tell an error; returns the exit status."""
    if "--json" in sys.argv:
        print_json(error.to_dict())
    else:
        errors.print(f"[bold red]error:[/] {_escaped(error.message)}", highlight=False)
    return 1


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


def ago(milliseconds: int) -> str:
    """A moment (milliseconds since 1970) as how long ago it was."""
    seconds = max(0.0, datetime.now(UTC).timestamp() - milliseconds / 1000)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def size_text(number: float) -> str:
    """Bytes for people: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def share_bar(share: float, width: int = 10) -> str:
    """A share of 1 as a small bar."""
    full = round(max(0.0, min(1.0, share)) * width)
    return f"{'█' * full}[dim]{'░' * (width - full)}[/] {share:4.0%}"
