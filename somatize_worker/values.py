"""Plain data: what Python objects become when they leave a process.

*Plain data* is a numpy array, JSON-like data (None, bool, int, float, str, and lists and dicts of those, arrays and
byte strings among them), a byte string, or None. This module is light: it runs inside filter hosts of any
environment, and knows torch, pandas and others only by what the process has imported already.

Choices that lose something are these, and no others: tuples become lists; numpy scalars become zero-dimensional
arrays; torch's ``bfloat16`` and 8-bit floats become float32, which holds each of their values exactly, since numpy has
no such types; subclasses of plain types become plain.
"""

from __future__ import annotations

import enum
import pickle
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

import cloudpickle
import numpy as np

from somatize_worker.errors import FilterNotLoadable, Unrepresentable
from somatize_worker.packing import Reference

PICKLE_MAGIC: Final = b"SOMA-PICKLE\0"
"""How a pickled state starts; the Python version (``3.11``), a zero byte and the pickle follow."""

MAX_DEPTH: Final = 200
"""How deep plain data may be nested."""

_ATOMS: Final = frozenset({float, int, bool, type(None)})
_AS_IS: Final = _ATOMS | {bytes, Reference}

_REMEDIES: Final[Mapping[str, str]] = {
    "pandas": "return .to_numpy(), or .to_dict('list')",
    "polars": "return .to_numpy(), or .to_dict(as_series=False)",
    "pyarrow": "return .to_numpy() of each column, or .to_pydict()",
    "scipy": "return .toarray() for sparse data, plain numbers for others",
    "PIL": "return numpy.asarray(image)",
    "jax": "return numpy.asarray(x)",
    "jaxlib": "return numpy.asarray(x)",
    "tensorflow": "return .numpy()",
    "cupy": "return .get()",
    "datetime": "return .isoformat(), or .timestamp()",
    "decimal": "return float(x), or str(x)",
    "fractions": "return float(x), or str(x)",
    "pathlib": "return str(path)",
    "uuid": "return str(x)",
}
_GENERAL: Final = "return numpy arrays, numbers, text, bytes, or lists and dicts of them"


