"""Requirement lines, parsed and brought into one form, so that equal needs are equal text.

Accepted are PEP 508 requirements by name (``numpy>=2``, ``torch[extra]; python_version < "3.14"``). Options are always
refused; URLs (version control included) and local paths only pass where the worker's settings allow them. Clients use
this too, to refuse early what no worker would accept.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidName, canonicalize_name

from somatize_worker.errors import EnvironmentFailed

MAX_LINE_CHARS: Final = 1_000
MAX_LINES: Final = 1_000
ANY_KIND: Final = ("urls", "paths")
"""What ``allow`` may hold."""

_COMMENT = re.compile(r"(^|\s)#.*$")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|/)")
_NAMED_URL = re.compile(r"^\s*[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[^\]]*\])?\s*@")
_ARCHIVE = re.compile(r"\.(whl|zip|egg|tar|tgz|tbz|txz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)


def normalise(requirements: str | Iterable[str], *, allow: Collection[str] = ()) -> tuple[str, ...]:
    """The requirements as sorted, unique PEP 508 text.

    Args:
        requirements: the text of a requirements file, or its lines. Comments, blank lines and backslash
            continuations are understood.
        allow: ``"urls"`` and ``"paths"`` let such requirements pass.

    Raises:
        EnvironmentFailed: a line that does not parse or is not allowed; the message quotes it.
    """
    text = requirements if isinstance(requirements, str) else "\n".join(requirements)
    lines = [line for line in _logical_lines(text) if line]
    if len(lines) > MAX_LINES:
        raise EnvironmentFailed(f"{len(lines)} requirements are too many: at most {MAX_LINES} are accepted")
    return tuple(sorted({_normalise_line(line, allow) for line in lines}))


def check(requirements: Iterable[str]) -> None:
    """Refuse what no worker would take, whatever it allows.

    Raises:
        EnvironmentFailed: a line that does not parse, or has options; the message quotes it.
    """
    normalise(requirements, allow=("urls", "paths"))


def names(requirements: Iterable[str]) -> set[str]:
    """The canonical names among normalised requirements (a bare URL or path has none)."""
    found = (re.match(r"[a-z0-9]+(-[a-z0-9]+)*(?=$|[\[=<>!~;@ ])", line) for line in requirements)
    return {match.group() for match in found if match}


def local_path(requirement: str) -> Path | None:
    """The file or folder that a normalised requirement leads to, if it is a local one."""
    if requirement.startswith("/"):
        return Path(requirement)
    _, _, url = requirement.partition("@ ")
    target = url.partition(" ;")[0].strip() if url else requirement
    return Path(unquote(urlsplit(target).path)) if target.startswith("file:") else None


def _logical_lines(text: str) -> list[str]:
    joined = re.sub(r"\\\r?\n", " ", text.removeprefix("\ufeff"))
    return [_COMMENT.sub("", line).strip() for line in joined.splitlines()]


def _normalise_line(line: str, allow: Collection[str]) -> str:
    if len(line) > MAX_LINE_CHARS:
        raise _refused(line[:80] + "…", f"it is longer than {MAX_LINE_CHARS} characters")
    if "\0" in line or not line.isprintable():
        raise _refused(line, "it holds characters that cannot be printed")
    if line.startswith("-") or re.search(r"\s--?[A-Za-z]", line):
        raise _refused(line, "options are not accepted (the package index is set by the worker's SOMA_ENV_INDEX_URL)")
    if "${" in line:
        raise _refused(line, "environment variables are not filled in")
    if _NAMED_URL.match(line):
        requirement = _parse(line)
        return _write(requirement, _checked_url(line, requirement.url or "", allow))
    if _URL.match(line):
        return _checked_url(line, line, allow)
    if line.startswith((".", "/", "~")) or "\\" in line or "/" in line.partition(";")[0] or _ARCHIVE.search(line):
        return _checked_path(line, line, allow)
    return _write(_parse(line), "")


def _parse(line: str) -> Requirement:
    try:
        requirement = Requirement(line)
        for name in (requirement.name, *requirement.extras):
            canonicalize_name(name, validate=True)  # the parser alone lets a name end in "_"
        return requirement
    except (InvalidRequirement, InvalidName) as error:
        reason = str(error).partition("\n")[0]
        raise _refused(line, f"it does not parse: {reason}; write `name`, `name==1.2` or `name>=1,<2`") from None


def _write(requirement: Requirement, url: str) -> str:
    text: str = canonicalize_name(requirement.name)
    if requirement.extras:
        text += f"[{','.join(sorted(canonicalize_name(extra) for extra in requirement.extras))}]"
    text += f" @ {url}" if url else str(requirement.specifier)
    if requirement.marker is not None:
        text += f"{' ' if url else ''}; {requirement.marker}"
    return text


def _checked_url(line: str, url: str, allow: Collection[str]) -> str:
    if url.startswith("file:") or not _URL.match(url):
        path = unquote(urlsplit(url).path) if url.startswith("file:") else url
        return f"file://{_checked_path(line, path, allow)}"
    if "urls" not in allow:
        raise _refused(line, "URLs are not accepted unless the worker allows them (SOMA_ENV_ALLOW=urls)")
    return url


def _checked_path(line: str, path: str, allow: Collection[str]) -> str:
    if "paths" not in allow:
        raise _refused(line, "paths are not accepted unless the worker allows them (SOMA_ENV_ALLOW=paths)")
    if not path.startswith("/"):
        raise _refused(line, "a path must be absolute: the requirement is installed on the worker's machine")
    return path


def _refused(line: str, why: str) -> EnvironmentFailed:
    return EnvironmentFailed(f"the requirement {line!r} is refused: {why}", requirement=line)
