"""How a job ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from somatize_worker.packing import Reference


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """One attempt at a job, over.

    ``metrics`` is JSON-like: what the entry function returned, else the last JSON object printed. ``output`` is what
    was printed, cut in the middle beyond the cap. ``outputs`` leads from paths under ``outputs/`` to the data store.
    ``duration_ms`` counts from the call, with the environment's build. A failure has ``error``, in a sentence, and
    ``error_type`` (a qualified name; ``error_mro`` has those of the exception's class and all its bases);
    ``traceback`` shows user code only. ``certificate`` is there when the process did not end by itself, or ended
    without saying how.
    """

    success: bool
    metrics: Any = None
    output: str = ""
    duration_ms: int = 0
    error: str = ""
    error_type: str = ""
    error_mro: tuple[str, ...] = ()
    traceback: str = ""
    certificate: dict[str, Any] | None = None
    outputs: dict[str, Reference] = field(default_factory=dict)
    exit_code: int | None = None
    cancelled: bool = False
    out_of_time: bool = False
