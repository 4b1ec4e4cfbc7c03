"""Where a reference leads: data stores, and the file formats in which values lie in them.

:func:`open_store` is the way in; :func:`resolve` and :func:`offload` go over nested data. All names are imported
when first used, so ``stores.formats`` alone stays light enough for a filter host.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from somatize_worker.stores.opening import open_store
    from somatize_worker.stores.references import clear, offload, resolve

__all__ = ["clear", "offload", "open_store", "resolve"]

_HOMES = {"open_store": "opening", "clear": "references", "offload": "references", "resolve": "references"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
