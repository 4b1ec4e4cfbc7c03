"""How pickle takes an object apart."""

from __future__ import annotations

import copyreg
from typing import Any


def reduced_form(obj: Any) -> Any:
    """How pickle takes an object apart: (maker, arguments, state, ...), or the name of a global.

    Raises:
        Exception: whatever the object's own code raises; TypeError for what does not pickle.
    """
    reduce = copyreg.dispatch_table.get(type(obj))
    return obj.__reduce_ex__(4) if reduce is None else reduce(obj)
