"""From Python objects to plans: steps, ``>>`` and ``|``, adapters, pickling. Names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from somatize_worker.pipeline.compile import (
        CompiledFilter,
        CompiledPipeline,
        StepSource,
        compile_once,
        compile_pipeline,
    )
    from somatize_worker.pipeline.filter import Filter
    from somatize_worker.pipeline.fingerprint import fingerprint_of
    from somatize_worker.pipeline.fitted import FittedPipeline
    from somatize_worker.pipeline.pickling import dumps, loads, requirements_of
    from somatize_worker.pipeline.shorthand import sk, torch_step
    from somatize_worker.pipeline.steps import (
        Branch,
        Chain,
        Composite,
        Fork,
        Loop,
        Pipeline,
        Step,
        as_step,
        branch,
        composite,
        fork,
        loop,
        pipeline,
    )
    from somatize_worker.pipeline.targets import Target

_MODULES: Final = {
    "compile": ("CompiledFilter", "CompiledPipeline", "StepSource", "compile_once", "compile_pipeline"),
    "filter": ("Filter",),
    "fingerprint": ("fingerprint_of",),
    "fitted": ("FittedPipeline",),
    "pickling": ("dumps", "loads", "requirements_of"),
    "shorthand": ("sk", "torch_step"),
    "steps": (
        "Branch", "Chain", "Composite", "Fork", "Loop", "Pipeline", "Step", "as_step", "branch", "composite", "fork",
        "loop", "pipeline",
    ),
    "targets": ("Target",),
}  # fmt: skip
_HOMES: Final = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Branch", "Chain", "CompiledFilter", "CompiledPipeline", "Composite", "Filter", "FittedPipeline", "Fork", "Loop",
    "Pipeline", "Step", "StepSource", "Target", "as_step", "branch", "compile_once", "compile_pipeline", "composite",
    "dumps", "fingerprint_of", "fork", "loads", "loop", "pipeline", "requirements_of", "sk", "torch_step",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
