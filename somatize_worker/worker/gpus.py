"""The GPUs that this worker may use, read through NVML.

A machine without NVIDIA's driver has none, silently. A driver that is there but does not answer is logged, because
whoever started a worker on a GPU machine wants to know.
"""

from __future__ import annotations

import logging
from typing import Any

import pynvml

log = logging.getLogger("somatize.worker")


class Gpus:
    """The visible GPUs. ``nvml`` is the ``pynvml`` module, ``indices`` are their numbers in NVML's order."""

    def __init__(self, handles: list[Any], nvml: Any = pynvml, indices: list[int] | None = None) -> None:
        self._handles = handles
        self.indices = list(range(len(handles))) if indices is None else indices
        self._nvml = nvml

    @classmethod
    def open(cls, visible: str | None = None, nvml: Any = pynvml) -> Gpus:
        """Find the GPUs; ``visible`` is ``CUDA_VISIBLE_DEVICES`` (None: all, ``""``: none)."""
        try:
            nvml.nvmlInit()
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            names = [str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
            return cls([], nvml)
        except nvml.NVMLError as error:
            log.warning("NVIDIA's driver is installed but does not answer (%s): no GPU is announced", error)
            return cls([], nvml)
        chosen = _chosen(visible, names)
        return cls([handles[index] for index in chosen], nvml, chosen)

    def describe(self) -> list[dict[str, Any]]:
        """The protocol's ``GpuInfo`` of each."""
        return [
            {"name": str(self._nvml.nvmlDeviceGetName(handle)), "memory_bytes": self._memory(handle)[1]}
            for handle in self._handles
        ]

    def usage(self) -> list[float]:
        """How busy each is, 0 to 1.

        Where the driver does not tell (a partitioned GPU), the share of its memory in use. A GPU that no longer
        answers counts as busy.
        """
        return [self._usage(handle) for handle in self._handles]

    def _usage(self, handle: Any) -> float:
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
        except self._nvml.NVMLError_NotSupported:
            used, total = self._memory(handle)
            return used / total if total else 0.0
        except self._nvml.NVMLError:
            return 1.0

    def _memory(self, handle: Any) -> tuple[int, int]:
        """Bytes (used, total); zeros where the GPU has no memory of its own."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except self._nvml.NVMLError_NotSupported:
            return 0, 0
        return int(memory.used), int(memory.total)


def _chosen(visible: str | None, names: list[str]) -> list[int]:
    """Indices that ``CUDA_VISIBLE_DEVICES`` names, by number or by the beginning of a UUID.

    As in CUDA, the first entry that names no GPU ends the list, and so does a repeated one.
    """
    if visible is None:
        return list(range(len(names)))
    chosen: list[int] = []
    for word in (part.strip() for part in visible.split(",")):
        found = [index for index, name in enumerate(names) if str(index) == word or (word and name.startswith(word))]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen += found
    return chosen