class _Unplain(Exception):
    """An object that does not become plain; ``place`` grows while the error travels outwards."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.place: list[str] = []


def to_plain(obj: Any) -> Any:
    """Plain data of the same content. Arrays are not copied, and data that is plain already is returned as it is.

    Raises:
        Unrepresentable: something in it has no plain form (its type, where it is, what to return instead).
    """
    try:
        return _plain(obj, 0)
    except _Unplain as error:
        where = "".join(error.place)
        raise Unrepresentable(
            f"{error.what}{f' at {where}' if where else ''} cannot travel: {error.remedy}", where=where
        ) from None


def _plain(obj: Any, depth: int) -> Any:
    kind = type(obj)
    if kind is np.ndarray:
        return obj if not obj.dtype.hasobject else _plain_array(obj)
    if kind in _AS_IS:
        return obj
    if kind is str:
        return obj if obj.isascii() else _checked_text(obj)
    if depth >= MAX_DEPTH:
        raise _Unplain(f"data nested more than {MAX_DEPTH} deep", "make it flatter (does it contain itself?)")
    if kind is dict:
        return _plain_dict(obj, depth)
    if kind is list:
        return _plain_list(obj, depth)
    if kind is tuple:
        return _plain_list(list(obj), depth)
    return _plain_other(obj, depth)


def _plain_list(items: list[Any], depth: int) -> list[Any]:
    """The same list if every item is plain, else a new one."""
    if _ATOMS.issuperset(map(type, items)):
        return items
    result = items
    for index, item in enumerate(items):
        try:
            plain = _plain(item, depth + 1)
        except _Unplain as error:
            error.place.insert(0, f"[{index}]")
            raise
        if plain is not item:
            if result is items:
                result = list(items)
            result[index] = plain
    return result


def _plain_dict(items: dict[Any, Any], depth: int) -> dict[str, Any]:
    """The same dict if every key and item is plain, else a new one."""
    result: dict[str, Any] = {}
    changed = False
    for key, item in items.items():
        if type(key) is not str and not isinstance(key, str):
            raise _Unplain(f"a dict with the key {key!r} of type {_name(key)}", "make its keys text, as in JSON")
        try:
            plain = _plain(item, depth + 1)
            plain_key = _plain(key, depth + 1)
        except _Unplain as error:
            error.place.insert(0, f"[{str(key)!r}]")
            raise
        changed = changed or plain is not item or plain_key is not key
        result[plain_key] = plain
    return result if changed else items


def _checked_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Unplain("text that is no valid Unicode (a lone surrogate)", "return bytes") from None
    return text


def _plain_other(obj: Any, depth: int) -> Any:
    """Everything that is not exactly of a plain type."""
    if isinstance(obj, np.ndarray):
        return _plain_array(obj)
    if isinstance(obj, (np.str_, np.bytes_)):
        return _plain(obj.item(), depth)
    if isinstance(obj, np.generic):
        return _plain_array(np.asarray(obj))
    if isinstance(obj, enum.Enum) and not isinstance(obj, (int, float, str)):
        raise _Unplain(f"an enum member of type {_name(obj)}", "return its .value")
    for base in (int, float, str):
        if isinstance(obj, base):
            return _plain(base(obj.value if isinstance(obj, enum.Enum) else obj), depth)
    if isinstance(obj, dict):
        return _plain_dict(dict(obj), depth)
    if isinstance(obj, (list, tuple)):
        return _plain_list(list(obj), depth)
    if isinstance(obj, (bytearray, memoryview)):
        return bytes(obj)
    if isinstance(obj, complex):
        return np.asarray(obj)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(obj, torch.Tensor):
        return _plain_torch(obj, torch)
    raise _Unplain(f"an object of type {_name(obj)}", _remedy(obj))


def _plain_array(array: np.ndarray) -> np.ndarray:
    if isinstance(array, np.ma.MaskedArray):
        raise _Unplain("a masked array", "return .filled(), or its .data and .mask")
    if array.dtype.hasobject:
        raise _Unplain(
            f"an array of Python objects (dtype {array.dtype})",
            "give it a numeric type with .astype(float), or .astype(str) for text, or return .tolist()",
        )
    if array.dtype.isbuiltin == 2:  # a type that another package registered, such as ml_dtypes' bfloat16
        raise _Unplain(f"an array of dtype {array.dtype}", "convert it with .astype(numpy.float32)")
    return array if type(array) is np.ndarray else array.view(np.ndarray)


def _plain_torch(tensor: Any, torch: Any) -> np.ndarray:
    """The tensor's numbers in this process's memory, shared with the tensor if they lie there already."""
    if tensor.layout != torch.strided:
        raise _Unplain(f"a torch tensor of layout {tensor.layout}", "return .to_dense()")
    if tensor.is_quantized or tensor.is_nested:
        raise _Unplain(
            "a quantized or nested torch tensor", "return .dequantize(), .to_padded_tensor(0.0), or a list of tensors"
        )
    if tensor.is_meta:
        raise _Unplain("a torch tensor without data (device 'meta')", "return one with data")
    host = tensor.detach().cpu().resolve_conj().resolve_neg()
    if host.dtype.is_floating_point and host.dtype.itemsize < 4 and host.dtype != torch.float16:
        host = host.to(torch.float32)  # bfloat16 and 8-bit floats, which numpy does not have
    try:
        array: np.ndarray = host.numpy()
    except (RuntimeError, TypeError):
        raise _Unplain(f"a torch tensor of dtype {tensor.dtype}", "convert it, for example to torch.float32") from None
    return array


def _name(obj: Any) -> str:
    kind = type(obj)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _remedy(obj: Any) -> str:
    if isinstance(obj, (set, frozenset)):
        return "return sorted(x)"
    if isinstance(obj, Iterator):
        return "return list(x)"
    for base in type(obj).__mro__:
        remedy = _REMEDIES.get(base.__module__.split(".")[0])
        if remedy:
            return remedy
    for name, remedy in (
        ("__dataclass_fields__", "return dataclasses.asdict(x)"),
        ("model_dump", "return .model_dump()"),
        ("__array__", "return numpy.asarray(x)"),
    ):
        if hasattr(obj, name) and not isinstance(obj, type):
            return remedy
    return _GENERAL


# ── Facts about plain data ──────────────────────────────────────────────────────────────────────────────────────


def summary(plain: Any) -> str:
    """One short line: ``Tensor(shape=[2], len=2)``, ``Json(object, len=3)``, ``Bytes(len=4)``, ``Empty``."""
    if isinstance(plain, np.ndarray):
        return f"Tensor(shape={list(plain.shape)}, len={plain.size})"
    if plain is None:
        return "Empty"
    if isinstance(plain, bytes):
        return f"Bytes(len={len(plain)})"
    if isinstance(plain, Reference):
        return f"Reference({plain.type})"
    if isinstance(plain, dict):
        return f"Json(object, len={len(plain)})"
    if isinstance(plain, (list, tuple)):
        return f"Json(array, len={len(plain)})"
    return "Json(bool)" if isinstance(plain, bool) else "Json(string)" if isinstance(plain, str) else "Json(number)"


def nbytes(plain: Any) -> int:
    """About how many bytes plain data takes when packed."""
    if isinstance(plain, np.ndarray):
        return plain.nbytes + 64
    if isinstance(plain, bytes):
        return len(plain) + 5
    if isinstance(plain, str):
        return (len(plain) if plain.isascii() else len(plain.encode(errors="replace"))) + 5
    if isinstance(plain, dict):
        return 5 + sum(nbytes(key) + nbytes(item) for key, item in plain.items())
    if isinstance(plain, (list, tuple)):
        if _ATOMS.issuperset(map(type, plain)):
            return 5 + 9 * len(plain)
        return 5 + sum(map(nbytes, plain))
    return 64 if isinstance(plain, Reference) else 9


# ── States ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def pickle_state(obj: Any) -> Any:
    """A fitted state as plain data: as it is if it is plain already, else pickled, so that it comes back the same.

    Raises:
        Unrepresentable: it can be neither.
    """
    try:
        plain = to_plain(obj)
    except Unrepresentable:
        return _pickled(obj)  # most states are objects of their own; pickling says what is wrong, if it fails too
    if plain is not obj or (isinstance(obj, bytes) and obj.startswith(PICKLE_MAGIC)):
        return _pickled(obj)
    return plain


def _pickled(obj: Any) -> bytes:
    try:
        pickled: bytes = cloudpickle.dumps(obj)
    except Exception as error:  # user classes raise what they like
        raise Unrepresentable(
            f"a state of type {_name(obj)} cannot be pickled: {_said(error)}; "
            "keep open files, locks and connections out of it"
        ) from error
    return b"".join((PICKLE_MAGIC, _version().encode(), b"\0", pickled))


def load_state(plain: Any) -> Any:
    """The state that :func:`pickle_state` was given.

    Raises:
        FilterNotLoadable: pickled by another Python version, or it does not unpickle here (what is missing).
    """
    if not isinstance(plain, bytes) or not plain.startswith(PICKLE_MAGIC):
        return plain
    start = len(PICKLE_MAGIC)
    end = plain.find(b"\0", start, start + 16)
    version = plain[start : max(end, start)].decode(errors="replace")
    if version != _version():
        raise FilterNotLoadable(
            f"a state was pickled by Python {version or '(unknown)'}, and this is Python {_version()}: "
            "use the same minor version, or return states of arrays, numbers, text, lists and dicts",
            pickled_by=version,
            running=_version(),
        )
    return _unpickled(memoryview(plain)[end + 1 :])


def _unpickled(data: memoryview) -> Any:
    try:
        return pickle.loads(data)
    except ModuleNotFoundError as error:
        raise FilterNotLoadable(
            f"a state needs the module {error.name!r}, which {sys.executable} does not have: "
            "install it there, or name it in the filter's requirements",
            module=error.name or "",
        ) from error
    except Exception as error:  # unpickling runs user code
        raise FilterNotLoadable(
            f"a state does not unpickle in {sys.executable}: {_said(error)}; "
            "are its classes of the version that pickled it?"
        ) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
