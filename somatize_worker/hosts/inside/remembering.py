"""A plan's use of the content-addressed cache: what to look for, what to keep."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from somatize_worker.errors import MissingData, Unrepresentable
from somatize_worker.hosts.inside.caching import NO_STATE, Digests, for_data, for_output, for_state
from somatize_worker.hosts.inside.exchange import Outside
from somatize_worker.values import load_state, pickle_state


@dataclass(frozen=True)
class Keys:
    """Under which keys a node's state (of a fit) and output lie for one input."""

    state: bytes | None
    output: bytes


@dataclass(frozen=True)
class Hit:
    """A value from the cache, live; where it was (``Local``, ``Remote``) and how long loading took."""

    value: Any
    tier: str
    load_ms: int


class Memory:
    """Looks up and keeps outputs and states. ``configuration`` gives the key of a node's code and parameters."""

    def __init__(self, configuration: Callable[[str], bytes], outside: Outside, digests: Digests) -> None:
        self._configuration = configuration
        self._outside = outside
        self._digests = digests
        self._state_digests: dict[int, tuple[Any, bytes | None]] = {}

    def keys_of_fit(self, node_id: str, x: Any, y: Any, batch_size: int | None) -> Keys | None:
        """For a fit on ``x`` and ``y``; None if one of them has no digest."""
        input = self._digests.of(x)
        targets = None if y is None else self._digests.of(y)
        if input is None or (y is not None and targets is None):
            return None
        configuration = self._configuration(node_id)
        state = for_state(configuration, for_data(input, targets, batch_size))
        return Keys(state, for_output(configuration, state, input))

    def keys_of_forward(self, node_id: str, x: Any, stored_state: Any) -> Keys | None:
        """For a forward with the state that came with the plan (stored; None for none)."""
        input = self._digests.of(x)
        state = NO_STATE if stored_state is None else self._state_digest(stored_state)
        if input is None or state is None:
            return None
        return Keys(None, for_output(self._configuration(node_id), state, input))

    def _state_digest(self, stored: Any) -> bytes | None:
        known, digest = self._state_digests.get(id(stored), (None, None))
        if known is not stored:
            digest = self._digests.of(self._outside.load(stored))
            self._state_digests[id(stored)] = (stored, digest)
        return digest

    def stored_state(self, keys: Keys) -> Any | None:
        """The state of such a fit, stored; None if there is none."""
        return None if keys.state is None else self._outside.find(keys.state)

    def look_up(self, key: bytes) -> Hit | None:
        """What lies under a key, loaded."""
        started = time.perf_counter_ns()
        stored = self._outside.find(key)
        if stored is None:
            return None
        try:
            value = load_state(self._outside.load(stored))
        except MissingData:  # it expired since it was found: as if it had not been
            return None
        self._digests.name(value, key)
        tier = "Local" if self._outside.is_local(stored) else "Remote"
        return Hit(value, tier, (time.perf_counter_ns() - started) // 1_000_000)

    def keep(self, key: bytes, node_id: str, output: Any) -> None:
        """Keep an output. One that cannot leave the process is not kept, and the log says so."""
        try:
            self._outside.keep(key, pickle_state(output))
        except Unrepresentable as error:
            sys.stderr.write(f"soma: the output of node {node_id!r} is not cached: {error.message}\n")
            return
        self._digests.name(output, key)
