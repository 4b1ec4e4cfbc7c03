"""Death certificates: why a child process ended, as data and as a sentence.

A certificate is a dictionary that JSON and MessagePack can hold:

    reason       what ended it: one of the constants below, or the reason that was given to ``kill``
    exit_code    its exit code, or
    signal       the name of the signal that ended it (neither, if somebody else reaped it)
    detail       numbers to the reason ("1.2 GiB used, 1 GiB allowed"), may be empty
    peak_bytes   the most memory that the process itself had resident, or None
    node         the plan's node that ran, or None
    seconds      since the process was given its work
    last_lines   the last lines it printed
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from somatize_worker.hosts.limits import readable

CRASHED: Final = "crashed"
EXITED: Final = "exited"
OUT_OF_MEMORY: Final = "out of memory"
KILLED_FROM_OUTSIDE: Final = "killed from outside"
UNKNOWN: Final = "unknown"

_REMEDIES: Final = {
    "memory limit": "give it more with SOMA_MEMORY_LIMIT_BYTES, or work on smaller pieces",
    OUT_OF_MEMORY: "the machine had no memory left: run fewer plans at once, or limit each (SOMA_MEMORY_LIMIT_BYTES)",
    "deadline": "give it more time, or work on smaller pieces",
}


@dataclass(frozen=True)
class Death:
    """What is known from outside: ``status`` as of waitpid (None: unknown), ``killed_for`` why we killed it, if we did,
    ``kernel_killed`` whether the kernel's out-of-memory killer struck while it ran."""

    status: int | None
    killed_for: str = ""
    kernel_killed: bool = False


def reason_of(death: Death) -> str:
    """The reason in a word or two. A child that ended by itself before our signal reached it was not killed by us."""
    if death.status is None:
        return death.killed_for or UNKNOWN
    if os.WIFEXITED(death.status):
        return EXITED
    if os.WTERMSIG(death.status) == signal.SIGKILL:
        return death.killed_for or (OUT_OF_MEMORY if death.kernel_killed else KILLED_FROM_OUTSIDE)
    if death.killed_for and os.WTERMSIG(death.status) == signal.SIGTERM:
        return death.killed_for
    return CRASHED


def certificate(
    death: Death,
    *,
    detail: str = "",
    peak_bytes: int | None = None,
    node: str | None = None,
    seconds: float = 0.0,
    last_lines: Sequence[str] = (),
) -> dict[str, Any]:
    """The certificate of a death."""
    reason = reason_of(death)
    ending: dict[str, Any] = {}
    if death.status is not None and os.WIFEXITED(death.status):
        ending["exit_code"] = os.WEXITSTATUS(death.status)
    elif death.status is not None:
        ending["signal"] = signal_name(os.WTERMSIG(death.status))
    return {
        "reason": reason,
        **ending,
        "detail": detail if reason == death.killed_for else "",
        "peak_bytes": peak_bytes,
        "node": node,
        "seconds": round(seconds, 3),
        "last_lines": list(last_lines),
    }


def signal_name(number: int) -> str:
    """``"SIGSEGV"``; a number without a name is ``"signal 40"``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe(certificate: dict[str, Any]) -> str:
    """One sentence: ``killed by SIGSEGV after 1.2 s, in node 'train' (peak memory 312 MiB); last lines: ...``."""
    text = f"{_how(certificate)} after {certificate['seconds']:.3g} s"
    if certificate["node"] is not None:
        text += f", in node {certificate['node']!r}"
    if certificate["peak_bytes"]:
        text += f" (peak memory {readable(certificate['peak_bytes'])})"
    remedy = _REMEDIES.get(certificate["reason"])
    if remedy:
        text += f"; {remedy}"
    if certificate["last_lines"]:
        text += "; last lines:\n" + "\n".join(f"  {line}" for line in certificate["last_lines"])
    else:
        text += "; it printed nothing"
    return text


def _how(certificate: dict[str, Any]) -> str:
    reason, detail = certificate["reason"], certificate["detail"]
    if reason == EXITED:
        return f"exited with code {certificate['exit_code']}"
    if reason == UNKNOWN:
        return "ended in an unknown way"
    by = f"killed by {certificate['signal']}" if "signal" in certificate else "ended"
    if reason == CRASHED:
        return by
    if reason == KILLED_FROM_OUTSIDE:
        return f"{by} from outside"
    return f"{by} ({reason}{': ' + detail if detail else ''})"
