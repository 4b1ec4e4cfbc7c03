"""Pictures that change while one looks: in a terminal, in a notebook, or, where neither is, once at the end."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.live import Live

_REFRESH_PER_SECOND: Final = 12
_NOTEBOOK_EVERY_S: Final = 0.2
_NOTEBOOK_WIDTH: Final = 110
_HTML: Final = '<pre style="line-height:normal;margin:0;font-family:monospace">{code}</pre>'


@contextmanager
def showing(view: RenderableType, console: Console) -> Iterator[None]:
    """Show a picture while inside."""
    if console.is_jupyter:
        with _in_notebook(view):
            yield
    elif console.is_terminal and not console.is_dumb_terminal:
        with Live(view, console=console, refresh_per_second=_REFRESH_PER_SECOND):
            yield
    else:
        try:
            yield
        finally:
            console.print(view)


@contextmanager
def _in_notebook(view: RenderableType) -> Iterator[None]:
    """As HTML, drawn anew by a thread. (rich's own way needs ipywidgets.)"""
    ipython: Any = import_module("IPython.display")
    drawn = ipython.display(ipython.HTML(_html(view)), display_id=True)
    over = threading.Event()

    def draw() -> None:
        while not over.wait(_NOTEBOOK_EVERY_S):
            drawn.update(ipython.HTML(_html(view)))

    painter = threading.Thread(target=draw, name="soma-painter", daemon=True)
    painter.start()
    try:
        yield
    finally:
        over.set()
        painter.join()
        drawn.update(ipython.HTML(_html(view)))


def _html(view: RenderableType) -> str:
    canvas = Console(record=True, file=io.StringIO(), width=_NOTEBOOK_WIDTH, force_jupyter=False, force_terminal=True)
    canvas.print(view)
    return canvas.export_html(inline_styles=True, code_format=_HTML)
