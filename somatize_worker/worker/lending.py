"""Which GPUs a run may see: the worker's, shared out over its slots."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class GpuLender:
    """Lends GPUs, the least lent first. With one slot a run sees them all; with more slots than GPUs, some share.

    Args:
        indices: the GPUs' numbers in NVML's order.
        slots: runs at once.
    """

    def __init__(self, indices: Sequence[int], slots: int) -> None:
        self._lent = dict.fromkeys(indices, 0)
        self._share = max(1, len(indices) // max(1, slots))
        self._lock = threading.Lock()

    @contextmanager
    def lend(self) -> Iterator[list[int] | None]:
        """GPUs for one run, in order; None if this worker has none."""
        if not self._lent:
            yield None
            return
        with self._lock:
            chosen = sorted(sorted(self._lent, key=lambda index: (self._lent[index], index))[: self._share])
            for index in chosen:
                self._lent[index] += 1
        try:
            yield chosen
        finally:
            with self._lock:
                for index in chosen:
                    self._lent[index] -= 1


def environment(gpus: Sequence[int] | None) -> dict[str, str]:
    """The variables that show a process these GPUs and no others."""
    if gpus is None:
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
