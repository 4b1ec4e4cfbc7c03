"""Pipelines as text trees and as boxes for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final, Protocol

_MOST_SHOWN: Final = 8

_STYLE: Final = (
    ".soma-box{display:inline-flex;gap:.4em;align-items:center;border:1px solid #8886;border-radius:.4em;"
    "padding:.3em .5em;margin:.15em;font:13px sans-serif}"
    ".soma-column{flex-direction:column;align-items:flex-start}"
    ".soma-title{color:#777;font-size:11px}"
)


class Shown(Protocol):
    """What can be shown: a line of its own, and parts below it with captions."""

    @property
    def title(self) -> str: ...

    @property
    def shown(self) -> Sequence[tuple[str, Shown]]: ...


def shortened(texts: Sequence[str]) -> list[str]:
    """The texts, or where there are many the first and last of them around a count of the others."""
    if len(texts) <= _MOST_SHOWN:
        return list(texts)
    return [*texts[:3], f"… {len(texts) - 5} more …", *texts[-2:]]


def tree(node: Shown) -> str:
    """The node and all below it, one a line, with branches drawn.

    Example:
        Chain
        ├── Scaler · trainable
        └── Model @gpu · trainable
    """
    lines = [node.title]
    _draw(node, "", lines)
    return "\n".join(lines)


def _draw(node: Shown, indent: str, lines: list[str]) -> None:
    below = node.shown
    for index, (caption, part) in enumerate(below):
        last = index == len(below) - 1
        lines.append(f"{indent}{'└── ' if last else '├── '}{caption}{part.title}")
        _draw(part, indent + ("    " if last else "│   "), lines)


def html(node: Shown) -> str:
    """The node as nested boxes: chains run from left to right, everything else from top to bottom."""
    return f"<style>{_STYLE}</style>{_box('', node)}"


def _box(caption: str, node: Shown) -> str:
    title = escape(f"{caption}{node.title}")
    if not node.shown:
        return f'<div class="soma-box">{title}</div>'
    row = type(node).__name__ in ("Chain", "Composite")
    inner = ("<span>→</span>" if row else "").join(_box(label, part) for label, part in node.shown)
    inside = f'<div class="soma-box{"" if row else " soma-column"}" style="border:0">{inner}</div>'
    return f'<div class="soma-box soma-column"><span class="soma-title">{title}</span>{inside}</div>'
