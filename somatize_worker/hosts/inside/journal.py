"""What a plan has done already, kept so that it is not done again: after a crash, or while it waits for its children.

Entries are keyed by the place in the plan's tree, as text: ``"0.2.loop3.1"``; the whole plan is ``"root"``. An entry is
packed ``{"output": ..., "states": {node: ...}, "names": ...}``, values as :func:`~somatize_worker.values.pickle_state`
makes them, inline or as references; names, if there are any, as in :mod:`caching`; ``own``, if there are any, are the
references to what was stored for this plan alone. The entry of a child plan is its result:
``{"state": "succeeded", "output": ..., ...}``.

An entry may cost at most a tenth of the work that it protects. Small values are copied and sent by the flusher, if the
plan still runs by then; of the steps of a sequence only the newest is kept, with the states fitted so far. Large ones
are written at once, when that takes less than a tenth of the time since the last entry.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from somatize_worker.errors import Unrepresentable
from somatize_worker.hosts.inside.caching import Digests
from somatize_worker.hosts.inside.exchange import Outside
from somatize_worker.hosts.inside.failures import NodeFailed
from somatize_worker.hosts.inside.sizes import rough_nbytes
from somatize_worker.packing import pack, unpack
from somatize_worker.values import load_state, pickle_state

ROOT: Final = "root"
_SMALL_BYTES: Final = 4096
_SHARE: Final = 10
_DUE_NS: Final = 10_000_000
_PACK_NS: Final = 30_000
_WRITE_NS: Final = 1_000_000
_SCALARS: Final = frozenset({int, float, bool, type(None)})
_IMMUTABLE: Final = _SCALARS | {str, bytes}
_COMPONENT: Final = re.compile(r"\D*(\d*)")


class Fitted:
    """One node's fitted state, in the form in which it leaves; a large one is written once."""

    def __init__(self, plain: Any) -> None:
        self._stored = plain
        self.nbytes = rough_nbytes(plain)

    def export(self, outside: Outside) -> Any:
        """Inline or as a reference."""
        self._stored = outside.export(self._stored)
        return self._stored

    def keep(self, key: bytes, outside: Outside) -> None:
        """Put it into the cache, too; a large one is only written there."""
        reference = outside.keep(key, self._stored)
        if outside.is_large(self._stored):
            self._stored = reference


