"""From pickles to filters: unpickled afresh for each plan, with errors that say what is missing where."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

from somatize_worker.errors import FilterNotLoadable, InvalidPipeline
from somatize_worker.hosts.inside.calls import Step

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


class Filters:
    """The filters of one plan.

    Args:
        specs: the plan spec's ``filters``, by node id.
        worker_id: for error messages.
        load_state: the live state behind a stored one.
        kept: filters of earlier plans of the same session, by node id and pickle; None where nothing is kept.
    """

    def __init__(
        self,
        specs: Iterable[Mapping[str, Any]],
        *,
        worker_id: str,
        load_state: Callable[[Any], Any],
        kept: dict[tuple[str, bytes], Any] | None = None,
    ) -> None:
        self._specs = {spec["node_id"]: spec for spec in specs}
        self._worker_id = worker_id
        self._load_state = load_state
        self._kept = kept
        self._shared: dict[bytes, Any] = {}

    def load(self, node_ids: Iterable[str], *, pickled_by: str | None = None) -> dict[str, Step]:
        """The filters of these nodes, ready to be called.

        Args:
            pickled_by: the Python version that pickled them, such as ``"3.11"``, if it is known.

        Raises:
            InvalidPipeline: a node without a filter, or an object that is none.
            FilterNotLoadable: a filter that does not unpickle here.
        """
        wanted = list(node_ids)
        missing = [node_id for node_id in wanted if node_id not in self._specs]
        if missing:
            raise InvalidPipeline(
                f"no filter for node {', '.join(map(repr, missing))}; the plan has filters for "
                f"{', '.join(map(repr, self._specs)) or 'no node'}",
                node_id=missing[0],
            )
        if wanted and pickled_by is not None and pickled_by != PYTHON:
            raise FilterNotLoadable(
                f"these filters were pickled by Python {pickled_by}, and worker {self._worker_id} runs Python {PYTHON} "
                f"({sys.executable}): pickles of functions need the same minor version. Submit from Python {PYTHON}, "
                f"or start a worker with Python {pickled_by}",
                pickled_by=pickled_by,
                interpreter=sys.executable,
                worker_id=self._worker_id,
            )
        return {node_id: self._step(self._specs[node_id]) for node_id in wanted}

    def pickle_of(self, node_id: str) -> bytes:
        """A node's filter as it came."""
        pickled: bytes = self._specs[node_id]["pickle"]
        return pickled

    def stored_states(self) -> dict[str, Any]:
        """The states that came with the filters."""
        return {node_id: state for node_id, spec in self._specs.items() if (state := spec.get("state")) is not None}

    def _step(self, spec: Mapping[str, Any]) -> Step:
        node_id, state = spec["node_id"], spec.get("state")
        load_state = None if state is None else lambda: self._load_state(state)
        loaded = self._loaded(node_id, spec["pickle"])
        return Step(node_id, loaded, trainable=bool(spec.get("trainable")), load_state=load_state)

    def _loaded(self, node_id: str, pickled: bytes) -> Any:
        if self._kept is not None and (node_id, pickled) in self._kept:
            return self._kept[node_id, pickled]
        loaded = self._shared.get(pickled)
        if loaded is None:
            loaded = self._unpickled(node_id, pickled)
            if _can_be_shared(loaded):
                self._shared[pickled] = loaded
        if self._kept is not None:
            self._kept[node_id, pickled] = loaded
        return loaded

    def _unpickled(self, node_id: str, pickled: bytes) -> Any:
        try:
            return pickle.loads(pickled)
        except MemoryError:
            raise
        except ModuleNotFoundError as error:
            what = f"the module {error.name!r} is missing there"
            remedy = "name it in the filter's requirements, or install it in the worker's environment"
            raise self._not_loadable(node_id, what, remedy, module=error.name or "") from error
        except BaseException as error:  # unpickling runs user code, which may raise anything, and call sys.exit
            what = f"{type(error).__name__}: {error}"
            remedy = "check that its classes and libraries have the same versions there as where it was pickled"
            raise self._not_loadable(node_id, what, remedy) from error

    def _not_loadable(self, node_id: str, what: str, remedy: str, **details: Any) -> FilterNotLoadable:
        return FilterNotLoadable(
            f"node {node_id!r}: its filter does not unpickle on worker {self._worker_id} ({sys.executable}): {what}; "
            f"{remedy}",
            node_id=node_id,
            interpreter=sys.executable,
            worker_id=self._worker_id,
            **details,
        )


def _can_be_shared(loaded: Any) -> bool:
    """Whether several nodes may use one object: it keeps nothing between calls."""
    wrapped = type(loaded).__module__ == "somatize_worker.pipeline.function_adapter"
    function = loaded.function if wrapped else loaded
    return type(function) is FunctionType and function.__closure__ is None
