"""Pipelines with what they have learned: to run again, to keep in a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from somatize_worker.errors import FilterNotLoadable, InvalidPipeline
from somatize_worker.packing import Reference, pack, unpack
from somatize_worker.pipeline.compile import PYTHON, CompiledFilter, CompiledPipeline
from somatize_worker.values import load_state

_MAGIC: Final = b"SOMA-PIPELINE 1\n"


class FittedPipeline(CompiledPipeline):
    """A compiled pipeline with states. Immutable: :meth:`with_states` makes another one.

    Args:
        source: what was fitted; the states that it has itself are kept where ``states`` has no other.
        states: node id to state: plain data, references and pickled states as workers return them, or live objects.

    Raises:
        InvalidPipeline: a state for a node that the pipeline does not have.
        Unrepresentable: a state that does not pickle.
    """

    def __init__(self, source: CompiledPipeline, states: Mapping[str, Any]) -> None:
        super().__init__(
            source.plan,
            source.filters,
            summary=source.summary,
            python=source.python,
            spread=source.spread,
            fingerprints=source._fingerprints,
        )
        if "code" in vars(source):
            self.code = source.code
        own = source.states if isinstance(source, FittedPipeline) else {}
        self.states: Mapping[str, Any] = MappingProxyType({**own, **self._checked_states(states)})
        self._fitted_entries = [one.entry(self.states.get(one.node_id)) for one in self.filters]

    def __repr__(self) -> str:
        fitted = ", ".join(self.states) or "nothing"
        return f"FittedPipeline({self.summary}; fitted: {fitted})"

    def with_states(self, states: Mapping[str, Any]) -> FittedPipeline:
        """The same pipeline with some states replaced."""
        return FittedPipeline(self, states)

    def state(self, node_id: str) -> Any:
        """One node's state as the object it was. Unpickles what a worker sent: only from workers that you trust.

        Raises:
            InvalidPipeline: the node has no state here.
            FilterNotLoadable: it was pickled by another Python version, or a module is missing here.
        """
        if node_id not in self.states:
            raise InvalidPipeline(f"no state for {node_id!r}; there is one for: {', '.join(self.states) or 'no node'}")
        return load_state(self.states[node_id])

    def _filters(self, states: Mapping[str, Any]) -> list[dict[str, Any]]:
        return super()._filters({**self.states, **states}) if states else self._fitted_entries

    def save(self, path: str | os.PathLike[str], *, fetch: Callable[[Reference], Any] | None = None) -> None:
        """Write the pipeline, code and states, to one file; replaces a file of that name only when all is written.

        Args:
            path: the file.
            fetch: gives the data behind a reference (``store.get``), if states lie in a store.

        Raises:
            InvalidPipeline: a state lies in a store and there is no ``fetch``.
        """
        content = {
            "python": self.python,
            "summary": self.summary,
            "spread": self.spread,
            "plan": self.plan,
            "filters": [
                {
                    **one.entry(),
                    "state": None,
                    "caching": one.caching,
                    "fingerprint": self._fingerprints.get(one.node_id),
                }
                for one in self.filters
            ],
            "states": {node_id: _fetched(node_id, state, fetch) for node_id, state in self.states.items()},
        }
        _write(Path(path), [_MAGIC, pack(content)])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FittedPipeline:
        """Read what :meth:`save` wrote. Nothing is unpickled.

        Raises:
            InvalidPipeline: the file is not a saved pipeline, or is damaged.
            FilterNotLoadable: it was saved by another minor version of Python, whose code does not load here.
        """
        data = Path(path).read_bytes()
        if not data.startswith(_MAGIC):
            raise InvalidPipeline(f"{path} is not a pipeline that FittedPipeline.save wrote")
        try:
            content = unpack(memoryview(data)[len(_MAGIC) :])
        except ValueError as error:
            raise InvalidPipeline(f"{path} is damaged or incomplete ({error}): save the pipeline again") from error
        if content["python"] != PYTHON:
            raise FilterNotLoadable(
                f"{path} was saved by Python {content['python']}, and this is Python {PYTHON}: pickled code only loads "
                f"in the version that made it. Use Python {content['python']}, or fit and save again here.",
                saved=content["python"],
                running=PYTHON,
            )
        filters = content["filters"]
        made = CompiledPipeline(
            content["plan"],
            [_filter(entry) for entry in filters],
            summary=content["summary"],
            python=content["python"],
            spread=content["spread"],
            fingerprints={entry["node_id"]: entry["fingerprint"] for entry in filters if entry["fingerprint"]},
        )
        return cls(made, content["states"])


def _filter(entry: Mapping[str, Any]) -> CompiledFilter:
    return CompiledFilter(
        node_id=entry["node_id"],
        pickle=entry["pickle"],
        requirements=tuple(entry["requirements"]),
        trainable=entry["trainable"],
        caching=entry["caching"],
    )


def _fetched(node_id: str, state: Any, fetch: Callable[[Reference], Any] | None) -> Any:
    if not isinstance(state, Reference):
        return state
    if fetch is None:
        raise InvalidPipeline(
            f"the state of {node_id!r} lies in a store, from which it will expire ({state!r}): "
            f"save(path, fetch=store.get) writes it into the file",
        )
    return fetch(state)


def _write(path: Path, parts: Iterable[bytes]) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
