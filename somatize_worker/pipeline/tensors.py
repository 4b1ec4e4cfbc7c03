"""Arrays to tensors and back, inside lists, tuples and mappings too. torch is imported when a function is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from somatize_worker.errors import InvalidPipeline


def home(module: Any) -> tuple[Any, Any]:
    """Device and floating point dtype of a module's parameters (or buffers); None for what it does not say."""
    device = dtype = None
    for tensor in [*module.parameters(), *module.buffers()]:
        device = tensor.device if device is None else device
        if tensor.is_floating_point():
            return device, tensor.dtype
    return device, dtype


def to_tensors(x: Any, device: Any = None, dtype: Any = None) -> Any:
    """Arrays as tensors, also inside lists, tuples and mappings; floating point ones with the given dtype."""
    import torch

    if isinstance(x, Mapping):
        return {key: to_tensors(value, device, dtype) for key, value in x.items()}
    if isinstance(x, (list, tuple)) and any(isinstance(item, (np.ndarray, torch.Tensor, Mapping)) for item in x):
        return [to_tensors(item, device, dtype) for item in x]
    tensor = x if isinstance(x, torch.Tensor) else torch.from_numpy(_usable(x))
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def _usable(x: Any) -> np.ndarray[Any, Any]:
    """An array that torch can share: writable (the original may be a mapped file), in native order and contiguous."""
    array = np.asarray(x)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.hasobject or array.dtype.kind not in "biufc":
        raise InvalidPipeline(f"a torch module takes numbers, not an array of dtype {array.dtype}")
    shaped = np.ascontiguousarray(array).reshape(array.shape)
    return shaped if shaped.flags.writeable else shaped.copy()


def to_arrays(x: Any) -> Any:
    """Tensors as arrays, also inside lists, tuples and mappings; bfloat16 becomes float32, which numpy has."""
    import torch

    if isinstance(x, torch.Tensor):
        cpu = x.detach().cpu()
        return (cpu.float() if cpu.dtype == torch.bfloat16 else cpu).numpy()
    if isinstance(x, Mapping):
        return {key: to_arrays(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [to_arrays(item) for item in x]
    return x


def to_state(value: Any) -> Any:
    """A state's entry as an array of its own: the module's memory goes on changing."""
    array = to_arrays(value)
    return array.copy() if isinstance(array, np.ndarray) else array


def is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic))


def _leaves(x: Any) -> Iterator[Any]:
    if isinstance(x, Mapping):
        x = list(x.values())
    if isinstance(x, (list, tuple)):
        for item in x:
            yield from _leaves(item)
    else:
        yield x


def has_tensor(x: Any) -> bool:
    import torch

    return any(isinstance(leaf, torch.Tensor) for leaf in _leaves(x))


def has_gradient(x: Any) -> bool:
    return any(getattr(leaf, "requires_grad", False) for leaf in _leaves(x))


def length(x: Any) -> int:
    return len(next(_leaves(x))) if isinstance(x, Mapping) else len(x)


def take(x: Any, rows: Any) -> Any:
    if isinstance(x, Mapping):
        return {key: take(value, rows) for key, value in x.items()}
    return x[rows] if hasattr(x, "shape") else np.asarray(x)[rows]