class Journal:
    """The entries of one run of one plan: those it came with, and those it makes.

    Args:
        entries: what earlier runs left, by path.
        outside: writes and reads large values.
    """

    def __init__(
        self, entries: Mapping[str, bytes], outside: Outside, clock: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._packed = dict(entries)
        self._read: dict[str, dict[str, Any]] = {}
        self._outside = outside
        self._clock = clock
        self._last_point = clock()
        self._pending: dict[str, dict[str, Any] | bytes] = {}
        self._kept: set[str] = set()
        self._lock = threading.Lock()
        self._loose: dict[str, Fitted] = {}
        #: Which values are known by the key under which they lie in the cache.
        self.digests = Digests()
        #: Whether there is anything to replay.
        self.replaying = bool(entries)
        #: No entries by choice, say while a plan runs for each of many items.
        self.quiet = False

    # ── replay ───────────────────────────────────────────────────────────────────────────────────────────────────

    def has(self, path: str) -> bool:
        """Whether the output of the step at ``path`` is known from an earlier run."""
        return path in self._packed

    def use(self, path: str) -> tuple[Any, dict[str, Any]]:
        """The step's output, live, and the states that were fitted in it, stored.

        Raises:
            NodeFailed: the step ran as a plan of its own, and failed.
        """
        inside = f"{path}."
        return self._output(path), self._states(lambda other: other == path or other.startswith(inside))

    def use_through(self, prefix: str, last: int) -> tuple[Any, dict[str, Any]]:
        """As :meth:`use` for the step at ``{prefix}{last}``, with the states of the steps before it, too."""

        def covered(other: str) -> bool:
            if not other.startswith(prefix):
                return False
            number = _COMPONENT.match(other[len(prefix) :].split(".", 1)[0])
            return number is not None and number[1] != "" and int(number[1]) <= last

        return self._output(f"{prefix}{last}"), self._states(covered)

    def latest(self, prefix: str, count: int) -> int | None:
        """The highest index below ``count`` for which ``{prefix}{index}`` is known."""
        indices = (path[len(prefix) :] for path in self._packed if path.startswith(prefix))
        return max((int(text) for text in indices if text.isdecimal() and int(text) < count), default=None)

    def below(self, path: str) -> dict[str, bytes]:
        """The entries of an earlier run for what is inside the step at ``path``."""
        inside = f"{path}."
        return {other: entry for other, entry in self._packed.items() if other.startswith(inside)}

    def own(self) -> Iterator[Any]:
        """References to what earlier runs, and parts that ran elsewhere, have stored for this plan alone."""
        for path in self._packed:
            yield from self._entry(path).get("own") or ()

    def _entry(self, path: str) -> dict[str, Any]:
        entry = self._read.get(path)
        if entry is None:
            entry = self._read[path] = unpack(self._packed[path])
        return entry

    def _output(self, path: str) -> Any:
        entry = self._entry(path)
        if entry.get("state") in ("failed", "cancelled"):
            if entry["state"] == "cancelled":
                entry = {"error_type": "somatize_worker.errors.PlanCancelled", "error": "a part was cancelled", **entry}
            raise NodeFailed.from_dict(entry)
        output = load_state(self._outside.load(entry.get("output")))
        self.digests.take_names(output, entry.get("names") or [])
        return output

    def _states(self, covered: Callable[[str], bool]) -> dict[str, Any]:
        states: dict[str, Any] = {}
        for path in sorted(filter(covered, self._packed), key=_in_tree_order):
            states.update(self._entry(path).get("states") or {})
        return states

    # ── recording ────────────────────────────────────────────────────────────────────────────────────────────────

    def fitted(self, node_id: str, state: Fitted) -> None:
        """A node was fitted; the next entry carries its state."""
        self._loose[node_id] = state

    @contextmanager
    def own_states(self) -> Iterator[None]:
        """States fitted inside are carried by entries made inside; the rest by entries made after the block ends,
        if it ends well. For branches, of which one may be journaled and the next not."""
        outer, self._loose = self._loose, {}
        try:
            yield
            outer.update(self._loose)
        finally:
            self._loose = outer

    def is_due(self) -> bool:
        """Whether enough time has gone by for an entry to be worth a look at the output's size."""
        return self._clock() - self._last_point > _DUE_NS

    def note(self, path: str, output: Any, replaces: str | None = None) -> None:
        """A step is done: make an entry, if that is cheap for what it protects.

        ``replaces``: entries below this prefix that were not sent yet are not needed any more.
        """
        if self.quiet:
            return
        kind = type(output)
        if kind in _SCALARS and not self._loose:
            self._last_point = self._clock()
            self._wait(path, {"output": output, "states": {}}, replaces)
            return
        quick = kind in _IMMUTABLE or kind is np.ndarray
        cost = (0 if quick else _PACK_NS) + self._write_ns(rough_nbytes(output))
        for state in self._loose.values():
            cost += self._write_ns(state.nbytes)
        if cost and cost * _SHARE > self._clock() - self._last_point:
            return
        try:
            self._add(path, output, replaces)
        except Unrepresentable:
            return  # nothing is lost but the chance to skip this step: it runs again if it must

    @staticmethod
    def _write_ns(size: int) -> int:
        return 0 if size <= _SMALL_BYTES else size + _WRITE_NS  # at 1 GB/s a byte takes a nanosecond

    def ensure(self, path: str, output: Any, node_id: str | None) -> None:
        """A step is done that replay must skip: make an entry, whatever it costs.

        Raises:
            Unrepresentable: the output cannot leave this process; the message names the node and the type.
        """
        if path in self._packed or path in self._kept:
            return
        try:
            self._add(path, output, None)
        except Unrepresentable as error:
            raise Unrepresentable(
                f"node {node_id!r} feeds a step that runs elsewhere, so its output must be kept: {error.message}",
                node_id=node_id,
                **error.details,
            ) from error

    def _add(self, path: str, output: Any, replaces: str | None) -> None:
        stored = _snapshot(self._outside.export(pickle_state(output)))
        states = {node_id: _snapshot(state.export(self._outside)) for node_id, state in self._loose.items()}
        self._loose.clear()
        entry = {"output": stored, "states": states}
        if own := [value for value in (stored, *states.values()) if self._outside.is_own(value)]:
            entry["own"] = own
        if names := self.digests.names_in(output):
            entry["names"] = names
        self._wait(path, entry, replaces)
        self._last_point = self._clock()

    def _wait(self, path: str, entry: dict[str, Any], replaces: str | None) -> None:
        """Have an entry wait until it is sent, in place of those that it makes needless."""
        with self._lock:
            if replaces is not None and self._pending:
                states = self._drop(replaces)
                if states:
                    entry["states"] = {**states, **entry["states"]}
            self._pending[path] = entry
            self._kept.add(path)

    def _drop(self, prefix: str) -> dict[str, Any]:
        """Remove entries that wait below a prefix; their states."""
        states: dict[str, Any] = {}
        for path in tuple(self._pending):
            if not path.startswith(prefix):
                continue
            entry = self._pending[path]
            if isinstance(entry, dict):
                del self._pending[path]
                self._kept.discard(path)
                states.update(entry["states"])
        return states

    def adopt(self, entries: Mapping[str, bytes]) -> None:
        """Entries that a helper process made for this plan."""
        with self._lock:
            self._pending.update(entries)
            self._kept.update(entries)

    def take(self) -> dict[str, bytes]:
        """The entries that were not sent yet, packed."""
        with self._lock:
            if not self._pending:
                return {}
            pending, self._pending = self._pending, {}
        return {path: entry if isinstance(entry, bytes) else pack(entry) for path, entry in pending.items()}


def _snapshot(stored: Any) -> Any:
    """What travels inline, so that no user code can change it any more before it does."""
    if isinstance(stored, np.ndarray):
        return stored.copy() if stored.flags.writeable else stored
    if isinstance(stored, (list, dict)):
        return unpack(pack(stored))
    return stored


def _in_tree_order(path: str) -> tuple[float, ...]:
    """Sorts places by when they finish: steps in order, and what is inside a step before the step itself."""
    return (*(float(_COMPONENT.match(part)[1] or -1) for part in path.split(".")), float("inf"))  # type: ignore[index]


def stored_states(states: Mapping[str, Fitted | Any], outside: Outside) -> dict[str, Any]:
    """Fitted states as the plan's result carries them."""
    return {node: state.export(outside) if isinstance(state, Fitted) else state for node, state in states.items()}
