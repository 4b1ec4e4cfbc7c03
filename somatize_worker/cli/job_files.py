"""From a command line to what a Python job consists of: its source files, parameters and input."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer

from somatize_worker.cli.output import errors
from somatize_worker.errors import InvalidJob

_NOT_SOURCE: Final = {"__pycache__", "node_modules", "outputs"}


def source_files(folder: Path) -> list[tuple[str, str]]:
    """(path, content) of the text files below a folder. Hidden ones, caches, virtual environments and ``outputs/`` are
    left out, and so is, with a word on standard error, what is no text.

    Raises:
        InvalidJob: there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise InvalidJob(f"{folder} is not a folder: give the one that the entry point lies in")
    found = []
    for path in _files(folder):
        try:
            found.append((path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            errors.print(f"left out {path}: not a text file", style="yellow", highlight=False)
    if not found:
        raise InvalidJob(f"{folder} holds no source files")
    return found


def _files(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_left_out(name) and not _is_environment(here, name))
        yield from (Path(here, name) for name in sorted(names) if not _is_left_out(name))


def _is_left_out(name: str) -> bool:
    return name in _NOT_SOURCE or name.startswith(".")


def _is_environment(here: str, name: str) -> bool:
    return os.path.exists(os.path.join(here, name, "pyvenv.cfg"))


def parameter(word: str) -> tuple[str, Any]:
    """``lr=0.1`` as a name and a value: JSON if it is, else text.

    Raises:
        typer.BadParameter: no name or no equals sign.
    """
    name, equals, text = word.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{word!r}: write NAME=VALUE, as in lr=0.1", param_hint="--param")
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        InvalidJob: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidJob(f"{path} cannot be read: {error}") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InvalidJob: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise InvalidJob(f"{path} is not JSON: {error}") from error
