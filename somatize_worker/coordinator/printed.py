"""What a plan or job has printed, from the ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator

from redis.exceptions import RedisError

from somatize_worker.ledger import TERMINAL, Ledger

_LOOK_EVERY_S = 0.2


class PrintedLines:
    """Iterates over printed lines; with ``follow``, until the plan ends."""

    def __init__(self, ledger: Ledger, plan_id: str, *, follow: bool) -> None:
        self._ledger = ledger
        self._plan_id = plan_id
        self._follow = follow

    def __iter__(self) -> Iterator[str]:
        seen = 0
        while True:
            try:
                over = not self._follow or self._ledger.state(self._plan_id) in TERMINAL
                total, lines = self._ledger.output_since(self._plan_id, seen)
            except (RedisError, OSError):
                if not self._follow:
                    raise
                over, total, lines = False, seen, []
            if total - seen > len(lines):
                yield f"[… {total - seen - len(lines)} lines left out …]"  # older than what is kept
            yield from lines
            seen = total
            if over:
                return
            time.sleep(_LOOK_EVERY_S)
