"""Live values between a host and its helper processes: as they are, by pickle, large ones through files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from somatize_worker.stores import formats
from somatize_worker.values import load_state, nbytes, pickle_state

_INLINE_BYTES: Final = 256 << 10


def pack_live(value: Any, folder: Path) -> dict[str, Any]:
    """A live value made ready for the wire. A file made for it is the receiver's to remove: see :func:`discard`.

    Raises:
        Unrepresentable: it can neither travel as plain data nor be pickled.
        StoreFull: no room for the file.
    """
    plain = pickle_state(value)
    if nbytes(plain) <= _INLINE_BYTES:
        return {"value": plain}
    return {"file": str(formats.write(folder / formats.new_name(), plain))}


def unpack_live(packed: dict[str, Any]) -> Any:
    """The value; large arrays are read-only views of their file, which may be removed then."""
    return load_state(formats.read(Path(packed["file"])) if "file" in packed else packed["value"])


def discard(packed: dict[str, Any]) -> None:
    """Remove the file, if there is one."""
    if "file" in packed:
        Path(packed["file"]).unlink(missing_ok=True)
