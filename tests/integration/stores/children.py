"""What other processes do with a store: ``python -m tests.integration.stores.children ACTION JSON``.

Each action takes the store's spec and arguments, and prints its answer as JSON.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from somatize_worker.packing import Reference
from somatize_worker.stores import formats
from tests.integration.stores.support import open_spec

MB = 1 << 20


def memory_kb(field: str) -> int:
    """A line of this process's status: ``VmRSS`` now, ``VmHWM`` at its peak."""
    return int(re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def growth_mb(action: Callable[[], Any]) -> float:
    """By how much this process was larger at the peak of the action than before it."""
    before = memory_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    action()
    return (memory_kb("VmHWM") - before) / 1024


def put_slowly(spec: dict[str, Any], key: str, nbytes: int) -> None:
    """Put a value that takes long to write and no memory."""
    value = np.broadcast_to(np.float64(1), nbytes // 8)
    open_spec(spec).put(value, key=bytes.fromhex(key))
    print(json.dumps("written"))


def put_at_the_signal(spec: dict[str, Any], key: str, value: float, count: int) -> None:
    """Be ready, wait for a line, put an array of one repeated value."""
    store = open_spec(spec)
    array = np.full(count, value)
    print(json.dumps("ready"), flush=True)
    sys.stdin.readline()
    store.put(array, key=bytes.fromhex(key))
    print(json.dumps("written"))


def describe(spec: dict[str, Any], fields: dict[str, Any]) -> None:
    """Get a tensor in this process."""
    value = open_spec(spec).get(reference(fields))
    print(json.dumps([str(value.dtype), list(value.shape), float(value.sum())]))


def hold_mapped(spec: dict[str, Any], fields: dict[str, Any]) -> None:
    """Get a tensor, touch all of it, and keep it until a line comes."""
    value = open_spec(spec).get(reference(fields))
    print(json.dumps(float(value.sum())), flush=True)
    sys.stdin.readline()
    print(json.dumps(value.size))


def measure_rows(spec: dict[str, Any], fields: dict[str, Any], start: int, stop: int) -> None:
    store = open_spec(spec)
    store.info(reference(fields))
    print(json.dumps(growth_mb(lambda: store.rows(reference(fields), start, stop).sum())))


def measure_fetch(spec: dict[str, Any], fields: dict[str, Any], folder: str) -> None:
    store = open_spec(spec)
    store.info(reference(fields))
    print(json.dumps(growth_mb(lambda: store.fetch(reference(fields), Path(folder)))))


def measure_adopt(spec: dict[str, Any], nbytes: int) -> None:
    store = open_spec(spec)
    value = np.broadcast_to(np.float64(1), nbytes // 8)
    path = formats.write(store.workspace() / formats.new_name(), value)
    print(json.dumps(growth_mb(lambda: store.adopt(path))))


def measure_put(spec: dict[str, Any], nbytes: int, order: Any) -> None:
    store = open_spec(spec)
    store.put(np.zeros(3 * MB))
    value = np.ones((1024, nbytes // 8 // 1024), order=order)
    print(json.dumps(growth_mb(lambda: store.put(value))))


def put_under_a_file_size_limit(spec: dict[str, Any], limit: int, nbytes: int) -> None:
    store = open_spec(spec)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        store.put(np.zeros(nbytes // 8))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))


def crash_with_a_workspace(spec: dict[str, Any]) -> None:
    """Leave a file in this process's workspace and wait to be killed."""
    store = open_spec(spec)
    folder = store.workspace()
    formats.write(folder / formats.new_name(), np.zeros(10))
    print(json.dumps(str(folder)), flush=True)
    sys.stdin.readline()


def end_with_a_workspace(spec: dict[str, Any]) -> None:
    """The same, but end well."""
    store = open_spec(spec)
    folder = store.workspace()
    formats.write(folder / formats.new_name(), np.zeros(10))
    print(json.dumps(str(folder)))


def marker(spec: dict[str, Any]) -> None:
    store: Any = open_spec(spec)
    print(json.dumps("ready"), flush=True)
    sys.stdin.readline()
    print(json.dumps(store.marker()))


def reference(fields: dict[str, Any]) -> Reference:
    key = fields.get("cache_key")
    return Reference(**{**fields, **({"cache_key": bytes.fromhex(key)} if isinstance(key, str) else {})})


if __name__ == "__main__":
    globals()[sys.argv[1]](*json.loads(sys.argv[2]))
